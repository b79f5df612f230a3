"""Worker processes, which train runs, and their launcher's side."""
