"""The start of a run from the parameters of another one: checks before training, and the start."""

import functools
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.model import adapters
from stability.step import evaluated, train_step
from stability.storage import parents
from stability.storage.files import Json
from stability.storage.parents import Variables
from stability.trainer.state_arrays import names

_FORMATS = ('model.dtype', 'model.matmul_precision', 'model.linear_precision')
# Options without which parameters of the same shapes mean something else.
_SAME = ('model.head_dim', 'parameterization.name', 'parameterization.base_width')
# Those that say how the parameters of an adapter are used.
_OF_ADAPTER = tuple(f'adapter.{name}' for name in ('kind', 'matrices', 'scale', 'alpha', 'init'))


class Checker:
  """Checks what runs start from; runs that share a parent share its checks."""

  def __init__(self, tokenizer: Json):
    """tokenizer: entries of meta.json of the text of the runs, as far as they are known."""
    self._tokenizer = tokenizer
    self._described: dict[str, Json] = {}
    self._checked: set[Hashable] = set()
    self.warnings: dict[str, None] = {}  # what fits but was trained as another function

  def record(self, config: Config, old: Json) -> Json:
    """The record of what a run starts from, for parent.json; empty if from random parameters.

    Args:
      config: of the run.
      old: its record from an earlier start, which is kept unless options name something else.

    Raises:
      BadInput: what an option names is missing, or does not fit the run.
    """
    found = {}
    for key, text in parents.given(config).items():
      if old.get(key, {}).get('given') == text:
        found[key] = old[key]
        continue
      try:
        if key == 'adapter' and 'checkpoint' not in found:
          raise BadInput('must be unset without config.init.checkpoint, over which it is put')
        found[key] = self._describe(key, text, config)
        if key in old and old[key]['sha256'] != found[key]['sha256']:
          raise BadInput('has other parameters than those that the run was begun with')
        if key == 'adapter' and config['adapter']['init'] == 'pissa':
          _check_base(found)
      except BadInput as error:
        raise BadInput(f'config.{parents.OPTIONS[key]}={text!r}: {error}') from error
    return found

  def _describe(self, key: str, text: str, config: Config) -> Json:
    if text not in self._described:
      self._described[text] = parents.describe(text)
    entry, flat = self._described[text], config_lib.flatten(config)
    read = tuple(flat[field] for field in (*_SAME, 'adapter.alpha', 'init.optimizer'))
    checked = key, text, config_lib.static_fields(config), read
    if checked not in self._checked:
      _check(key, entry, config, self._tokenizer)
      self._checked.add(checked)
    options = ', '.join(_differing(config_lib.flatten(entry['config']), flat))
    if options:
      what = f'config.{parents.OPTIONS[key]}={text!r}'
      self.warnings[f'{what}: was trained with {options}'] = None
    return entry


def check_tokenizer(record: Json, data: Json) -> None:
  """Raises BadInput unless the text of a run has the very vocabulary of what the run starts from.

  Args:
    record: of the run.
    data: the entries of meta.json of its text.
  """
  for key, entry in record.items():
    if entry['data']['sha256'].get('tokenizer') != data['sha256'].get('tokenizer'):
      raise BadInput(
          f'config.{parents.OPTIONS[key]}={entry["given"]!r}: has another vocabulary than the text'
          ' of config.data; launch.tokenize --tokenizer=FILE applies a given one'
      )


def load(run: Path, config: Config) -> Mapping[str, Any] | None:
  """What a run starts from, as train_step.init takes it; None: random parameters.

  Parameters are those that were evaluated. With init.optimizer=checkpoint they are those that were
  trained, and there are entries `optimizer` and, if it goes on, `average`: their states by name.

  Raises:
    BadInput: parameters that the run needs are gone or have changed.
  """
  record = parents.read(run)
  found: dict[str, Any] = {}
  for key, text in parents.given(config).items():
    if key not in record:
      raise BadInput(f'{run / parents.FILE}: must have {key}={text!r}; launch.sweep writes it')
    variables, theirs = parents.load(record[key]), record[key]['config']
    if key == 'adapter':
      found['adapter'] = _nested(added(with_average(variables, record[key]).params))
      continue
    if config['init']['optimizer'] == 'checkpoint':
      found['optimizer'] = _continued(variables.optimizer, theirs, config)
      if theirs['evaluation']['parameters'] == 'schedule_free':
        found['average'] = variables.average
    else:
      variables = with_average(variables, record[key])
    found['params'] = _nested(plain(variables, theirs))
    found['carried'] = _nested(variables.carried)
  return found or None


def with_average(variables: Variables, entry: Json) -> Variables:
  """The variables of an entry of a record, with the evaluated parameters of a checkpoint."""
  static, hparams = config_lib.split(entry['config'])
  params = evaluated.of_checkpoint(
      variables.params, variables.average, entry['step'], train_step.arrays(hparams), static
  )
  return variables._replace(params=params)


def _continued(
    optimizer: Mapping[str, np.ndarray], theirs: Config, ours: Config
) -> dict[str, np.ndarray]:
  """The state of a parent's optimizer, by name, for a run that may have another length.

  AdEMAMix's alpha and beta3 rise over the whole run. They go on from where they were in the parent,
  since a lower beta3 would forget the slow average: their count keeps its share of the run.
  """
  ratio = ours['schedule']['steps'] / theirs['schedule']['steps']
  return {
      name: np.int32(round(array * ratio)) if name.split('/')[-1] == 'count_m2' else array
      for name, array in optimizer.items()
  }


def merged(params: Mapping[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
  """The parameters of a plain model, from those of a run with this config, by name.

  Raises BadInput if the adapter cannot be merged into the weights.
  """
  static, hparams = config_lib.split(config)
  if not any(map(_is_added, params)):
    return dict(params)
  if not adapters.merges(static):
    raise BadInput(
        f'config.adapter.kind={static.adapter.kind}: cannot be merged into the weights; measure the'
        ' run as it is, or go on with config.init.adapter over its parent; launch.merge'
        ' --part=adapter writes the adapter alone'
    )
  merge = jax.jit(functools.partial(adapters.merged, static=static))
  with jax.default_matmul_precision('highest'):
    weights = merge(_nested(params), hparams=train_step.arrays(hparams))
  return names(jax.device_get(weights))


def plain(variables: Variables, config: Config) -> dict[str, np.ndarray]:
  """The parameters of a plain model, from the variables of a run with this config; see merged."""
  params = {name: array.astype(np.float32) for name, array in variables.params.items()}
  return merged(params, config)


def _check(key: str, entry: Json, config: Config, tokenizer: Json) -> None:
  """Raises BadInput unless an entry of a record fits the model of a run."""
  theirs, ours = config_lib.flatten(entry['config']), config_lib.flatten(config)
  same = (*_SAME, *_OF_ADAPTER) if key == 'adapter' else _SAME
  if config['init']['optimizer'] == 'checkpoint' and key == 'checkpoint':
    same = (*same, 'optimizer.name')
    if theirs['evaluation.parameters'] == 'schedule_free':  # whose z and average go on
      same = (*same, 'evaluation.parameters', 'evaluation.decay')
  for field in same:
    if theirs[field] != ours[field]:
      raise BadInput(f'has config.{field}={theirs[field]!r}, this run has {ours[field]!r}')
  for what in ('tokenizer', 'vocabulary_size'):
    left, right = entry['data'][what], tokenizer[what]
    if left != right:
      raise BadInput(f'has {what}={left!r}, the text of config.data has {right!r}')
  vocabulary_size = tokenizer['vocabulary_size']
  found = parents.load(entry)
  if key == 'adapter':
    wanted = _shapes(config, vocabulary_size)['params']
    _compare(added(found.params), added(wanted), theirs, ours)
    return
  base = config | {'adapter': config['adapter'] | {'kind': 'none'}}
  wanted = _shapes(base, vocabulary_size)
  _compare(plain(found, entry['config']), wanted['params'], theirs, ours)
  _compare(found.carried, wanted['carried'], theirs, ours)
  if config['init']['optimizer'] == 'checkpoint':
    _compare(found.optimizer, wanted['optimizer'], theirs, ours)


def _check_base(record: Json) -> None:
  """Raises BadInput unless a PiSSA adapter was trained over the checkpoint of a record.

  It has replaced a part of the kernels. Another base would lose a part of its own instead.
  """
  if parents.base(record['adapter']) != record['checkpoint']['sha256']:
    raise BadInput(
        'with config.adapter.init=pissa, fits only the very parameters that it was trained over,'
        ' not those of config.init.checkpoint'
    )


def _compare(
    found: Mapping[str, Any], wanted: Mapping[str, Any], theirs: Json, ours: Json
) -> None:
  """Raises BadInput unless names and shapes are the same; names the options that differ."""
  for name in sorted(found.keys() | wanted.keys()):
    left, right = (tuple(side[name].shape) if name in side else None for side in (found, wanted))
    if left != right:
      options = _differing(theirs, ours)
      because = f' ({", ".join(options)})' if options else ''
      raise BadInput(f'does not fit: its {name} has the shape {left}, must have {right}{because}')


def _differing(theirs: Json, ours: Json) -> list[str]:
  """The options of the model that differ, other than numerical formats."""
  return [
      f'config.{field}={theirs[field]!r} instead of {value!r}'
      for field, value in ours.items()
      if field.startswith('model.')
      and field not in _FORMATS
      and theirs.get(field, value) != value
  ]


def _shapes(config: Config, vocabulary_size: int) -> dict[str, dict[str, Any]]:
  """The shapes of the variables of a run before its first update, by kind and name."""
  static, hparams = config_lib.split(config)
  programs = train_step.programs(static, vocabulary_size)
  state = jax.eval_shape(programs.init, train_step.arrays(hparams))
  found = {kind: names(state[kind]) for kind in ('params', 'carried', 'optimizer')}
  return found | {'params': found['params'] | names(state.get('frozen', {}))}


def _is_added(name: str) -> bool:
  return adapters.is_added(tuple(name.split('/')))


def added(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Those of some parameters, by name, that an adapter has added."""
  return {name: array for name, array in arrays.items() if _is_added(name)}


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  return config_lib.unflatten({name.replace('/', '.'): array for name, array in arrays.items()})
