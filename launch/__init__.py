"""Programs, run as `python -m launch.NAME`."""
