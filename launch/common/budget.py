"""Budgets: CPU-hours, hours on accelerators, or FLOPs."""

import dataclasses
import math
import os
import re

from stability.devices import targets
from stability.devices.cost import Machine
from stability.errors import BadInput

_HOURS = {'m': 1 / 60, 'h': 1.0, 'd': 24.0}
ALLOWED = (
    'cpu:2h (hours of one core; also m and d), 8xh100:10h (devices, one of'
    f' {", ".join(targets.TARGETS)}, and hours on them) or a number of FLOPs such as 1e18'
)
# FLOPs per second of one core, counted by cost.estimated_flops, with evaluation and probes: the
# slower of the machines of BUILD_NOTES.md, runs of 10,000 steps at 9.2K to 147K parameters.
CORE_FLOPS = 1.5e10
UTILISATION = 0.4  # of an accelerator's peak; the default of --utilisation


@dataclasses.dataclass(frozen=True)
class Budget:
  """A budget in one unit: core_hours, hours (on devices) or flops; the other two are None."""

  text: str  # as it was given
  core_hours: float | None = None
  flops: float | None = None
  kind: str | None = None  # of the devices
  devices: int | None = None
  hours: float | None = None

  def machine(self, dtype: str, matmul_precision: str) -> Machine:
    """The devices, for runs in this type."""
    target = targets.TARGETS[self.kind]
    return Machine(
        self.devices,
        target.usable_bytes(os.environ),
        target.flops_per_second(dtype, matmul_precision),
        UTILISATION,
    )


def parse(text: str) -> Budget:
  """Parses --budget; raises BadInput."""
  machine, _, time = text.rpartition(':')
  duration = re.fullmatch(r'([0-9.]+)([mhd])', time)
  if not machine:
    flops = _number(time)
    if flops:
      return Budget(text, flops=flops)
  elif duration and (amount := _number(duration[1])):
    hours = amount * _HOURS[duration[2]]
    if machine == 'cpu':
      return Budget(text, core_hours=hours)
    devices = re.fullmatch(r'(?:([1-9][0-9]{0,5})x)?(\w+)', machine)
    if devices and devices[2] in targets.TARGETS:
      return Budget(text, kind=devices[2], devices=int(devices[1] or 1), hours=hours)
  raise BadInput(f'--budget={text}: must be {ALLOWED}')


def _number(text: str) -> float | None:
  """A number above 0; None if it is none."""
  try:
    number = float(text)
  except ValueError:
    return None
  return number if 0 < number < math.inf else None
