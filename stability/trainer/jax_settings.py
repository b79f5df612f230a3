"""Checks the settings of jax that change the numbers of a run."""

import jax

from stability import settings
from stability.errors import BadInput


def check() -> None:
  """Raises BadInput if this process has changed a setting that has one right value.

  Programs set these in the environment, but a config file, an extension or a notebook may change
  them once jax is imported.
  """
  for name, required in settings.REQUIRED.items():
    option = name.lower()
    if option.startswith('jax_') and hasattr(jax.config, option):
      value = getattr(jax.config, option)
      value = getattr(value, 'value', value)  # of an enum
      if str(int(value) if isinstance(value, bool) else value) != required:
        raise BadInput(f'jax.config.{option}={value}: must be {required} where runs are trained')
