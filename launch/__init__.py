"""Programs, run as `stability NAME` or `python -m launch.NAME`."""
