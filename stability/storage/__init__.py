"""The files of a workdir: sweeps, runs, metrics, checkpoints, leases, versions, reuse."""
