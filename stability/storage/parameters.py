"""DIR/runs/NAME/parameters.safetensors: the parameters with which a run has ended.

The arrays have the names of the Flax parameters, joined with '/': block_0/mlp/up. Those that are
stored are the parameters with which final_loss was measured, before the multipliers of the
parameterization; of a run with an adapter, the frozen ones too. Other variables that modules carry
from step to step are stored below `carried/`. The metadata tell, as JSON, what else it takes to use
the parameters: config (with the hyperparameters that the run had in the end), data (tokenizer,
vocabulary_size, sha256), step and name of the run.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from stability.config import Config
from stability.storage import safetensors
from stability.storage.files import Json

FILE = 'parameters.safetensors'
CARRIED = 'carried/'  # prefix of the names of carried variables
DATA = ('tokenizer', 'vocabulary_size', 'sha256')  # entries of meta.json that are stored

_DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}


def write(run: Path, arrays: Mapping[str, np.ndarray], about: Json, dtype: str) -> None:
  """Writes the parameters of a run to its folder; see write_file."""
  write_file(run / FILE, arrays, about, dtype)


def write_file(path: Path, arrays: Mapping[str, np.ndarray], about: Json, dtype: str) -> None:
  """Writes parameters.

  Args:
    path: the file.
    arrays: parameters and carried variables by name.
    about: the metadata, see above.
    dtype: float32 or bfloat16, to which elements are rounded; carried variables stay float32.
  """
  stored = {
      name: array.astype(_DTYPES['float32' if name.startswith(CARRIED) else dtype])
      for name, array in arrays.items()
  }
  metadata = {key: json.dumps(value, sort_keys=True) for key, value in about.items()}
  safetensors.write(path, stored, metadata)


def about(name: str, step: int, config: Config, data: Json) -> Json:
  """The metadata of a run's parameters; `data` has the entries of meta.json."""
  return {
      'run': name,
      'step': step,
      'config': config,
      'data': {key: data[key] for key in DATA if key in data},
  }
