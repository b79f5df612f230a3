"""Which learning rates a larger size bears, predicted from smaller ones."""
