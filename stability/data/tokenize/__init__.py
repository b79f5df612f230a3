"""Documents of any kind to token files: readers, tokenizers, resumable packing."""
