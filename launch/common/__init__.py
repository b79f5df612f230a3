"""Code that programs share: flags and errors, the course of a sweep, jobs, progress."""
