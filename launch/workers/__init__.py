"""Worker processes, which train runs, and the launcher's side of them."""
