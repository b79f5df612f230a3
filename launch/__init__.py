"""Programs: each is run as `python -m launch.NAME`; app.py is the entry they share."""
