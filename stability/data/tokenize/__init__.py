"""Conversion of documents to token files: readers, tokenizers and resumable packing."""
