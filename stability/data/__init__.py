"""Text sources, token files and batches. Importing these modules does not import jax."""
