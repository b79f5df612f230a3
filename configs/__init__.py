"""Experiments: one config file each, holding what differs from configs/base.py and why."""
