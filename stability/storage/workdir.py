"""The files of a sweep and its runs; README, "What is on disk", promises them to other readers.

  DIR/sweep.json             what the sweep is: every run's resolved config, its data, versions
  DIR/runs/NAME/config.json  the resolved config of one run
  DIR/runs/NAME/metrics.jsonl  one object per logged step, appended
  DIR/runs/NAME/result.json  written last
  DIR/runs/NAME/alarms.jsonl, actions.jsonl, requests/  stability/control/actions.py
  DIR/forks/NAME.json        of which run, and where, the run NAME is a fork
  DIR/results.csv            a row per run, forks last
"""

import contextlib
import csv
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput, writing
from stability.hyper import Runs
from stability.storage import leases, schema

Json = dict[str, Any]

STATUSES = ('done', 'diverged', 'failed', 'stopped')
LEASE_SECONDS = 2  # that the launcher of a run may take to let go of it when it has failed
_FORK = {'run': str, 'step': int, 'changes': dict}
_sound = set()  # files found to be so: a report reads one ten times, of thousands of runs
RESULT_KEYS = ('initial_loss', 'final_loss', 'steps', 'tokens', 'seconds', 'error')


def write_whole(path: Path, content: str | bytes) -> None:
  """Writes a file so that readers see the old content or the new, never a part."""
  # What somebody wrote may hold halves of characters, which UTF-8 has no bytes for.
  data = content.encode(errors='backslashreplace') if isinstance(content, str) else content
  with writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
      with os.fdopen(handle, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
      os.chmod(temporary, 0o644)
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):  # what is wrong has been said
        os.unlink(temporary)
      raise


def write_json(path: Path, value: Any) -> None:
  """JSON, whole; a non-finite number becomes null, so that any reader can parse it."""
  write_whole(path, json.dumps(finite(value), indent=2, allow_nan=False) + '\n')


def finite(value: Any, levels: int = 100) -> Any:
  """The value with null in the place of each number that is not finite.

  ValueError where it is nested deeper than that, which some Pythons could not write.
  """
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if not isinstance(value, Mapping | list | tuple):
    return value
  if not levels:
    raise ValueError('nested too deeply')
  if isinstance(value, Mapping):
    return {key: finite(item, levels - 1) for key, item in value.items()}
  return [finite(item, levels - 1) for item in value]


def run_dir(workdir: Path, name: str) -> Path:
  """The folder of one run; BadInput for a name that would lead elsewhere."""
  if name != os.path.basename(name) or name in ('', '.', '..') or '\0' in name:
    raise BadInput(f'{workdir}: holds a run named {name!r}: must be the name of a folder in runs/')
  return workdir / 'runs' / name


def refuse_links(folder: Path) -> None:
  """Raises BadInput for a link in a folder that is written to: what is behind it lies elsewhere."""
  if folder.is_dir():
    for entry in os.scandir(folder):
      if entry.is_symlink():
        raise BadInput(f'{entry.path}: must not be a link; a workdir holds all that is written')


# The sweep.


def check_new(workdir: Path, runs: Runs) -> None:
  """Refuses a workdir that cannot be written or that holds another sweep, before any work.

  A workdir may gain runs; changed or removed ones are refused.
  """
  _check_writable(workdir)
  refuse_links(workdir)
  if not (workdir / 'sweep.json').exists():
    there = list(workdir.iterdir()) if workdir.is_dir() else []
    # With a lease in it, it is one whose launcher prepares it, or was killed doing so. One that was
    # told to end then, or had no room, has let go of its lease.
    if not any(map(leases.is_lease, there)) and not _is_prepared(workdir, there):
      raise BadInput(f'--workdir={workdir}: is not empty and holds no sweep; name a new folder')
    return
  there = read_sweep(workdir)['runs']
  for name, config in there.items():
    if name not in runs.configs:
      raise BadInput(f'--workdir={workdir}: holds another sweep: its run {name} is not in this one')
    ours, theirs = (config_lib.flatten(c) for c in (runs.configs[name], config))
    for field in sorted(ours.keys() | theirs.keys()):
      if ours.get(field) != theirs.get(field):
        raise BadInput(
            f'--workdir={workdir}: holds another sweep: its run {name} has'
            f' config.{field}={theirs.get(field)!r}, this one {ours.get(field)!r}'
        )


def _is_prepared(workdir: Path, there: Iterable[Path]) -> bool:
  """Whether nothing is there but what is written before sweep.json: text and configs."""
  names = {path.name for path in there} | {path.name for path in workdir.glob('runs/*/*')}
  return names <= {'data', 'runs', 'config.json'}


def _check_writable(workdir: Path) -> None:
  existing = workdir
  while not existing.exists() and not existing.is_symlink():
    existing = existing.parent
  if not existing.is_dir():
    raise BadInput(f'--workdir={workdir}: {existing} is not a folder')
  try:
    with tempfile.TemporaryFile(dir=existing):
      pass
  except OSError as error:
    raise BadInput(f'--workdir={workdir}: cannot be written: {error.strerror}') from error


def write_sweep(
    workdir: Path,
    runs: Runs,
    *,
    config_file: str,
    scale: str,
    overrides: Mapping[str, Any],
    data: Json,
    versions: Json,
    report: Json | None = None,
) -> None:
  """Writes sweep.json and each run's config.json.

  Args:
    workdir: the sweep's folder.
    runs: of the sweep.
    config_file: they come from, with its scale and overrides.
    scale: see config_file.
    overrides: see config_file.
    data: the token files' path and meta.
    versions: of what trains the runs.
    report: what the config file's get_report returned, if it has one: see analysis/windows.py.
  """
  begun = (workdir / 'sweep.json').exists()  # else what is there is of a start that came to nothing
  for name, config in runs.configs.items():
    if not begun or not (run_dir(workdir, name) / 'config.json').exists():
      write_json(run_dir(workdir, name) / 'config.json', config)
  write_json(
      workdir / 'sweep.json',
      {
          'config_file': config_file,
          'scale': scale,
          'overrides': dict(overrides),
          'fields': list(runs.fields),
          'data': data,
          'versions': versions,
          'report': report or {},
          'runs': runs.configs,
      },
  )


def read_sweep(workdir: Path) -> Json:
  """sweep.json, each run's config completed; BadInput where it is damaged."""
  path = workdir / 'sweep.json'
  if not os.path.isfile(path):
    raise BadInput(f'--workdir={workdir}: holds no sweep (no sweep.json)')
  sweep, about = _read_json(path), path.stat()
  version = str(path.absolute()), about.st_ino, about.st_mtime_ns, about.st_size
  if version not in _sound:
    schema.check_sweep(path, sweep)
    _sound.add(version)
  sweep['runs'] = {name: config_lib.complete(config) for name, config in sweep['runs'].items()}
  return sweep


def _read_json(path: Path) -> Json:
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise BadInput(f'{path}: cannot be read: {error}') from error
  if not isinstance(found, dict):
    raise BadInput(f'{path}: cannot be read: holds no JSON object')
  return found


def read_forks(workdir: Path) -> dict[str, Json]:
  """The runs that were forked from others while they trained: name -> run, step and changes.

  Each is a file of its own, DIR/forks/NAME.json, so that no two processes write one; the sweep
  does not list them, and they have a folder as all runs do.
  """
  found = {}
  for path in sorted((workdir / 'forks').glob('*.json')):
    found[path.name.removesuffix('.json')] = fork = _read_json(path)
    for key, kind in _FORK.items():
      if not isinstance(fork.get(key), kind):
        raise BadInput(f'{path}: damaged: {key} is missing or of a wrong type')
  return found


def fork_configs(workdir: Path) -> dict[str, Config]:
  """The resolved configs of the forks: those of the runs that they come from."""
  return {name: read_config(run_dir(workdir, name)) for name in read_forks(workdir)}


# One run.


def read_config(run: Path) -> Config:
  """The config of a run, completed with the fields it lacks; BadInput where it is damaged."""
  config = _read_json(run / 'config.json')
  schema.check_config(f'{run / "config.json"}', config)
  return config_lib.complete(config)


def status(initial_loss: float, final_loss: float) -> str:
  """'diverged' if the final loss is not finite or above the initial one, else 'done'."""
  fine = math.isfinite(final_loss) and final_loss <= initial_loss
  return 'done' if fine else 'diverged'


def write_result(run: Path, result: Json) -> None:
  """result.json; the run is over once it is there."""
  assert result['status'] in STATUSES, result
  write_json(run / 'result.json', result)


def write_failure(run: Path, error: str) -> None:
  """The result of a run that could not be trained; a sweep started again tries it again."""
  write_result(run, dict.fromkeys(RESULT_KEYS) | {'status': 'failed', 'error': error})


def read_result(run: Path) -> Json | None:
  """result.json, or None while the run is not over."""
  path = run / 'result.json'
  if not path.exists():
    return None
  result = _read_json(path)
  if result.get('status') not in list(STATUSES):
    raise BadInput(f'{path}: damaged: status must be one of {", ".join(STATUSES)}')
  for key in RESULT_KEYS:
    kinds = str if key == 'error' else int | float
    if not isinstance(result.get(key), kinds | None) or isinstance(result.get(key), bool):
      raise BadInput(f'{path}: damaged: {key} must be {"text" if key == "error" else "a number"}')
  return result


def waiting(workdir: Path, configs: Mapping[str, Config]) -> dict[str, Config]:
  """The runs still to be trained. Those that failed are: their cause may be mended."""
  refuse_links(workdir / 'runs')
  found = {}
  for name, config in configs.items():
    run = run_dir(workdir, name)
    refuse_links(run)
    result = read_result(run)
    if result is not None and result['status'] == 'failed':
      result = _forget_failure(run)
    if result is None:
      found[name] = config
  return found


def _forget_failure(run: Path) -> Json | None:
  """Deletes the result of a failed run, if it is still that; what is there then.

  By the run's lease, so that what another launcher has trained meanwhile is not deleted. One that
  has just seen it fail still holds it for a moment.
  """
  deadline = time.monotonic() + LEASE_SECONDS
  while (own := leases.take(run)) is None and time.monotonic() < deadline:
    time.sleep(leases.POLL_SECONDS)
  result = read_result(run)
  if own is not None:
    if result is not None and result['status'] == 'failed':
      (run / 'result.json').unlink()
      result = None
    own.release()
  return result


def read_lines(path: Path) -> list[Json]:
  """The objects of a file of lines, none if it is not there; a torn last line is ignored."""
  if not path.exists():
    return []
  return [_parsed(path, n, line) for n, line in enumerate(_whole_lines(path.read_bytes()), 1)]


def _parsed(path: Path, number: int, line: bytes) -> Json:
  try:
    found = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise BadInput(f'{path}, line {number}: damaged: {error}') from error
  if not isinstance(found, dict):
    raise BadInput(f'{path}, line {number}: damaged: holds no JSON object')
  return found


def write_lines(path: Path, lines: Iterable[Json]) -> None:
  """A file of lines, whole."""
  write_whole(path, ''.join(json.dumps(finite(line), allow_nan=False) + '\n' for line in lines))


def read_metrics(run: Path) -> list[Json]:
  """The lines of metrics.jsonl."""
  return read_lines(run / 'metrics.jsonl')


def last_metrics(run: Path) -> Json | None:
  """The last whole line of metrics.jsonl, read from its end: cheap while the run goes on."""
  path = run / 'metrics.jsonl'
  if not path.exists():
    return None
  with path.open('rb') as file:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2**17))
    lines = _whole_lines(file.read())
  return _parsed(path, len(lines), lines[-1]) if lines else None


def cut_metrics(run: Path, step: int) -> None:
  """Drops the lines after `step`: what a resume from there will write again."""
  cut_lines(run / 'metrics.jsonl', lambda line: line['step'] <= step)


def cut_lines(path: Path, keep: Callable[[Json], bool]) -> list[Json]:
  """Keeps the lines for which `keep` holds, and no torn one; returns those that were dropped."""
  if not path.exists():
    return []
  lines = _whole_lines(path.read_bytes())
  kept, dropped = [], []
  for number, line in enumerate(lines, 1):
    found = _parsed(path, number, line)
    if keep(found):
      kept.append(line + b'\n')
    else:
      dropped.append(found)
  write_whole(path, b''.join(kept))
  return dropped


def _whole_lines(content: bytes) -> list[bytes]:
  return content.split(b'\n')[:-1]


# All runs.


def read_results(workdir: Path) -> list[Json]:
  """One flat dict per run, in the sweep's order; status is 'missing' without a result.json."""
  sweep = read_sweep(workdir)
  return [_row(workdir, name, config, sweep['fields']) for name, config in sweep['runs'].items()]


def read_fork_results(workdir: Path) -> list[Json]:
  """The same for the forks, with what was changed in them: no part of the sweep's comparison."""
  fields = read_sweep(workdir)['fields']
  rows = []
  for name, fork in read_forks(workdir).items():
    flat = config_lib.flatten(read_config(run_dir(workdir, name))) | fork['changes']
    rows.append(_row(workdir, name, config_lib.unflatten(flat), fields))
  return rows


def _row(workdir: Path, name: str, config: Json, fields: Iterable[str]) -> Json:
  result = read_result(run_dir(workdir, name)) or {'status': 'missing'}
  try:
    flat = config_lib.flatten(config)
    return {
        'run': name,
        'status': result['status'],
        'parameters': config_lib.parameters(config),
        'learning_rate': flat['optimizer.learning_rate'],
        'seed': flat['seed'],
        **{field: flat[field] for field in fields if field != 'seed'},
        **{key: result.get(key) for key in RESULT_KEYS},
    }
  except (KeyError, TypeError, AttributeError) as error:
    raise BadInput(f'{workdir}: the config of run {name!r} is damaged: {error}') from error


def swept_values(config: Config, fields: Iterable[str]) -> Json:
  """The values of a sweep's fields in one of its runs, seed last: what tells its runs apart."""
  flat = config_lib.flatten(config)
  return {field: flat[field] for field in fields if field != 'seed'} | {'seed': flat['seed']}


def write_results(workdir: Path) -> Path:
  """results.csv: a row per run, forks last."""
  refuse_links(workdir)
  rows = [*read_results(workdir), *read_fork_results(workdir)]
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  path = workdir / 'results.csv'
  write_whole(path, buffer.getvalue())
  return path


