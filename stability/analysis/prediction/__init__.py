"""Predicts from small sizes at which learning rates a larger size becomes unstable."""
