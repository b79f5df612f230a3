"""What people look at: tables, figures and the HTML page, from a sweep's files."""
