"""Runs of a workdir -> the offline formats of other tools, written by their own packages."""
