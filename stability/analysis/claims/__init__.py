"""Statements, most of them from the paper, as statistics with thresholds."""
