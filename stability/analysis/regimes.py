"""Regimes in which small sizes stand for large ones: run lengths, and what speaks for each.

A regime is a scale of configs/grid.py, which has its steps, batches, warm-up and learning rates.
This table is the only place that says which regime to trust; launch.next reads it.
"""

import dataclasses
from collections.abc import Sequence

# Predictions were tested up to this factor of parameters, by configs/extrapolation.py.
MAX_DISTANCE = 64
TOO_FAR = (
    f'More than {MAX_DISTANCE} times the largest trained size is farther than the method was'
    ' tested.'
)
# A proxy is at most this fraction of its target: a larger one costs as much as the target.
MAX_FRACTION = 1 / 4


@dataclasses.dataclass(frozen=True)
class Regime:
  """How to train proxies."""

  scale: str  # of configs/grid.py
  sizes: Sequence[str]  # named ones, smallest first; any three neighbours make a sweep
  on_accelerators: bool  # whether it keeps an accelerator busy
  says: str  # what to expect of it
  rests_on: str


# The most trusted first.
REGIMES = (
    Regime(
        'paper',
        ('2.4M', '9.4M', '19M', '42M', '85M', '151M', '302M', '1.2B'),
        True,
        'the published set-up',
        'arXiv 2309.14322; it has not been run here',
    ),
    Regime(
        'gpu',
        ('2.4M', '9.4M', '42M', '151M', '302M', '1.2B'),
        True,
        'a twentieth of the published number of steps, in its window of learning rates',
        'no runs: it is an assumption',
    ),
    Regime(
        'night',
        ('9.2K', '37K', '147K', '590K'),
        False,
        "long enough for the paper's picture: flat curves with qk-layernorm, and without it"
        ' critical rates that fall with size',
        'configs/results/night_qk_layernorm: 10,000 steps at 9.2K to 147K, one seed;'
        ' night_length: what holds there holds at 25,000 steps, but for critical rates',
    ),
    Regime(
        'cpu',
        ('9.2K', '37K', '147K', '590K'),
        False,
        'long enough to see attention logits grow and critical rates fall with size without'
        ' qk-layernorm, too short for flat curves with it',
        'configs/results/extrapolation: 400 steps at 9.2K to 9.4M, one seed',
    ),
)
