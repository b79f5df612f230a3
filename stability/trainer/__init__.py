"""The training loop: it trains runs on a layout and writes their files."""
