"""Trains every run of a sweep and reports LR sensitivity.

  python -m launch.sweep --config=configs/quickstart.py[:SCALE] --workdir=DIR [--seeds=N]
      [--config.x.y=VALUE]

Stopped and started again with the same command, it continues where it was; with a higher --seeds,
it trains what is new. Started a second time meanwhile, here or on another machine that sees DIR, it
shares the work. SIGTERM and SIGUSR1 end it with everything saved and exit code 75. Runs that the
sweep of --reuse=OTHER_DIR has trained already are taken over: with the same config, text, versions.

--dry_run says what the sweep would cost and, of devices, where its runs would go and how long they
would take:

  python -m launch.sweep --config=... --dry_run
      [--devices=8 --device_memory_gb=80 --device_tflops=990 [--utilisation=0.4]]
      [--analyze]  compiles for the devices here: XLA's account of memory beside ours

--backend says who trains the runs; DIR is the same with all of them, and one goes on where another
has stopped. --dry_run shows what would be submitted:

  --backend=local     worker processes on this machine [--workers=N]
  --backend=slurm     an array of SLURM jobs [--slurm_partition=P --slurm_account=A
                      --slurm_options=--OPTION=VALUE ...]
  --backend=ray       tasks of a Ray cluster [--ray_address=HOST:PORT]
  --backend=manifest  nobody: DIR/manifest.jsonl tells another scheduler what to start
      [--jobs=N --job_cpus=N --job_gpus=N --job_memory_gb=X --job_minutes=N]  all but local
"""

from pathlib import Path

from absl import flags

from launch.backends import registry
from launch.common import app, dry_run, preemption, start
from stability.errors import BadInput

FLAGS = flags.FlagValues()
app.define_config(FLAGS)
_WORKDIR = app.define_workdir(FLAGS, required=False)
_SEEDS = start.define_seeds(FLAGS)
_REUSE = flags.DEFINE_multi_string(
    'reuse',
    [],
    'folder of a sweep whose runs are taken over where they are the same; may be repeated',
    flag_values=FLAGS,
)
dry_run.define(FLAGS)
registry.define_flags(FLAGS)


def main() -> int | None:
  """Trains the sweep, or plans it."""
  machine = dry_run.check(FLAGS)
  backend = registry.find(FLAGS)
  sweep = app.load_sweep(FLAGS, seeds=_SEEDS.value)
  if FLAGS['dry_run'].value:
    dry_run.show(sweep, machine, analyze=FLAGS['analyze'].value)
    workdir = Path(_WORKDIR.value).absolute() if _WORKDIR.value else Path('DIR')
    backend.show(workdir, sweep.runs.configs)
    return 0
  if not _WORKDIR.value:
    raise BadInput('--workdir: missing, must be a folder (only --dry_run needs none)')
  others = [Path(other) for other in _REUSE.value]
  for other in others:
    if not (other / 'sweep.json').is_file():
      raise BadInput(f'--reuse={other}: holds no sweep (no sweep.json)')
  backend.check()
  workdir = Path(_WORKDIR.value)
  return start.start(sweep, workdir, backend.train, waits=backend.waits, others=others)


if __name__ == '__main__':
  preemption.install()
  app.run(main, FLAGS)
