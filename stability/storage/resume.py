"""Options that may have other values when a sweep is started again in its workdir.

The config.json of a run keeps the values that the run began with. sweep.json has those of the last
start that left the run unfinished, and versions.jsonl says from which step on a run had which.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.hyper import Runs

_ROWS = ('log.every_steps', 'probe.every_steps', 'probe.sharpness_every_steps')
_CHECKPOINTS = ('checkpoint.every_steps', 'checkpoint.keep')
# These change no number. Paths are free because the text and parameters behind them are checked.
_PATHS = ('data.path', 'init.checkpoint')
FREE = ('log.every_steps', *_CHECKPOINTS, 'checkpoint.parameters', *_PATHS)
# These change numbers by rounding only: other executables make some or all of the steps.
ROUNDING = (
    *_ROWS[1:],
    'parallel.layout',
    'parallel.members',
    'parallel.microbatches',
    'parallel.remat',
)


def changes(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
  """The fields that differ, dotted, with both values; None stands for a field that is absent."""
  old, new = config_lib.flatten(old), config_lib.flatten(new)
  fields = sorted(old.keys() | new.keys())
  return {f: (old.get(f), new.get(f)) for f in fields if old.get(f) != new.get(f)}


def allows(old: Config, new: Config) -> bool:
  """Whether a run that began with `old` may go on with `new`."""
  return changes(old, new).keys() <= {*FREE, *ROUNDING}


def check(workdir: Path, runs: Runs, stored: Mapping[str, Config]) -> None:
  """Raises BadInput unless a workdir with the runs `stored` can be continued with `runs`.

  Runs may be added. Only the options FREE and ROUNDING may change, and of these only data.path and
  parallel.* if actions depend on alarms: rows and checkpoints decide when such actions are taken.
  """
  for name, old in stored.items():
    if name not in runs.configs:
      raise BadInput(f'--workdir={workdir}: holds another sweep: its run {name} is not in this one')
    on_alarm = old.get('control', {}).get('on_alarm', 'none')
    for field, (before, now) in changes(old, runs.configs[name]).items():
      acts = on_alarm != 'none' and field in (*_ROWS, *_CHECKPOINTS)
      if field not in (*FREE, *ROUNDING) or acts:
        why = f', which config.control.on_alarm={on_alarm} depends on' if acts else ''
        raise BadInput(
            f'--workdir={workdir}: holds another sweep: its run {name} has'
            f' config.{field}={before!r}, this one {now!r}{why}'
        )


def with_stored_names(runs: Runs, stored: Mapping[str, Config]) -> Runs:
  """The runs with their names in the workdir: a long name has a hash of options that may change."""
  if not stored.keys() - runs.configs.keys():
    return runs
  ignored = {*FREE, *ROUNDING} - set(runs.fields)

  def key(config: Config) -> str:
    flat = config_lib.flatten(config)
    return json.dumps({f: flat[f] for f in sorted(flat) if f not in ignored})

  names = {key(config): name for name, config in stored.items() if name not in runs.configs}
  configs = {
      name if name in stored else names.get(key(config), name): config
      for name, config in runs.configs.items()
  }
  return Runs(runs.fields, configs)
