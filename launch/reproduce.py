"""Runs the experiments of the paper, and further ones, and writes one report on all of them.

  python -m launch.reproduce --scale=cpu --workdir=DIR [--only=warmup,z_loss] [--seeds=N]
      [--config.x.y=VALUE]

Each experiment is a launch.sweep of its config file with workdir DIR/NAME, in a process of its own
that ends with this one. An experiment that fails does not stop the others, and each can also be run
or continued alone. Runs that several experiments share are trained only once. The same command
continues after an interruption. The report covers all experiments in DIR, including those of other
calls and of launch.sweep. --dry_run prints the cost of each.

At scale cpu, all together take 1.2 to 2 hours on two cores (estimate); each config file states its
share.
"""

# First, since launch.common may have to mend sys.path, and the other imports take a second.
from launch.common import preemption

if __name__ == '__main__':
  preemption.install()

import ast
import dataclasses
import difflib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table

from launch.common import app, path_flags, programs, start
from launch.workers import shares
from stability.data import prepare
from stability.devices import cost as cost_lib
from stability.errors import BadInput
from stability.storage import reuse, sweeps

FOLDER = Path(__file__).parents[1] / 'configs'
EXPERIMENTS = (  # the most informative first
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
_EXIT_CODES = {1: 'some runs failed', 2: 'refused'}  # of launch.sweep

FLAGS = flags.FlagValues()
app.define_overrides(FLAGS)
_SCALE = flags.DEFINE_string('scale', 'cpu', 'cpu, night, gpu or paper', flag_values=FLAGS)
_WORKDIR = path_flags.define(
    'workdir', None, 'folder for the report and the workdirs of the experiments', FLAGS
)
_ONLY = flags.DEFINE_list('only', None, 'names of experiments; default: all', flag_values=FLAGS)
_SEEDS = start.define_seeds(FLAGS)
_WORKERS = start.define_workers(FLAGS)
_DRY_RUN = flags.DEFINE_boolean(
    'dry_run', False, 'print the experiments and their cost; write nothing', flag_values=FLAGS
)


@dataclasses.dataclass
class Experiment:
  """An experiment of this call."""

  name: str
  question: str  # the first line of its config file
  figures: list[str]  # figures of the paper: 1 ... 13, C.1, E.1 ...
  sweep: app.SweepRequest | None = None
  problem: str | None = None  # why there is no sweep, or what went wrong in it

  @property
  def config(self) -> str:
    """The value of --config."""
    return f'{os.path.relpath(FOLDER / self.name)}.py:{_SCALE.value}'


def main() -> int:
  """Runs or plans the experiments."""
  experiments = [_load(name) for name in _names()]
  if all(experiment.sweep is None for experiment in experiments):
    raise BadInput(experiments[0].problem)
  if _WORKDIR.value:
    sweeps.check_writable(Path(_WORKDIR.value))
  if _DRY_RUN.value:
    return print_plan(experiments)
  if not _WORKDIR.value:
    raise BadInput('--workdir: missing, must be a folder (only --dry_run needs none)')
  workdir = Path(_WORKDIR.value)
  shares.check(_WORKERS.value)
  try:
    for number, experiment in enumerate(experiments, start=1):
      progress = f'[{number}/{len(experiments)}]'
      print(f'{progress} {experiment.name}: {experiment.question}', flush=True)
      if experiment.sweep is not None:
        experiment.problem = _run(experiment, workdir)
      report = _write_report(workdir, experiments)
  except KeyboardInterrupt:
    print('interrupted; the same command resumes the runs', file=sys.stderr)
    return 130
  failed = [experiment for experiment in experiments if experiment.problem]
  for experiment in failed:
    print(f'{experiment.name}: {experiment.problem}', file=sys.stderr)
  done = len(experiments) - len(failed)
  print(f'{done} of {len(experiments)} experiments done; report: {report}')
  return 1 if failed else 0


def _names() -> list[str]:
  """The names of the selected experiments, in the order of EXPERIMENTS."""
  for name in _ONLY.value or []:
    if name not in EXPERIMENTS:
      nearest = difflib.get_close_matches(name, EXPERIMENTS, n=1, cutoff=0.0)[0]
      raise BadInput(f'--only={name}: no such experiment; the nearest is {nearest}')
  return [name for name in EXPERIMENTS if name in (_ONLY.value or EXPERIMENTS)]


def _describe(name: str) -> Experiment:
  """The experiment that the docstring of a config file describes, without its sweep."""
  text = ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text())) or ''
  figures = re.findall(r'\bFigure ((?:[A-Z]\.)?\d+)', text)
  return Experiment(name, question=text.split('\n')[0], figures=list(dict.fromkeys(figures)))


def _load(name: str) -> Experiment:
  """The experiment with its sweep, or with the reason why there is none."""
  experiment = _describe(name)
  try:
    experiment.sweep = app.load(experiment.config, app.overrides(FLAGS), seeds=_SEEDS.value)
  except BadInput as error:
    experiment.problem = str(error)
  return experiment


def _run(experiment: Experiment, workdir: Path) -> str | None:
  """Runs an experiment; returns what went wrong, if anything did."""
  others = [workdir / name for name in EXPERIMENTS if name != experiment.name]
  command = [
      *programs.command('launch.sweep'),
      '--attached',
      f'--config={experiment.config}',
      f'--workdir={workdir / experiment.name}',
      *(f'--reuse={other}' for other in others if _is_readable_sweep(other)),
      *(f'--{name}={FLAGS[name].value}' for name in ('seeds', 'workers') if FLAGS[name].present),
      *(f'--config.{field}={value}' for field, value in app.overrides(FLAGS).items()),
  ]
  # The child has its own session, so that a signal reaches it only once, from here. If this process
  # is killed, the child's standard input closes and, with --attached, the child ends.
  process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  try:
    code = process.wait()
  except (KeyboardInterrupt, preemption.Preempted) as error:
    is_interrupt = isinstance(error, KeyboardInterrupt)
    process.send_signal(signal.SIGINT if is_interrupt else signal.SIGTERM)
    process.wait()
    raise
  if code == 130:
    raise KeyboardInterrupt
  if code == preemption.EXIT_CODE:
    raise preemption.Preempted
  return _EXIT_CODES.get(code, f'ended with exit code {code}') if code else None


def _is_readable_sweep(folder: Path) -> bool:
  """Whether a folder holds a sweep; prints a message if it is damaged."""
  if not (folder / 'sweep.json').is_file():
    return False
  try:
    sweeps.read_sweep(folder)
  except BadInput as error:
    print(f'no runs are reused from {folder.name}: {error}', file=sys.stderr)
    return False
  return True


def _write_report(workdir: Path, experiments: list[Experiment]) -> Path:
  """Writes the report on the experiments of this call and of earlier calls."""
  from stability.report import overview  # takes a second to import pandas and Matplotlib

  current = {experiment.name: experiment for experiment in experiments}
  reported = [
      current.get(name) or _describe(name)
      for name in EXPERIMENTS
      if name in current or (workdir / name / 'sweep.json').exists()
  ]
  return overview.write_overview(
      workdir,
      [overview.Experiment(e.name, e.question, e.figures, e.problem) for e in reported],
  )


def print_plan(experiments: list[Experiment]) -> int:
  """Prints the cost of each experiment and of all together; 1 if any is refused.

  The column `new` counts the runs that no experiment above has; tokens, FLOPs and executables are
  those of the new runs.
  """
  table = Table(title=f'all experiments at scale {_SCALE.value}')
  table.add_column('experiment', no_wrap=True)
  table.add_column('figures', overflow='fold')
  for column in ('runs', 'new', 'tokens', 'FLOPs', 'executables'):
    table.add_column(column, justify='right')
  plans, seen = [], set()
  for experiment in experiments:
    if experiment.sweep is None:
      table.add_row(experiment.name, 'refused, see below')
      continue
    configs = experiment.sweep.runs.configs
    data = prepare.data_config(next(iter(configs.values())))
    keys = {name: (reuse.key(c), c['data']['path']) for name, c in configs.items()}
    new = {name: configs[name] for name, key in keys.items() if key not in seen}
    seen |= set(keys.values())
    # Estimated FLOPs: tracing some hundred architectures would take minutes.
    groups = cost_lib.groups(new, prepare.vocabulary_size(data), cost_lib.estimated_step_flops)
    plan = cost_lib.plan(groups)
    plans.append(plan)
    table.add_row(
        experiment.name,
        ', '.join(experiment.figures),
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
  refused = [experiment for experiment in experiments if experiment.sweep is None]
  for experiment in refused:
    print(f'{experiment.name}: {experiment.problem}', file=sys.stderr)
  return 1 if refused else 0


if __name__ == '__main__':
  app.run(main, FLAGS)
