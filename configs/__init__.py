"""Experiments: each config file holds what differs from configs/base.py, and why."""
