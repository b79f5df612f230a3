"""Trains every run of a sweep and reports LR sensitivity.

  python -m launch.sweep --config=configs/quickstart.py[:SCALE] --workdir=DIR [--seeds=N]
      [--arms=NAME,NAME] [--config.x.y=VALUE]

The same command continues an interrupted sweep; with a higher --seeds, it trains the new runs. If
it is started again while the first one runs, here or on another machine that sees DIR, both share
the work. SIGTERM, SIGUSR1 and SIGHUP make it save all runs and end with exit code 75. With
--reuse=OTHER_DIR, results of another sweep are reused for runs with the same config, text,
versions, settings and device (stability/settings.py).

--dry_run prints the cost of the sweep and, for given devices, where its runs would be placed and
how long they would take, and the same of the rest if the sweep has begun in DIR or runs would be
reused:

  python -m launch.sweep --config=... --dry_run [--workdir=DIR] [--reuse=OTHER_DIR]
      [--devices=8 --device_memory_gb=80 --device_tflops=990 [--utilisation=0.4]]
      [--analyze]  compile for the devices here and compare XLA's memory analysis with the estimate
      [--analyze --target=h100:8 [--only=N] [--output=FILE.json]]  compile for devices that need not
                   be here: memory, kernels, collectives, and an estimate of the time

--backend selects where runs are trained. DIR is the same for all backends, and a sweep begun with
one can be continued with another. --dry_run shows what would be submitted:

  --backend=local     worker processes on this machine [--workers=N]
  --backend=slurm     an array of SLURM jobs [--slurm_partition=P --slurm_account=A
                      --slurm_options=--OPTION=VALUE ...]
  --backend=ray       tasks of a Ray cluster [--ray_address=HOST:PORT]
  --backend=manifest  DIR/manifest.jsonl, jobs for any other scheduler to start
      [--jobs=N --job_cpus=N --job_gpus=N --job_memory_gb=X --job_minutes=N]  for all but local

Exit codes: 0 done, 1 some runs failed, 2 bad input, 75 preempted, to be started again.
"""

# First, since launch.common may have to mend sys.path, and the other imports take a second.
from launch.common import preemption

if __name__ == '__main__':
  preemption.install()

from pathlib import Path

from absl import flags

from launch.backends import registry
from launch.common import app, dry_run, path_flags, start, training_device
from stability.errors import BadInput
from stability.storage import sweeps

FLAGS = flags.FlagValues()
app.define_config(FLAGS)
_WORKDIR = app.define_workdir(FLAGS, required=False)
_SEEDS = start.define_seeds(FLAGS)
_ARMS = start.define_arms(FLAGS)
_REUSE = path_flags.define_multi(
    'reuse',
    'workdir of a sweep whose results are reused for identical runs; may be repeated',
    FLAGS,
)
_ATTACHED = start.define_attached(FLAGS)
dry_run.define(FLAGS)
registry.define_flags(FLAGS)


def main() -> int | None:
  """Trains or plans the sweep."""
  if _ATTACHED.value:
    preemption.end_with_stdin()
  options = dry_run.check(FLAGS)
  backend = registry.find(FLAGS)
  workdir = Path(_WORKDIR.value) if _WORKDIR.value else None
  begun = sweeps.find_sweep(workdir) if workdir and _ARMS.value is not None else None
  arms_begun = {config['arm'] for config in begun.runs.values()} if begun else ()
  sweep = app.load_sweep(FLAGS, seeds=_SEEDS.value, arms=_ARMS.value, begun=arms_begun)
  reused = [Path(other) for other in _REUSE.value]
  for other in reused:
    if not (other / 'sweep.json').is_file():
      raise BadInput(f'--reuse={other}: holds no sweep (no sweep.json)')
  device = training_device.find() if reused and backend.is_blocking else None  # of jobs, unknown
  if FLAGS['dry_run'].value:
    dry_run.show(sweep, options, workdir, reused, device)
    backend.show(
        workdir.absolute() if workdir else Path('DIR'), sweep.selected(sweep.runs.configs)
    )
    return 0
  if workdir is None:
    raise BadInput('--workdir: missing, must be a folder (only --dry_run needs none)')
  backend.check()
  return start.start(
      sweep,
      workdir,
      backend.train,
      is_blocking=backend.is_blocking,
      reused=reused,
      device=device,
      not_retried=backend.not_retried(workdir),
  )


if __name__ == '__main__':
  app.run(main, FLAGS)
