"""Retrieval beside a trained model: nearest-neighbour language models, and retrieval in context."""
