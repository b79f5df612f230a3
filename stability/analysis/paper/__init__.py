"""What arXiv 2309.14322 says of its figures, a file per subject; claims.py has all of it."""
