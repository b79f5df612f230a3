"""Measurements inside other people's PyTorch and Flax models, under the names of this package."""
