"""What drives a layout: the training loop, a run and its files, chunk sizes, actions applied."""
