"""Pure functions of one run: objective, gradients, training step, evaluation, probes, sharpness."""
