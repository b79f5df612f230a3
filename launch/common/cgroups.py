"""The CPU quotas of control groups, with which containers limit their processes."""

from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path('/sys/fs/cgroup')
_MEMBERSHIP = Path('/proc/self/cgroup')  # HIERARCHY:CONTROLLERS:PATH for each hierarchy


def cpu_quotas() -> Iterator[float]:
  """The quotas, in cores, of the control groups of this process and of the groups above them."""
  for folder in _groups('', _CGROUPS):  # version 2: MAX PERIOD in microseconds
    try:
      quota, period = (folder / 'cpu.max').read_text().split()
      yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no quota (max), or no such group here
      pass
  for folder in _groups('cpu', _CGROUPS / 'cpu'):  # version 1
    try:
      quota, period = (
          int((folder / f'cpu.cfs_{name}_us').read_text()) for name in ('quota', 'period')
      )
      if quota > 0:
        yield quota / period
    except (OSError, ValueError, ZeroDivisionError):
      pass


def _groups(controller: str, root: Path) -> Iterator[Path]:
  """The folder of this process's group and of those above it, for a controller ('': version 2).

  In a container the path of the group may be the host's. Its own group is then the root.
  """
  try:
    lines = _MEMBERSHIP.read_text().splitlines()
  except OSError:
    lines = []
  paths = [
      path
      for _, controllers, path in (line.split(':', 2) for line in lines if line.count(':') > 1)
      if controller in controllers.split(',')
  ]
  folder = root / (paths[0].lstrip('/') if paths else '')
  while folder.is_relative_to(root):
    yield folder
    folder = folder.parent
