r"""Which of the arms nearest to the front are better than the baseline? The finals, over seeds.

The protocol is that of configs/leaderboard.py. The finalists are what `python -m launch.finalists
--workdir=runs/leaderboard` printed for the screening; their seeds are not those of the screening.
Two sizes: five seeds at the smaller, three at the larger. The larger one shows whether an effect
lasts, and what the best rate of the smaller one costs there (regret).

Measured in part at night scale: all arms at 37K, two at 590K (configs/README.md). At 37K, experts,
SOAP, Muon, cautious AdamW and AdEMAMix have lower losses than the baseline, SOAP, AdEMAMix and
WeSaR more headroom, and experts with a router bias less. Of the controls that must be worse, the
constant learning rate is, beta2 = 0.9999 is not. At 590K, WeSaR keeps most of its headroom, but its
loss is higher.

The first five finalists are trained once more on a text that is not source code:

  python -m launch.sweep --config=configs/leaderboard_finals.py:night --arms=NAME,NAME,... \
      --config.data.path=FOLDER --workdir=runs/leaderboard_finals_text

Time at night scale: 72 runs an arm, of a minute each at 37K and 6 at 590K, on one core: 1.7 hours
an arm on two. Experts and SOAP take several times as long: 35 to 40 hours in all (estimate).

  python -m launch.sweep --config=configs/leaderboard_finals.py --workdir=runs/leaderboard_finals
"""

from typing import Any

from ml_collections import ConfigDict

from configs import arms, leaderboard
from stability import config as config_lib
from stability import hyper

STEPS = 4_000  # of a run at night scale
SIZES = {
    'cpu': ('37K', '147K'),
    'night': ('37K', '590K'),
    'gpu': ('9.4M', '42M'),
    'paper': ('9.4M', '151M'),
}
SEEDS = ((1, 2, 3, 4, 5), (1, 2, 3))  # of the smaller and of the larger size
FINALISTS = (  # of the screening, nearest to the front first
    'experts, router bias',
    'Muon',
    'SOAP',
    'cautious AdamW',
    'AdEMAMix',
    'WeSaR',
    'experts',
    'schedule-free AdamW',
    'WSD',
    'embedding norm',
)

# Added to leaderboard.MORE_RATES: at 37K, AdEMAMix is stable at the highest rate of the screening.
MORE_RATES = {'AdEMAMix': (0, 1)}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all arms change."""
  return leaderboard.of_length(scale, STEPS)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x arm x learning rate x seed."""
  return points(scale)


def get_report(scale: str = 'cpu') -> dict[str, Any]:
  """The places of the arms, and the verdicts that controls must have."""
  return leaderboard.get_report(scale)


def points(scale: str, own: dict[str, dict[str, Any]] | None = None) -> list[hyper.Point]:
  """The finals, with arms of your own: name -> options that the arm changes."""
  fields = {name: arms.ARMS[name] for name in (arms.BASELINE, *FINALISTS)}
  fields |= {**leaderboard.FINAL_CONTROL_ARMS, **(own or {})}
  seeds = dict(zip(config_lib.for_scale(scale, SIZES), SEEDS, strict=True))
  return leaderboard.of_arms(scale, fields, seeds, more_rates=leaderboard.MORE_RATES | MORE_RATES)
