"""Numbers the runs of a table whose seeds differ from run to run, as sweeps draw them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stability.config import SIZE_FIELDS
from stability.importing.runs import Run


def numbered(
    runs: Sequence[Run], arms: Mapping[str, Sequence[Any]], ended: Collection[int]
) -> bool:
  """Numbers the seeds of each learning rate of a curve 0, 1, ... if no curve shares one.

  A seed is what the learning rates of a curve have in common. One that is drawn for each run says
  nothing of the others, and every run would be a curve of its own.

  Args:
    runs: those of a table; their seeds change.
    arms: the values that tell the curves of a size apart, of each run.
    ended: the rows of runs that count, which get the first numbers.

  Returns:
    Whether the seeds are numbered: not if a seed occurs at several learning rates of a curve, or if
    no curve has several.
  """
  curves: dict[tuple, dict[float, list[Run]]] = {}
  for run, *values in zip(runs, *arms.values(), strict=True):
    size = (run.parameters, *(run.fields.get(name) for name in SIZE_FIELDS))
    curves.setdefault((*size, *values), {}).setdefault(run.learning_rate, []).append(run)
  several = [cells for cells in curves.values() if len(cells) > 1]
  if not several:
    return False
  for cells in several:
    seeds = [seed for cell in cells.values() for seed in {run.seed for run in cell}]
    if len({*seeds}) < len(seeds):
      return False
  for cells in curves.values():
    for cell in cells.values():
      numbers: dict[int, int] = {}
      for run in sorted(cell, key=lambda run: run.row not in ended):
        run.seed = numbers.setdefault(run.seed, len(numbers))
  return True
