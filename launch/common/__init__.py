"""What several programs share: flags and errors, the start of a sweep, jobs, progress."""
