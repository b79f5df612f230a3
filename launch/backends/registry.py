"""--backend: who trains the runs of a sweep, and the flags of each."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

from absl import flags

from launch.backends import local, manifest, ray, slurm
from launch.common import jobs, start
from stability.config import Config
from stability.errors import BadInput

NAMES = ('local', 'slurm', 'ray', 'manifest')
# What the flags of each are; those of a backend that is not chosen are refused.
_OF = {
    'local': ('workers',),
    'slurm': (*jobs.FLAGS, *slurm.FLAGS),
    'ray': (*jobs.FLAGS, *ray.FLAGS),
    'manifest': jobs.FLAGS,
}


def _nothing(*_) -> None:
  pass


@dataclasses.dataclass(frozen=True)
class Backend:
  """Where runs are trained, with what its flags say."""

  train: start.Train
  check: Callable[[], None] = _nothing  # BadInput where it is not to be had
  show: Callable[[Path, Mapping[str, Config]], None] = _nothing  # what a new sweep would submit
  waits: bool = True  # whether the runs are over when `train` is


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines --backend and the flags of all of them."""
  flags.DEFINE_enum('backend', 'local', NAMES, 'who trains the runs', flag_values=flag_values)
  start.define_workers(flag_values)
  jobs.define_flags(flag_values)
  slurm.define_flags(flag_values)
  ray.define_flags(flag_values)


def find(flag_values: flags.FlagValues) -> Backend:
  """The backend that the flags describe."""
  name = flag_values['backend'].value
  for flag in dict.fromkeys(flag for of_one in _OF.values() for flag in of_one):
    if flag_values[flag].present and flag not in _OF[name]:
      users = ' or '.join(other for other in NAMES if flag in _OF[other])
      raise BadInput(f'--{flag}: must be given with --backend={users}; it is {name}')
  if name == 'local':
    return Backend(functools.partial(local.train, workers=flag_values['workers'].value))
  needs = jobs.needs(flag_values)
  if name == 'slurm':
    given = {'needs': needs, 'options': slurm.options(flag_values)}
    train, show = (functools.partial(f, **given) for f in (slurm.train, slurm.show))
    return Backend(train, slurm.check, show)
  if name == 'ray':
    address = flag_values['ray_address'].value
    return Backend(functools.partial(ray.train, needs=needs, address=address), ray.check)
  train, show = (functools.partial(f, needs=needs) for f in (manifest.write, manifest.show))
  return Backend(train, show=show, waits=False)
