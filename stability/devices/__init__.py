"""A training step over devices: layouts, where runs are placed, memory, compilation."""
