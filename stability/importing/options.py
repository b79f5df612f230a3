"""What a user says about the runs to import."""

import dataclasses
import math
from collections.abc import Mapping

from stability.errors import BadInput

LOSS_UNITS = {'nats': 1.0, 'bits': math.log(2)}  # -> nats
STEP_UNITS = ('steps', 'tokens')
MAX_LOSS = 1e30  # as in CSV files of results: sums and axes overflow near the largest float


@dataclasses.dataclass(frozen=True)
class Options:
  """The flags of launch.import_runs."""

  mapping: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> column
  initial_loss: float | None = None  # in the unit of the losses; of runs that lack one
  group_by: tuple[str, ...] | None = None  # columns that define interventions; None: arms.choose
  loss_unit: str | None = None  # None: nats, unless a column's name says otherwise
  step_unit: str | None = None  # None: steps, unless there are only tokens

  def __post_init__(self):
    if self.loss_unit not in (None, *LOSS_UNITS):
      raise BadInput(f'--loss_unit={self.loss_unit}: must be {" or ".join(LOSS_UNITS)}')
    if self.step_unit not in (None, *STEP_UNITS):
      raise BadInput(f'--step_unit={self.step_unit}: must be {" or ".join(STEP_UNITS)}')
    if self.initial_loss is not None and not abs(self.initial_loss) <= MAX_LOSS:
      raise BadInput(
          f'--initial_loss={self.initial_loss}: must be a number from -{MAX_LOSS:g} to'
          f' {MAX_LOSS:g}'
      )

  @property
  def nats(self) -> float:
    """What losses are multiplied by."""
    return LOSS_UNITS[self.loss_unit or 'nats']
