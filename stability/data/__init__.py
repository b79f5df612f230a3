"""Text sources, token files and batches; no module here imports jax at import time."""
