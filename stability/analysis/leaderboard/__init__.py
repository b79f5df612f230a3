"""Arms of a sweep side by side: how low their loss is, how wide their range of learning rates."""
