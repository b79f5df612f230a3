"""Traces the steps of a sweep whose config file adds code, so that its errors are one line."""

import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path

import stability
from stability import config as config_lib
from stability import variants
from stability.config import Config
from stability.data import prepare
from stability.devices import shapes
from stability.errors import BadInput

MOST = 8  # static configs that are traced; each takes seconds
# What rows and their tables hold besides the measurements of a step.
_TAKEN = ('run', 'tokens', 'seconds', 'tokens_per_second')
_NOT_OWN = (  # folders of this package and of libraries
    *(Path(stability.__file__).parent, Path(__file__).parents[1]),
    *map(Path, sysconfig.get_paths().values()),
)


def check(config_file: str, configs: Mapping[str, Config]) -> list[str]:
  """Traces the initialisation and all kinds of steps, as workers do.

  Args:
    config_file: as errors name it.
    configs: the runs, whose extensions are installed.

  Returns:
    The names of what the probes of extensions measure.

  Raises:
    BadInput: the code of an extension fails, and the message names its file and line; or an
      optimizer of an extension trains uphill.
  """
  shapes.trace_on_cpu()
  vocabulary_size = prepare.vocabulary_size(prepare.data_config(next(iter(configs.values()))))
  distinct = {}
  for config in configs.values():
    static, hparams = config_lib.split(config)
    distinct.setdefault(static, hparams)
  measured: dict[str, None] = {}
  for static, hparams in list(distinct.items())[:MOST]:
    try:
      measured |= dict.fromkeys(_trace(static, hparams, vocabulary_size))
    except BadInput as error:
      raise BadInput(f'{config_file}: {error}') from error
    except Exception as error:
      first_line, *_ = str(error).strip().splitlines() or ['']
      what = f'{type(error).__name__}: {first_line}'
      raise BadInput(f'{_place(error) or config_file}: its extensions fail: {what}') from error
  return list(measured)


def _trace(static, hparams, vocabulary_size: int) -> list[str]:
  import jax
  import numpy as np

  from stability.step import probes, train_step

  programs = train_step.programs(static, vocabulary_size)
  state = jax.eval_shape(programs.init, train_step.arrays(hparams))
  text = jax.ShapeDtypeStruct((2 * static.data.sequence_length,), np.int32)
  for step in programs.steps.values():
    jax.eval_shape(step, {'text': text}, state)
  if static.optimizer.name in variants.added('optimizer.name'):
    _require_direction(static.optimizer.name, state['params'], train_step.arrays(hparams))
  measured: list[str] = []
  added = variants.added_terms('probes') if 'probed' in programs.steps else ()
  for term in probes.INSIDE.active(static):
    if term in added:

      def measure(params, hparams, term=term):
        # Gradients, updates and moves have the shapes of the parameters.
        return term.make(probes.Inside(params, params, params, params, hparams, static))

      measured += jax.eval_shape(measure, state['params'], state['hparams'])
  if taken := [name for name in measured if name in _TAKEN]:
    raise BadInput(f'{taken[0]} is what rows hold already; a probe of yours needs another name')
  return measured


def _require_direction(name: str, params, hparams) -> None:
  """Raises BadInput if an optimizer returns updates to be added, as optax.adam(rate) does."""
  import jax
  import numpy as np
  import optax

  from stability.optim.optimizers import OPTIMIZERS

  # The second update counts, as an optimizer may make none in its first step.
  params = jax.tree.map(lambda x: np.ones([min(n, 2) for n in x.shape], x.dtype), params)
  optimizer = optax.with_extra_args_support(OPTIMIZERS[name].make(hparams))
  state = optimizer.init(params)
  for _ in range(2):
    directions, state = optimizer.update(
        params, state, params, learning_rate=hparams['optimizer.learning_rate'], loss=np.float32(1)
    )
  if optax.tree.vdot(params, directions) < 0:
    raise BadInput(
        f'config.optimizer.name={name}: its updates point downhill, but they are multiplied by the'
        ' learning rate and subtracted: return a direction, such as optax.scale_by_adam(), not'
        ' optax.adam(rate)'
    )


def _place(error: BaseException) -> str | None:
  """FILE:LINE of the innermost code that belongs to neither this package nor the libraries."""
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    path = Path(frame.filename)
    if path.is_file() and not any(path.is_relative_to(folder) for folder in _NOT_OWN):
      return f'{path.name}:{frame.lineno}'
  return None
