"""The training step on devices: layouts, placement of runs, memory, cost, compilation."""
