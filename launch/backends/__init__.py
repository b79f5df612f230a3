"""The backends, which place workers: on this machine or as jobs of a cluster."""
