"""Text, token files and the batches made of them; nothing here imports jax at the top."""
