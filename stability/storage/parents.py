"""Trained parameters that a run starts from: those of another run, its parent.

A config names them as the folder of a run that has ended, as FOLDER@STEP for a checkpoint, or as a
file of safetensors that this package has written. A run with a parent has a record of it, which is
written before the run is trained; training refuses other parameters than those of the record:

  DIR/runs/NAME/parent.json   for `checkpoint` and `adapter` (init.checkpoint and init.adapter): as
                              given, path, step, sha256, config and data (tokenizer ...)
"""

import contextlib
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stability import config as config_lib
from stability.config import Config, fields
from stability.errors import BadInput
from stability.storage import (
  checkpoints,
  files,
  parameters,
  run_files,
  safetensors,
  schema,
  sweeps,
)
from stability.storage.files import Json

FILE = 'parent.json'
OPTIONS = {'checkpoint': 'init.checkpoint', 'adapter': 'init.adapter'}  # by key of the record

_STEP = re.compile(r'(.+)@([0-9]{1,8})', re.DOTALL)


class Variables(NamedTuple):
  """Variables of a run by name, with the names of the model."""

  params: dict[str, np.ndarray]  # of a checkpoint, as they are trained
  carried: dict[str, np.ndarray]
  optimizer: dict[str, np.ndarray]  # none if they are not of a checkpoint
  average: dict[str, np.ndarray]  # likewise; none if no parameters are averaged


def given(config: Config) -> dict[str, str]:
  """What a run starts from as its config names it, by key of the record."""
  flat = config_lib.flatten(config)
  return {key: flat[field] for key, field in OPTIONS.items() if flat[field] is not None}


def describe(text: str) -> Json:
  """The record of the parameters that an option names.

  Raises BadInput, whose message does not name the option, if there are none.
  """
  match = _STEP.fullmatch(text)
  path, step = (Path(match[1]), int(match[2])) if match else (Path(text), None)
  if path.is_file() and step is None:
    return _of_file(text, path)
  if not path.is_dir():
    raise BadInput('there is no such run; train it first')
  if not (path / 'config.json').is_file():
    raise BadInput('is not the folder of a run, DIR/runs/NAME')
  if step is None:
    result = run_files.read_result(path)
    if result is None:
      raise BadInput('has not ended; name one of its checkpoints as FOLDER@STEP, or wait')
    if result.status == 'failed':
      raise BadInput('has failed')
    if result.final_loss is None or not math.isfinite(result.final_loss):
      raise BadInput('has diverged: its final loss is not finite')
    if not (path / parameters.FILE).is_file():
      raise BadInput(
          f'has no {parameters.FILE}, being of an older version or trained with'
          ' config.checkpoint.parameters=none; name one of its checkpoints as FOLDER@STEP'
      )
    return _of_file(text, path / parameters.FILE)
  arrays = checkpoints.load(path, step)
  data = sweeps.read_sweep(path.absolute().parents[1]).data
  config = _with_hyperparameters(run_files.read_config(path), arrays)
  known = parameters.about(path.name, step, config, data)
  return _record(text, path, checkpoints.digest(path, step), known)


def _with_hyperparameters(config: Config, arrays: dict[str, np.ndarray]) -> Config:
  """The config with the hyperparameters of a checkpoint, which actions may have changed."""
  flat = config_lib.flatten(config)
  for field in fields.settable():
    value = arrays.get(f'hyper/{field}')
    if value is not None and value != value.dtype.type(flat[field]):
      flat[field] = value.item()
  return config_lib.unflatten(flat)


def _of_file(text: str, path: Path) -> Json:
  return _record(text, path, safetensors.digest(path), about(path))


def about(path: Path) -> Json:
  """The metadata of a run's parameters, see parameters.py; BadInput if any are missing."""
  metadata = safetensors.read_header(path).metadata
  try:
    found = {key: json.loads(metadata[key]) for key in ('run', 'step', 'config', 'data')}
    found['data'] = {key: found['data'][key] for key in parameters.DATA}
  except (KeyError, ValueError, TypeError) as error:
    raise BadInput(f'{path} does not tell of which run it is: {error!r}') from error
  schema.check_config(f'the config in {path}', found['config'])
  found['config'] = config_lib.complete(found['config'])
  return found


def _record(text: str, path: Path, sha256: str, about: Json) -> Json:
  return {'given': text, 'path': str(path.resolve()), 'sha256': sha256, **about}


def base(entry: Json) -> str | None:
  """The SHA-256 of the parameters over which the adapter of an entry was trained, if it is known.

  Of a run, its own record has it; of a file of launch.merge, the metadata.
  """
  path = Path(entry['path'])
  if path.is_dir() or path.name == parameters.FILE:
    return read(run_of(entry)).get('checkpoint', {}).get('sha256')
  with contextlib.suppress(ValueError):
    return json.loads(safetensors.read_header(path).metadata.get('base', 'null'))
  return None


def write(run: Path, record: Json) -> None:
  """Writes the record of a run."""
  files.write_json(run / FILE, record)


def read(run: Path) -> Json:
  """The record of a run by key; empty if it starts from random parameters."""
  path = run / FILE
  return files.find_json(path) or {}


def run_of(entry: Json) -> Path:
  """The folder of the run whose parameters an entry names, or that of their file."""
  path = Path(entry['path'])
  return path if path.is_dir() else path.parent


def ancestors(run: Path) -> list[Json]:
  """The entries of a run's record, of those of its parents and so on, as far as they are there."""
  found, folders = [], [run]
  for folder in folders:  # grows
    for entry in read(folder).values():
      found.append(entry)
      if run_of(entry) not in folders:
        folders.append(run_of(entry))
  return found


def checksums(record: Json) -> dict[str, str]:
  """What identifies the parameters of a record."""
  return {key: entry['sha256'] for key, entry in record.items()}


def load(entry: Json) -> Variables:
  """The variables of an entry of a record; BadInput if they are gone or others than recorded."""
  path = Path(entry['path'])
  if path.is_dir():
    arrays = checkpoints.load(path, entry['step'])
    digest = checkpoints.digest(path, entry['step'])
  else:
    arrays, _ = safetensors.read(path)
    digest = safetensors.digest(path)
  if digest != entry['sha256']:
    raise BadInput(f'{path}: has other parameters than when the run was prepared')
  if not path.is_dir():
    return Variables(*_split(arrays, parameters.CARRIED), {}, {})
  kinds = {
      kind: {
          name.removeprefix(f'{kind}/'): array
          for name, array in arrays.items()
          if name.startswith(f'{kind}/')
      }
      for kind in ('params', 'frozen', 'carried', 'optimizer', 'average')
  }
  params = kinds['params'] | kinds['frozen']
  return Variables(params, kinds['carried'], kinds['optimizer'], kinds['average'])


def _split(
    arrays: dict[str, np.ndarray], prefix: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The arrays without the prefix in their names, and those with it, under the rest of the name."""
  others = {name: array for name, array in arrays.items() if not name.startswith(prefix)}
  return others, {
      name.removeprefix(prefix): array for name, array in arrays.items() if name not in others
  }
