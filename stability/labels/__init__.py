"""Choosing text with people: passages worth a look, tasks for annotators, and their answers."""
