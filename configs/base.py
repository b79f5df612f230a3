"""The base of every experiment: the paper's model, objective and optimizer at four scales.

"Small-scale proxies for large-scale Transformer training instabilities" (arXiv 2309.14322, section
2.1). The scale sets the model size, the number of steps and the batch:

  cpu    147K parameters, 500 steps of 16 x 64 bytes: 15 s on one CPU core, 25 s the first time
  night  147K parameters, 10,000 steps of 16 x 64 bytes: 2 to 6 minutes on one CPU core
  gpu    2.4M parameters, 5,000 steps of 64 x 256 tokens
  paper  2.4M parameters, 100,000 steps of 256 x 512 tokens, as published

stability/config/fields.py defines the default, meaning and unit of each option. To print them:

  python -m launch.options [--config=configs/base.py:SCALE] [WORD]

To train one run:

  python -m launch.train --config=configs/base.py --workdir=runs/one
"""

from ml_collections import ConfigDict, config_dict

from stability import config as config_lib
from stability.config import fields


def get_config(scale: str = 'cpu') -> ConfigDict:
  """One run with the default of every option at the scale: cpu, night, gpu or paper."""
  values = fields.defaults(scale)
  for name, value in values.items():
    if value is None:  # ml_collections refuses to override a plain None
      values[name] = config_dict.placeholder(config_lib.FIELDS[name].type)
  return ConfigDict(config_lib.unflatten(values))
