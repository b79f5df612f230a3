"""What a user says about the runs to import."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from stability.errors import BadInput
from stability.importing import columns as columns_lib

LOSS_UNITS = {'nats': 1.0, 'bits': math.log(2)}  # -> nats
STEP_UNITS = ('steps', 'tokens')
MAX_LOSS = 1e30  # as in CSV files of results: sums and axes overflow near the largest float
_FLAG = re.compile(
    r'--(?:map=(?P<name>[^=\s]+)=(?P<column>.*?)(?=[;:,)]|\.?$| or | and | \()'
    r'|(?P<flag>group_by|initial_loss|loss_unit|step_unit|curves|runs|workdir)'
    r'(?:=(?P<value>[^\s;:,)]*))?)'
)


@dataclasses.dataclass(frozen=True)
class Options:
  """The flags of launch.import_runs."""

  mapping: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> column
  initial_loss: float | None = None  # in the unit of the losses; of runs that lack one
  group_by: tuple[str, ...] | None = None  # columns that define interventions; None: arms.choose
  loss_unit: str | None = None  # None: nats, unless a column's name says otherwise
  step_unit: str | None = None  # None: steps, unless there are only tokens

  def __post_init__(self):
    object.__setattr__(self, 'mapping', columns_lib.with_blocks(self.mapping))
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


def as_arguments(text: str) -> str:
  """A sentence about flags as one about the arguments of stability.from_frames."""

  def argument(match: re.Match[str]) -> str:
    if match['name'] is not None:
      return f'columns={{{match["name"]!r}: {match["column"]!r}}}'
    return match['flag'] + ('' if match['value'] is None else f'={match["value"]!r}')

  return _FLAG.sub(argument, text)


@contextlib.contextmanager
def of_arguments() -> Iterator[None]:
  """Errors name the arguments of stability.from_frames instead of flags."""
  try:
    yield
  except BadInput as error:
    raise BadInput(as_arguments(str(error))) from error
