"""Alarms on what a run has logged, and actions that people and the policy take on it."""
