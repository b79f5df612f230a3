"""The backends by name, and their flags."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from absl import flags

from launch.backends import local, manifest, ray, slurm
from launch.common import jobs, start
from stability.config import Config
from stability.errors import BadInput

# The flags of each backend. Flags of a backend other than the selected one are refused.
_FLAGS = {
    'local': ('workers',),
    'slurm': (*jobs.FLAGS, *slurm.FLAGS),
    'ray': (*jobs.FLAGS, *ray.FLAGS),
    'manifest': jobs.FLAGS,
}
NAMES = tuple(_FLAGS)


def _do_nothing(*_) -> None:
  pass


@dataclasses.dataclass(frozen=True)
class Backend:
  """A backend, configured by its flags."""

  train: start.Train
  check: Callable[[], None] = _do_nothing  # raises BadInput if what it needs is not here
  show: Callable[[Path, Mapping[str, Config]], None] = _do_nothing  # prints what would be submitted
  not_retried: Callable[[Path], Collection[str]] = lambda workdir: ()  # failed runs to leave alone
  is_blocking: bool = True  # whether the runs are finished when `train` returns


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines --backend and the flags of all backends."""
  flags.DEFINE_enum('backend', 'local', NAMES, 'where to train', flag_values=flag_values)
  start.define_workers(flag_values)
  jobs.define_flags(flag_values)
  slurm.define_flags(flag_values)
  ray.define_flags(flag_values)


def find(flag_values: flags.FlagValues) -> Backend:
  """The backend that the flags select; BadInput if the flags contradict each other."""
  name = flag_values['backend'].value
  for flag in dict.fromkeys(flag for names in _FLAGS.values() for flag in names):
    if flag_values[flag].present and flag not in _FLAGS[name]:
      owners = ' or '.join(other for other in NAMES if flag in _FLAGS[other])
      raise BadInput(f'--{flag}: must be given with --backend={owners}, not {name}')
  if name == 'local':
    workers = flag_values['workers'].value
    train = functools.partial(local.train, workers=workers)
    return Backend(train, functools.partial(local.check, workers))
  resources = jobs.resources(flag_values)
  if name == 'slurm':
    options = {'resources': resources, 'options': slurm.options(flag_values)}
    train, show = (functools.partial(f, **options) for f in (slurm.train, slurm.show))
    return Backend(train, slurm.check_installed, show, slurm.not_retried)
  if name == 'ray':
    address = flag_values['ray_address'].value
    train = functools.partial(ray.train, resources=resources, address=address)
    return Backend(train, ray.check_installed)
  train, show = (functools.partial(f, resources=resources) for f in (manifest.write, manifest.show))
  return Backend(train, show=show, is_blocking=False)
