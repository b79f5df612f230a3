"""Trains every run of a sweep and reports LR sensitivity.

  python -m launch.sweep --config=configs/quickstart.py[:SCALE] --workdir=DIR [--seeds=N]
      [--config.x.y=VALUE]

Stopped and started again with the same command, it continues where it was; with a higher --seeds,
it trains what is new. --dry_run says what the sweep would cost.
"""

import types
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from launch import app, start
from stability import config as config_lib
from stability import plan as plan_lib
from stability.data import tokens
from stability.errors import BadInput

FLAGS = flags.FlagValues()
app.define_config(FLAGS)
_WORKDIR = app.define_workdir(FLAGS, required=False)
_WORKERS = start.define_workers(FLAGS)
_SEEDS = start.define_seeds(FLAGS)
_DRY_RUN = flags.DEFINE_boolean(
    'dry_run', False, 'print the runs and what they cost; write nothing', flag_values=FLAGS
)


def main() -> int | None:
  """Trains the sweep, or plans it."""
  sweep = app.load_sweep(FLAGS, seeds=_SEEDS.value)
  if _DRY_RUN.value:
    print_plan(sweep)
    return 0
  if not _WORKDIR.value:
    raise BadInput('--workdir: missing, must be a folder (only --dry_run needs none)')
  return start.start(sweep, Path(_WORKDIR.value), _WORKERS.value)


def print_plan(sweep: app.Sweep) -> None:
  """The table of runs, and what they take together."""
  configs = sweep.runs.configs
  source = types.SimpleNamespace(**next(iter(configs.values()))['data'])  # shared by the runs
  vocabulary_size = tokens.vocabulary_size(source)
  table = Table(title=f'{sweep.config_file} at scale {sweep.scale}')
  table.add_column('run', overflow='fold')
  for column in ('parameters', 'tokens', 'FLOPs'):
    table.add_column(column, justify='right')
  for name, config in configs.items():
    table.add_row(
        name,
        f'{config_lib.parameters(config):,}',
        f'{plan_lib.tokens(config):,}',
        f'{plan_lib.train_flops(config, vocabulary_size):.2e}',
    )
  plan = plan_lib.plan(configs, vocabulary_size)
  console = Console()
  console.print(table)
  console.print(
      f'{plan.runs:,} runs, {plan.tokens:,} tokens, {plan.flops:.2e} FLOPs;'
      f' {plan.populations} populations, {plan.executables} executables to compile',
      highlight=False,
      soft_wrap=True,
  )


if __name__ == '__main__':
  app.run(main, FLAGS)
