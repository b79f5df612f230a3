"""The contestants of launch.benchmark: small programs, each measured as a process of its own."""
