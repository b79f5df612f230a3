"""Alarms raised by what a run has logged, and actions on the run by people or the policy."""
