"""Optimizers, schedules, clipping and what follows an update: Optax transformations."""
