"""The parameters of runs that have ended."""

from pathlib import Path
from typing import Any

import jax

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.step import train_step
from stability.storage import checkpoints, run_files
from stability.trainer.state_arrays import from_arrays

MIN_SEQUENCE = 8  # tokens; a quarter of it is the shortest passage


def load_state(run: Path, vocabulary_size: int) -> tuple[int, Any]:
  """The step and the state of a run's last checkpoint.

  Args:
    run: folder of the run.
    vocabulary_size: of its tokens.

  Raises:
    BadInput: there is no checkpoint, or all are damaged.
  """
  config = run_files.read_config(run)
  static, hparams = config_lib.split(config)
  found = checkpoints.restore(run)
  if found is None:
    raise BadInput(f'{run.name}: has no checkpoint; config.checkpoint.every_steps asks for them')
  step, arrays, _ = found
  programs = train_step.programs(static, vocabulary_size)
  like = jax.eval_shape(programs.init, train_step.arrays(hparams))
  return step, from_arrays(like, arrays)


def check_config(name: str, config: Config) -> None:
  """Raises BadInput for a model that has no MLP, or whose windows cannot hold a passage."""
  if not config['model']['depth']:
    raise BadInput(f'{name}: config.model.depth=0: must be at least 1, since keys are inputs of an MLP')
  if config['data']['sequence_length'] < MIN_SEQUENCE:
    raise BadInput(
        f'{name}: config.data.sequence_length={config["data"]["sequence_length"]}: must be at least'
        f' {MIN_SEQUENCE}'
    )
