"""The steps of launch.train and launch.sweep, from a checked sweep to its report."""

import functools
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from launch.common import app, display, environment, extension_copy, extension_trace
from stability.config import Config
from stability.control import limits
from stability.data import prepare as prepare_lib
from stability.data import tokens
from stability.devices import shapes
from stability.errors import BadInput
from stability.storage import (
  files,
  leases,
  metrics,
  parents,
  results_csv,
  resume,
  reuse,
  run_files,
  schema,
  sweeps,
  versions,
)

_CONTINUES = '--workdir={workdir}: continues with {options}, as versions.jsonl of each run records'
_ROUNDS = (
    'warning: --workdir={workdir}: continues with {options}; numbers may differ in rounding from'
    ' those of an uninterrupted sweep; versions.jsonl of each run has its options'
)

Train = Callable[[Path, Mapping[str, Config]], None]  # trains runs of a workdir


def define_workers(flag_values: flags.FlagValues) -> flags.FlagHolder[int | None]:
  """Defines --workers."""
  return flags.DEFINE_integer(
      'workers',
      None,
      'number of worker processes; default: one per core, or one on an accelerator machine, whose'
      ' NVIDIA GPUs several workers divide',
      lower_bound=1,
      flag_values=flag_values,
  )


def define_seeds(flag_values: flags.FlagValues) -> flags.FlagHolder[int | None]:
  """Defines --seeds."""
  return flags.DEFINE_integer(
      'seeds',
      None,
      'train every run with seeds 0 to N-1; default: the seeds of the config',
      lower_bound=1,
      flag_values=flag_values,
  )


def define_arms(flag_values: flags.FlagValues) -> flags.FlagHolder[list[str] | None]:
  """Defines --arms."""
  return flags.DEFINE_list(
      'arms',
      None,
      'arms of the sweep to train beside the baseline, its first arm; default: all. Others that the'
      ' workdir holds are kept as they are. A name with a comma is written in double quotes, within'
      ' those of the shell',
      flag_values=flag_values,
  )


def define_attached(flag_values: flags.FlagValues) -> flags.FlagHolder[bool]:
  """Defines --attached; see preemption.end_with_stdin."""
  return flags.DEFINE_boolean(
      'attached',
      False,
      'save the runs and end when standard input closes, and so with the process at its other end',
      flag_values=flag_values,
  )


def start(
    sweep: app.SweepRequest,
    workdir: Path,
    train: Train,
    *,
    is_blocking: bool = True,
    reused: Sequence[Path] = (),
    device: Mapping[str, str] | None = None,
    not_retried: Collection[str] = (),
) -> int:
  """Trains the unfinished runs of a sweep, writes its report and returns the exit code.

  Args:
    sweep: the sweep to train.
    workdir: folder of the sweep; created if necessary.
    train: trains the given runs of the workdir.
    is_blocking: whether the runs are finished when `train` returns; otherwise no report is written.
    reused: workdirs of other sweeps whose results are reused for identical runs.
    device: on which reused runs must have been trained, as settings.device describes it.
    not_retried: failed runs to leave as they are.
  """
  unfinished = prepare(sweep, workdir, reused, device, not_retried)
  if unfinished:
    try:
      train(workdir, unfinished)
    except KeyboardInterrupt:
      print('interrupted; the same command resumes from the last checkpoints', file=sys.stderr)
      return 130
    if not is_blocking:
      return 0
  return finish(workdir, sweep.arms)


def finish(workdir: Path, arms: Collection[str] | None = None) -> int:
  """Writes the results and the report of a sweep after training; returns the exit code.

  `arms` are those that were to be trained; None: all.
  """
  with leases.acquire(workdir):  # one launcher at a time
    for result in (workdir / 'runs').glob('*/result.json'):
      leases.remove_stale(result.parent)
    results_csv.write_results(workdir)
    return _report(workdir, arms)


def prepare(
    sweep: app.SweepRequest,
    workdir: Path,
    reused: Sequence[Path] = (),
    device: Mapping[str, str] | None = None,
    not_retried: Collection[str] = (),
) -> dict[str, Config]:
  """Writes the files that training needs; returns the configs of the unfinished runs, by name.

  Args:
    sweep: the sweep to train.
    workdir: its folder.
    reused: workdirs of other sweeps.
    device: that runs to reuse must have been trained on, as settings.device describes it.
    not_retried: failed runs to leave as they are.
  """
  environment.check()
  runs, previous = sweeps.check_workdir(workdir, sweep.runs), sweeps.find_sweep(workdir)
  prepare_lib.check_workdir(prepare_lib.data_config(next(iter(runs.configs.values()))), workdir)
  if previous is None:
    _check_tokenizer(sweep)
  records = _check_parents(workdir, runs.configs, previous.runs if previous else {})
  limits_of = _check_limits(workdir, runs.configs)
  probes: list[str] = []  # of extensions
  if sweep.extensions is not None and previous is None:
    probes = extension_trace.check(sweep.config_file, runs.configs)
  with leases.acquire(workdir, _print_waiting):
    # Again: another launcher may have written a sweep.
    runs, previous = sweeps.check_workdir(workdir, sweep.runs), sweeps.find_sweep(workdir)
    if previous is not None:
      extension_copy.check(sweep, workdir, previous.extensions)
    sweeps.remove_temporaries(workdir, runs.configs)
    tokens.remove_temporaries(workdir / 'data')
    data = _prepare_data(sweep, workdir, previous)
    new = runs.configs.keys() - (previous.runs if previous else {})
    _write_parents(workdir, records, {name: runs.configs[name] for name in new}, data)
    known = sweep.selected(runs.configs | sweeps.fork_configs(workdir))
    tried = {name: config for name, config in known.items() if name not in not_retried}
    unfinished = sweeps.runs_to_train(workdir, tried)
    configs = _continued_configs(workdir, previous, runs.configs, unfinished)
    written = sweeps.Sweep(
        runs.fields,
        configs,
        config_file=sweep.config_file,
        scale=sweep.scale,
        overrides=sweep.overrides,
        data=data,
        versions=_versions(workdir, previous, unfinished),
        report=sweep.report,
        extensions=extension_copy.prepare(
            sweep, workdir, previous.extensions if previous else {}, probes
        ),
        parameters=count_parameters(configs, previous.parameters if previous else {}),
    )
    sweeps.write_sweep(workdir, written)
    for name, found in limits_of.items():
      limits.write(run_files.run_dir(workdir, name) / run_files.LIMITS, found)
    swept = [sweeps.swept_values(config, runs.fields) for config in configs.values()]
    metrics.write_experiment(workdir, swept)
    reused_runs = reuse.reuse_runs(workdir, unfinished, reused, device)
  if reused_runs:
    print(f'{len(reused_runs)} runs are reused from other sweeps', flush=True)
  elif reused and unfinished:
    why = reuse.why_none(workdir, unfinished, reused, device)
    print(f'no run is reused: {why}', flush=True)
  return {name: config for name, config in unfinished.items() if name not in reused_runs}


def _check_tokenizer(sweep: app.SweepRequest) -> None:
  """Raises BadInput for a tokenizer on the command line that a token folder does not have.

  The command with which a sweep was begun continues it. A config file may hold a tokenizer for
  other text: prepare.prepare says that it is not used.
  """
  source = prepare_lib.data_config(next(iter(sweep.runs.configs.values())))
  for option, (value, found) in prepare_lib.ignored_options(source).items():
    if option in sweep.overrides:
      raise BadInput(
          f'--config.{option}={value}: must be left out, since config.data.path={source.path!r} is'
          f' a token folder, with {option.removeprefix("data.")}={found}'
      )


def _check_parents(
    workdir: Path, configs: Mapping[str, Config], begun: Collection[str]
) -> dict[str, files.Json]:
  """The records of what runs start from, by run; only of runs without a result that have a parent.

  `begun` are the runs in sweep.json. Raises BadInput if any of it is missing or does not fit.
  """
  random = [c for c in configs.values() if not c['init']['checkpoint']]
  for kind in sorted({c['adapter']['kind'] for c in random} - {'none'}):
    what = f'config.adapter.kind={kind} without config.init.checkpoint'
    print(f'warning: {what}: the frozen weights are random', file=sys.stderr)
  names = [name for name, config in configs.items() if parents.given(config)]
  if not names:
    return {}
  from stability.trainer import parents as parents_lib  # imports jax

  shapes.trace_on_cpu()
  source = prepare_lib.data_config(configs[names[0]])
  tokenizer, records = prepare_lib.tokenizer(source), {}
  checker = parents_lib.Checker(tokenizer)
  for name in names:
    run = run_files.run_dir(workdir, name)
    if run_files.read_result(run) is None:
      # A start that was interrupted before it wrote sweep.json has left a record that binds nobody.
      records[name] = checker.record(configs[name], parents.read(run) if name in begun else {})
  for warning in checker.warnings:
    print(f'warning: {warning}', file=sys.stderr)
  return records


def _write_parents(
    workdir: Path,
    records: Mapping[str, files.Json],
    new: Mapping[str, Config],
    data: files.Json,
) -> None:
  """Writes the records of _check_parents; BadInput if the text has learned another vocabulary.

  Of `new` runs without a parent, a record that an interrupted start has left is deleted.
  """
  for name, config in new.items():
    if not parents.given(config):
      (run_files.run_dir(workdir, name) / parents.FILE).unlink(missing_ok=True)
  if not records:
    return
  from stability.trainer import parents as parents_lib  # imports jax

  for name, record in records.items():
    parents_lib.check_tokenizer(record, data)
    parents.write(run_files.run_dir(workdir, name), record)


def _check_limits(workdir: Path, configs: Mapping[str, Config]) -> dict[str, limits.Limits]:
  """The alarm limits of the runs that are to be trained, by run.

  Raises BadInput if a file cannot be read, is damaged, or has other limits than the run began with.
  """
  read, found = functools.cache(limits.read), {}
  for name, config in configs.items():
    path, run = config['control']['limits'], run_files.run_dir(workdir, name)
    result = run_files.read_result(run)
    if path is None or (result is not None and result.status != 'failed'):
      continue
    kept = run / run_files.LIMITS
    try:
      found[name] = limits.read(kept) if kept.exists() and not Path(path).exists() else read(path)
    except BadInput as error:
      raise BadInput(f'config.control.limits: {error}') from error
    if kept.exists() and limits.read(kept) != found[name]:
      raise BadInput(f'config.control.limits={path}: has other limits than {name} was begun with')
  return found


def _continued_configs(
    workdir: Path,
    previous: sweeps.Sweep | None,
    requested: Mapping[str, Config],
    unfinished: Collection[str],
) -> dict[str, Config]:
  """The configs for sweep.json: finished runs keep theirs. Reports options that have changed."""
  stored = previous.runs if previous else {}
  changed = {}
  for name in stored.keys() & unfinished:
    changed |= resume.changes(stored[name], requested[name])
  for fields, note in ((resume.FREE, _CONTINUES), (resume.ROUNDING, _ROUNDS)):
    if shown := [f'config.{f} {a} -> {b}' for f, (a, b) in changed.items() if f in fields]:
      print(note.format(workdir=workdir, options=', '.join(shown)), file=sys.stderr)
  return {
      name: config if name in unfinished else stored.get(name, config)
      for name, config in requested.items()
  }


def count_parameters(
    configs: Mapping[str, Config], counted: Mapping[str, int]
) -> dict[str, int]:
  """The number of parameters of each run, by name; those of sweep.json, `counted`, are kept."""
  new = {name: config for name, config in configs.items() if name not in counted}
  if new:
    shapes.trace_on_cpu()
  return {**counted, **{name: shapes.parameters(config) for name, config in new.items()}}


def _print_waiting(holder: leases.Json) -> None:
  who = f'process {holder["pid"]} on {holder["host"]}' if holder else 'another launcher'
  print(f'waiting for {who}, which prepares this workdir', file=sys.stderr)


def _prepare_data(
    sweep: app.SweepRequest, workdir: Path, previous: sweeps.Sweep | None
) -> files.Json:
  """Prepares the sweep's token files; returns their path and meta.json.

  Raises BadInput if the workdir's runs, those of `previous`, were trained on other text.
  """
  configs = sweep.runs.configs.values()
  longest = max(config['data']['sequence_length'] for config in configs)
  source = prepare_lib.data_config(next(iter(configs)))
  existing = set((workdir / 'data').glob('*'))
  told: list[str] = []
  if (folder := _embedded_text(source, workdir, previous)) is not None:
    prepare_lib.verified(folder, longest, workdir / 'data')
  else:
    folder = prepare_lib.prepare(source, workdir / 'data', longest, told.append)
  path = folder.relative_to(workdir) if folder.is_relative_to(workdir) else folder
  data = {'path': str(path), **tokens.open_tokens(folder).meta}
  if previous is not None:
    schema.check_data(workdir / 'sweep.json', previous.data, ['sha256'])
    if previous.data['sha256'] != data['sha256']:
      for new in set((workdir / 'data').glob('*')) - existing:
        shutil.rmtree(new) if new.is_dir() else new.unlink()
      raise BadInput(
          f'--workdir={workdir}: its runs were trained on other text than that of'
          ' config.data.path; choose a new folder'
      )
  for line in told:
    print(line, flush=True)
  return data


def _embedded_text(
    source: prepare_lib.DataConfig, workdir: Path, previous: sweeps.Sweep | None
) -> Path | None:
  """The token folder of a sweep that was begun on the embedded text and continues with it.

  It is not read again: a newer Python has another standard library.
  """
  if previous is None or source.path is not None:
    return None
  folder = workdir / previous.data.get('path', '')
  began = {config['data']['path'] for config in previous.runs.values()}
  return folder if began == {None} and (folder / 'meta.json').is_file() else None


def _versions(
    workdir: Path, previous: sweeps.Sweep | None, unfinished: Collection[str]
) -> dict[str, str]:
  """The versions to record: the current ones if runs are left to train, else the previous ones."""
  if previous is not None:
    if not unfinished:
      return previous.versions
    warn_of_versions(workdir, previous.versions)
  return versions.current()


def warn_of_versions(workdir: Path, previous: Mapping[str, str]) -> None:
  """Prints a warning if the current versions differ from those that trained a sweep before."""
  if changes := versions.changes(previous, versions.current()):
    print(
        f'warning: --workdir={workdir} was begun with other versions or settings:'
        f' {", ".join(changes)}; numbers may differ from those of an uninterrupted sweep;'
        ' versions.jsonl of each run has its own',
        file=sys.stderr,
    )


def _report(workdir: Path, arms: Collection[str] | None) -> int:
  """Writes the report and prints its summary and errors; 1 if any run failed or is missing.

  A run that is missing counts only if it is of `arms`; None: all arms.
  """
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
      display.line(console, row['error'].strip())
    display.line(console, f'failed: {row["run"]}: {reason}')
  all_missing = [row for row in rows if row['status'] == 'missing']
  missing = sum(arms is None or row['arm'] in arms for row in all_missing)
  if missing:
    console.print(f'{missing} runs have not finished; the same command resumes', highlight=False)
  if others := len(all_missing) - missing:
    console.print(f'{others} runs of arms not in --arms have not finished', highlight=False)
  return 1 if failed or missing else 0
