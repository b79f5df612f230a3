"""The training loop: it drives a layout and keeps each run's files."""
