"""Claims: statements, most of them from the paper, tested by statistics with thresholds."""
