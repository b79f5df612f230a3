"""Prints the arms of a screening that go to the finals, and the best arm of each place.

  python -m launch.finalists --workdir=DIR [--count=10]

The rule is that of configs/leaderboard.py. What is printed is what configs/leaderboard_finals.py
and configs/leaderboard_pairs.py hold as FINALISTS and BEST. Arms with the lowest loss at an end of
their grid or no critical rate within it are named on stderr: they need more rates (MORE_RATES of
configs/leaderboard.py) and are no finalists before. With several sizes, the smallest one counts.
All runs must have ended.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app

# isort: split
import sys
from pathlib import Path

from absl import flags

from stability.errors import BadInput

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_COUNT = flags.DEFINE_integer(
    'count', 10, 'number of finalists', lower_bound=1, flag_values=FLAGS
)


def main() -> None:
  """Prints the list."""
  from stability.analysis import inert
  from stability.analysis import results as results_lib
  from stability.analysis.leaderboard import front
  from stability.analysis.leaderboard import table as table_lib

  workdir = Path(_WORKDIR.value)
  results = results_lib.load_workdir(workdir)
  if not table_lib.applies(results):
    raise BadInput(f'--workdir={workdir}: the points of its sweep have no arm')
  waiting = int((results.runs['status'] == 'missing').sum())
  if waiting:
    raise BadInput(f'--workdir={workdir}: {waiting} of its {len(results.runs)} runs have not ended')
  table = table_lib.leaderboard(results, inert.load(workdir))
  table = table[table['is_baseline'].cumsum() == 1]
  for arm, why in front.at_edges(table):
    print(f'{arm}: {why}', file=sys.stderr)
  lacking = table[table['missing'] > 0]
  for arm, missing in zip(lacking['arm'], lacking['missing'], strict=True):
    print(f'{arm}: {missing} of its runs do not count', file=sys.stderr)
  print('FINALISTS = (')
  for arm in front.finalists(table, _COUNT.value):
    print(f'    {arm!r},')
  print(')\nBEST = {')
  for place, arm in front.best_of_places(table).items():
    print(f'    {place!r}: {arm!r},')
  print('}')


if __name__ == '__main__':
  app.run(main, FLAGS)
