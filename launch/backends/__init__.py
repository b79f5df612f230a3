"""Backends, which run workers on this machine or as jobs of a cluster."""
