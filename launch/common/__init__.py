"""Code that programs share: flags and errors, the steps of a sweep, jobs, progress."""
