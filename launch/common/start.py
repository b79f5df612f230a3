"""What launch.train and launch.sweep share: from a checked sweep to its report."""

import shutil
import sys
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from launch.common import app
from stability import extensions
from stability.config import Config
from stability.data import tokens
from stability.errors import BadInput
from stability.storage import files, leases, metrics, results_csv, reuse, schema, sweeps, versions

Train = Callable[[Path, Mapping[str, Config]], None]  # the runs of a workdir, to their results


def define_workers(flag_values: flags.FlagValues) -> flags.FlagHolder[int | None]:
  """Defines --workers."""
  return flags.DEFINE_integer(
      'workers',
      None,
      'worker processes; default: one a core, or one for all devices of an accelerator machine',
      lower_bound=1,
      flag_values=flag_values,
  )


def define_seeds(flag_values: flags.FlagValues) -> flags.FlagHolder[int | None]:
  """Defines --seeds."""
  return flags.DEFINE_integer(
      'seeds',
      None,
      'train every run with seeds 0 to N-1; default: the seed of the config, 0',
      lower_bound=1,
      flag_values=flag_values,
  )


def start(
    sweep: app.Sweep,
    workdir: Path,
    train: Train,
    *,
    waits: bool = True,
    others: Sequence[Path] = (),
) -> int:
  """Trains what is not yet trained of a sweep, writes its report, and returns the exit code.

  Args:
    sweep: to train.
    workdir: its folder, new or from before.
    train: is given the runs that are not over.
    waits: whether they are when it returns; else there is nothing to report.
    others: workdirs of sweeps that may have trained some of these runs already.
  """
  waiting = _prepare(sweep, workdir, others)
  if waiting:
    try:
      train(workdir, waiting)
    except KeyboardInterrupt:
      print('stopped; the same command goes on from the last checkpoints', file=sys.stderr)
      return 130
    if not waits:
      return 0
  with leases.acquire(workdir):  # by one launcher at a time
    for result in (workdir / 'runs').glob('*/result.json'):
      leases.remove_stale(result.parent)
    results_csv.write_results(workdir)
    return _report(workdir)


def _prepare(sweep: app.Sweep, workdir: Path, others: Sequence[Path]) -> dict[str, Config]:
  """Makes the folder of a sweep, whose runs may then be trained; those that are not over."""
  runs = sweep.runs
  sweeps.check_workdir(workdir, runs)
  with leases.acquire(workdir, _say_held):
    sweeps.check_workdir(workdir, runs)  # another launcher may have begun one here meanwhile
    data = _prepare_data(sweep, workdir)
    waiting = sweeps.runs_to_train(workdir, runs.configs | sweeps.fork_configs(workdir))
    written = sweeps.Sweep(
        runs.fields,
        runs.configs,
        config_file=sweep.config_file,
        scale=sweep.scale,
        overrides=sweep.overrides,
        data=data,
        versions=_versions(workdir, waiting),
        report=sweep.report,
        extensions=_prepare_extensions(sweep, workdir),
    )
    sweeps.write_sweep(workdir, written)
    first = next(iter(runs.configs.values()))
    metrics.write_experiment(workdir, sweeps.swept_values(first, runs.fields))
    taken = reuse.take_over(workdir, waiting, others)
  if taken:
    print(f'{len(taken)} runs are taken over from sweeps that have trained them', flush=True)
  return {name: config for name, config in waiting.items() if name not in taken}


def _prepare_extensions(sweep: app.Sweep, workdir: Path) -> files.Json:
  """Copies the sources of the sweep's extensions; a workdir that has some keeps those it has."""
  before = {}
  if (workdir / 'sweep.json').exists():
    before = sweeps.read_sweep(workdir).extensions
  now = sweep.extensions.to_json() if sweep.extensions else {}
  if before:
    if before['sha256'] != now.get('sha256'):
      print(
          f'warning: {sweep.config_file}: its extensions have changed since --workdir={workdir} was'
          f' begun, which goes on with its own copy, {workdir / before["folder"]}',
          file=sys.stderr,
      )
    extensions.check(workdir, before)
    return before
  if sweep.extensions:
    for name, content in sweep.extensions.files.items():
      files.write_atomic(workdir / sweep.extensions.folder / name, content)
  return now


def _say_held(by: leases.Json) -> None:
  who = f'process {by["pid"]} of {by["host"]}' if by else 'another launcher'
  print(f'{who} prepares this workdir; waiting for it', file=sys.stderr)


def _prepare_data(sweep: app.Sweep, workdir: Path) -> files.Json:
  """The sweep's token files, made now or found; on other text than before a sweep is refused."""
  configs = sweep.runs.configs.values()
  longest = max(config['data']['sequence_length'] for config in configs)
  source = types.SimpleNamespace(**next(iter(configs))['data'])  # shared by the runs of a sweep
  there_before = set((workdir / 'data').glob('*'))
  folder = tokens.prepare(source, workdir / 'data', longest)
  path = folder.relative_to(workdir) if folder.is_relative_to(workdir) else folder
  data = {'path': str(path), **tokens.open_tokens(folder).meta}
  if (workdir / 'sweep.json').exists():
    before = sweeps.read_sweep(workdir).data
    schema.check_data(workdir / 'sweep.json', before, ['sha256'])
    if before['sha256'] != data['sha256']:
      for made in set((workdir / 'data').glob('*')) - there_before:  # just now, and nobody's
        shutil.rmtree(made) if made.is_dir() else made.unlink()
      raise BadInput(
          f'--workdir={workdir}: its runs were trained on other text than config.data.path gives'
          ' now; name a new folder'
      )
  return data


def _versions(workdir: Path, waiting: Collection[str]) -> dict[str, str]:
  """Those of now, if they train anything; says where they differ from those that trained before."""
  now = versions.current()
  if not (workdir / 'sweep.json').exists():
    return now
  before = sweeps.read_sweep(workdir).versions
  if not waiting:
    return before
  warn_of_versions(workdir, before)
  return now


def warn_of_versions(workdir: Path, before: Mapping[str, str]) -> None:
  """Says, in one line, where the versions that trained a sweep differ from those of now."""
  if changes := versions.changes(before, versions.current()):
    print(
        f'warning: --workdir={workdir} was begun with other versions: {", ".join(changes)}; numbers'
        ' may differ from those of an undisturbed sweep; versions.jsonl of each run has its own',
        file=sys.stderr,
    )


def _report(workdir: Path) -> int:
  """Writes the report and prints its summary and errors; 1 if any run failed or is missing."""
  from stability.report import page, terminal  # importing pandas and Matplotlib takes a second

  console = Console()
  terminal.print_summary(console, workdir, page.write_report(workdir))
  rows = [*results_csv.read_results(workdir), *results_csv.read_fork_results(workdir)]
  failed = [row for row in rows if row['status'] == 'failed']
  shown = set()
  for row in failed:
    reason = row['error'].strip().splitlines()[-1]
    if reason not in shown:  # one mistake often fails many runs
      shown.add(reason)
      console.print(row['error'].strip(), markup=False, highlight=False, soft_wrap=True)
    console.print(f'failed: {row["run"]}: {reason}', markup=False, highlight=False, soft_wrap=True)
  missing = sum(row['status'] == 'missing' for row in rows)
  if missing:
    console.print(f'{missing} runs have not finished; the same command resumes', highlight=False)
  return 1 if failed or missing else 0
