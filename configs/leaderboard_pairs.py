"""Do the best arms of two places add up? Each place's best arm with each other's, at one size.

The best arm of a place is the finalist, or else the arm of the screening, nearest to the front
(`python -m launch.finalists` prints it). Pairs that set one option to two values, that cannot be
combined (stability/config/checks.py) or that equal one of the two are left out. An arm's window is
shifted by the shifts of both. The regime and the seeds are those of the smaller size of
configs/leaderboard_finals.py, so that --reuse copies baseline and single arms from there.

Not yet measured at any scale.

Time at night scale: up to 15 pairs, 45 runs each, of a minute on one core: 6 hours on two, and 4
for the single arms and controls if they are not reused (estimate).

  python -m launch.sweep --config=configs/leaderboard_pairs.py --workdir=runs/leaderboard_pairs
"""

import itertools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import arms, leaderboard, leaderboard_finals
from stability import config as config_lib
from stability import hyper
from stability.errors import BadInput

BEST: Mapping[str, str] = {  # place -> its best arm
    'residual': 'experts, router bias',
    'optimizer': 'Muon',
    'schedule': 'WSD',
    'output': 'embedding norm',
    'attention': 'unit queries and keys',
    'clipping': 'no clipping',
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all arms change."""
  return leaderboard_finals.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Arm x learning rate x seed."""
  singles = {name: arms.ARMS[name] for name in (arms.BASELINE, *BEST.values())}
  combined = pairs(BEST)
  fields = {**singles, **{f'{a} + {b}': changed for (a, b), changed in combined.items()}}
  size = config_lib.for_scale(scale, leaderboard_finals.SIZES)[0]
  seeds = {size: leaderboard_finals.SEEDS[0]}
  fields |= leaderboard.FINAL_CONTROL_ARMS
  parts = {f'{a} + {b}': (a, b) for a, b in combined}
  return leaderboard.of_arms(scale, fields, seeds, parts)


def get_report(scale: str = 'cpu') -> dict[str, Any]:
  """The places of the arms, and the verdicts that controls must have."""
  report = leaderboard.get_report(scale)
  places = {a: place for place, a in BEST.items()}
  both = {f'{a} + {b}': f'{places[a]} + {places[b]}' for a, b in pairs(BEST)}
  return report | {'places': report['places'] | both}


def pairs(best: Mapping[str, str]) -> dict[tuple[str, str], dict[str, Any]]:
  """Pairs of arms of different places -> the options that they change together."""
  return {
      (a, b): {**arms.ARMS[a], **arms.ARMS[b]}
      for a, b in itertools.combinations(best.values(), 2)
      if all(arms.ARMS[b].get(field, value) == value for field, value in arms.ARMS[a].items())
      and {**arms.ARMS[a], **arms.ARMS[b]} not in (arms.ARMS[a], arms.ARMS[b])
      and _is_valid({**arms.ARMS[a], **arms.ARMS[b]})
  }


def _is_valid(changed: Mapping[str, Any]) -> bool:
  """Whether the config is valid with these options."""
  try:
    config_lib.resolve(config_lib.flatten(get_config().to_dict()) | changed)
  except BadInput:
    return False
  return True
