"""The Transformer in Flax linen: modules, and tables of their variants."""
