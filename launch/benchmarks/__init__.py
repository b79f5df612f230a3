"""The programs that launch.benchmark measures, each in a process of its own."""
