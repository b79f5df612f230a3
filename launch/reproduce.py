"""Runs every experiment of the paper, and the ones beyond it, and writes one report over all.

  python -m launch.reproduce --scale=cpu --workdir=DIR [--only=warmup,z_loss] [--seeds=N]
      [--config.x.y=VALUE]

Each experiment is a stage, launch.sweep of its config file with DIR/NAME as its folder, in a
process of its own that ends with this one: one that fails does not stop the others, and each can be
run or continued alone. Runs that several have in common are trained in the first of them. Stopped
and started again, the same command continues. The report is over every experiment in DIR, whichever
call or launch.sweep ran it. --dry_run says what all would cost.

All at cpu scale take 1.2 to 2 hours on two cores (estimate); each config file has its own share.
"""

import ast
import dataclasses
import difflib
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

import configs
from launch.common import app, preemption, start
from stability.data import tokens
from stability.devices import cost as cost_lib
from stability.errors import BadInput
from stability.storage import reuse, sweeps

FOLDER = Path(configs.__file__).parent
EXPERIMENTS = (  # the most telling first
    'qk_layernorm',
    'warmup',
    'width_and_depth',
    'logit_scale',
    'epsilon',
    'z_loss',
    'weight_decay_kind',
    'weight_decay',
    'muparam',
    'coordinate_check',
    'attention_scale',
    'pointwise_attention',
    'qk_norm_variants',
    'steps',
    'batch_size',
    'sequence_length',
    'parameter_scaling',
    'interventions',
    'optimizers',
    'schedules',
    'parameterizations',
)
_ENDS = {1: 'some runs failed', 2: 'refused'}  # exit codes of launch.sweep

FLAGS = flags.FlagValues()
app.define_overrides(FLAGS)
_SCALE = flags.DEFINE_string('scale', 'cpu', 'cpu, night, gpu or paper', flag_values=FLAGS)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'folder of the report and of each experiment', flag_values=FLAGS
)
_ONLY = flags.DEFINE_list('only', None, 'names of experiments; default: all', flag_values=FLAGS)
_SEEDS = start.define_seeds(FLAGS)
_WORKERS = start.define_workers(FLAGS)
_DRY_RUN = flags.DEFINE_boolean(
    'dry_run', False, 'print the experiments and what they cost; write nothing', flag_values=FLAGS
)


@dataclasses.dataclass
class Stage:
  """An experiment."""

  name: str
  question: str  # the first sentence of its config file
  figures: list[str]  # of the paper: 1 ... 13, C.1, E.1 ...
  sweep: app.Sweep | None = None
  problem: str | None = None  # why there is no sweep, or how it ended

  @property
  def config(self) -> str:
    return f'{os.path.relpath(FOLDER / self.name)}.py:{_SCALE.value}'


def main() -> int:
  """Runs the stages, or plans them."""
  stages = [_planned(name) for name in _names()]
  if all(stage.sweep is None for stage in stages):
    raise BadInput(stages[0].problem)
  if _DRY_RUN.value:
    return print_plan(stages)
  if not _WORKDIR.value:
    raise BadInput('--workdir: missing, must be a folder (only --dry_run needs none)')
  workdir = Path(_WORKDIR.value)
  if workdir.exists() and not workdir.is_dir():
    raise BadInput(f'--workdir={workdir}: is not a folder')
  try:
    for number, stage in enumerate(stages, start=1):
      print(f'[{number}/{len(stages)}] {stage.name}: {stage.question}', flush=True)
      if stage.sweep is not None:
        stage.problem = _run(stage, workdir)
      report = _write_report(workdir, stages)
  except KeyboardInterrupt:
    print('stopped; the same command goes on', file=sys.stderr)
    return 130
  failed = [stage for stage in stages if stage.problem]
  for stage in failed:
    print(f'{stage.name}: {stage.problem}', file=sys.stderr)
  print(f'{len(stages) - len(failed)} of {len(stages)} experiments done; report: {report}')
  return 1 if failed else 0


def _names() -> list[str]:
  for name in _ONLY.value or []:
    if name not in EXPERIMENTS:
      nearest = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.0)[0]
      raise BadInput(f'--only={name}: no such experiment; the nearest is {nearest}')
  return [name for name in EXPERIMENTS if name in (_ONLY.value or EXPERIMENTS)]


def _described(name: str) -> Stage:
  text = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text())) or ''
  figures = re.findall(r'\bFigure ((?:[A-Z]\.)?\d+)', text)
  return Stage(name, question=text.split('\n')[0], figures=list(dict.fromkeys(figures)))


def _planned(name: str) -> Stage:
  stage = _described(name)
  try:
    stage.sweep = app.load(stage.config, app.overrides(FLAGS), seeds=_SEEDS.value)
  except BadInput as error:
    stage.problem = str(error)
  return stage


def _run(stage: Stage, workdir: Path) -> str | None:
  """Trains a stage to its own report; what went wrong, if anything did."""
  others = [workdir / name for name in EXPERIMENTS if name != stage.name]
  command = [
      *(sys.executable, '-m', 'launch.common.stage', f'--config={stage.config}'),
      f'--workdir={workdir / stage.name}',
      *(f'--reuse={other}' for other in others if _is_sweep(other)),
      *(f'--{name}={FLAGS[name].value}' for name in ('seeds', 'workers') if FLAGS[name].present),
      *(f'--config.{field}={value}' for field, value in app.overrides(FLAGS).items()),
  ]
  # In a session of its own, so that a signal comes to it once: from here. When this process is
  # killed, its input closes.
  process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  try:
    code = process.wait()
  except (KeyboardInterrupt, preemption.Preempted) as error:
    told = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
    process.send_signal(told)
    process.wait()
    raise
  if code == 130:
    raise KeyboardInterrupt
  if code == preemption.EXIT_CODE:
    raise preemption.Preempted
  return _ENDS.get(code, f'ended with exit code {code}') if code else None


def _is_sweep(folder: Path) -> bool:
  """Whether there is one, and undamaged: no stage suffers from what befell another."""
  if not (folder / 'sweep.json').is_file():
    return False
  try:
    sweeps.read_sweep(folder)
  except BadInput as error:
    print(f'nothing is taken over from {folder.name}: {error}', file=sys.stderr)
    return False
  return True


def _write_report(workdir: Path, stages: list[Stage]) -> Path:
  """Over the stages of this call, and those that are there from others."""
  from stability.report import overview  # pandas and Matplotlib: a second to import

  of_call = {stage.name: stage for stage in stages}
  experiments = [
      overview.Experiment(stage.name, stage.question, stage.figures, stage.problem)
      for name in EXPERIMENTS
      if name in of_call or (workdir / name / 'sweep.json').exists()
      for stage in [of_call.get(name) or _described(name)]
  ]
  return overview.write_overview(workdir, experiments)


def print_plan(stages: list[Stage]) -> int:
  """The table of stages, and what they take together; 1 if some are refused.

  What is new in a stage is in none before it; tokens, FLOPs and executables are of that.
  """
  table = Table(title=f'all experiments at scale {_SCALE.value}')
  table.add_column('experiment', no_wrap=True)
  table.add_column('figures', overflow='fold')
  for column in ('runs', 'new', 'tokens', 'FLOPs', 'executables'):
    table.add_column(column, justify='right')
  plans, seen = [], set()
  for stage in stages:
    if stage.sweep is None:
      table.add_row(stage.name, 'refused, see below')
      continue
    configs = stage.sweep.runs.configs
    source = types.SimpleNamespace(**next(iter(configs.values()))['data'])  # shared by the runs
    new = {name: c for name, c in configs.items() if reuse.key(c) not in seen}
    seen |= {reuse.key(config) for config in new.values()}
    plan = cost_lib.plan(cost_lib.groups(new, tokens.vocabulary_size(source)))
    plans.append(plan)
    table.add_row(
        stage.name,
        ', '.join(stage.figures),
        f'{len(configs):,}',
        f'{plan.runs:,}',
        f'{plan.tokens:.2e}',
        f'{plan.flops:.2e}',
        f'{plan.executables:,}',
    )
  console = Console()
  console.print(table)
  console.print(
      f'{sum(plan.runs for plan in plans):,} runs to train,'
      f' {sum(plan.tokens for plan in plans):.2e} tokens,'
      f' {sum(plan.flops for plan in plans):.2e} FLOPs',
      highlight=False,
  )
  refused = [stage for stage in stages if stage.sweep is None]
  for stage in refused:
    print(f'{stage.name}: {stage.problem}', file=sys.stderr)
  return 1 if refused else 0


if __name__ == '__main__':
  preemption.install()
  app.run(main, FLAGS)
