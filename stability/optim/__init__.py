"""Optimizers, schedules, gradient clipping, weight decay and transformations after an update."""
