"""Where workers run: one module a backend."""
