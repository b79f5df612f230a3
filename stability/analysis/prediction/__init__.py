"""Predicts, from small sizes, the learning rates at which a larger size becomes unstable."""
