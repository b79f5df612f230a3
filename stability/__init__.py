"""Find out on small Transformers what will make a large one unstable (arXiv 2309.14322)."""

__version__ = '0.1.0'
