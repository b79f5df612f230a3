"""Reports on a sweep, made from its files: tables, figures and the HTML page."""
