"""What widens the range of learning rates, and what does it cost? All arms under one protocol.

This is the screening; configs/leaderboard_finals.py has the finals, configs/leaderboard_pairs.py
pairs of the best arms. The protocol, fixed before any run:

  Arms       all of configs/arms.py, each a change of one thing in AdamW with qk-layernorm and
             z-loss; one size, one seed, the same order of batches and the same initial seed.
  Rates      nine, half a decade apart: the window of the scale and two above it, or the arm's own
             where a rate means something else (arms.SHIFTS, MULTIPLIERS). Where the loss is lowest
             at an end of the grid, or the critical rate is above it, MORE_RATES extends it, until
             this is no longer so; nothing else is changed.
  Measures   each against the arm's own best loss, since a better arm must not make the others look
             unstable; one initial loss for all, that of the baseline. Nothing that is relative to
             an optimum at an end of the grid counts. The columns are in configs/README.md.
  Length     2,000 steps, which configs/length.py:night chose before any arm was looked at: at 37K,
             the claims on LR sensitivity have the verdicts of 10,000 steps from 1,000 on, and
             qk-layernorm lowers LR sensitivity by a factor of 2.2 at 2,500 steps, of 3.1 at 10,000.
             2,500 steps of all arms would take more than five hours of two cores.
  Controls   beta2 = 0.9999, which is known to be bad and must be worse; clipping that never acts,
             which must be inert; in the finals, the baseline under other seeds, which must tie,
             and a constant learning rate, which must be worse.
  Finalists  the 10 arms nearest to the Pareto front of best loss and headroom. An arm's distance is
             the number of bands, of 0.02 nats and of 0.15 decades, by which it would have to gain
             in loss and headroom at once for no arm to be better in both; of equal distances, the
             lower loss. Inert arms, controls and arms that lack runs or need more rates are left
             out. `python -m launch.finalists --workdir=DIR` prints them.
  Finals     give verdicts, from fresh seeds: paired differences from the baseline by seed, the
             variance between seeds pooled over arms but controls, 90 % intervals. A tie is an
             interval within 0.02 nats, or 0.15 decades of headroom; else an arm is better or worse
             if its difference passes Holm's procedure over the finalists; else it is undecided.

Amended on 29 November 2026, after the first 26 runs, of which only the losses of the baseline had
been looked at: it was stable at all seven rates of the first version, so that headroom would have
told where the grid ends. At 1 its loss is 2.24, where the critical one is 1.80. What is relative to
an optimum at an end no longer counts, and controls no longer add to the variance between seeds.

Amended again that day, after 240 runs, none of them of an arm that changed, their losses not looked
at: the memories of AdEMAMix and the tail average are a tenth of the run; a shifted window shifts
the end of the schedule; DyT scales the embedding, WeSaR includes embedding and head, Prodigy has
its own beta2, Adafactor is factored at all sizes; pairs that cannot be combined are left out.

Amended a third time that day, after 680 runs, again without a look at losses: AGC no longer clips
the head, the scale of nGPT's MLP learns at its published rate, and QKV-norm drops the norm before
attention, all as in their sources; their runs were repeated.

Amended a fourth time, on 29 November 2026, before any finals were run: an arm whose differences by
seed vary more than the pooled variance says is given a larger variance. It is the mean of the arm's
own and the pooled one, weighted by degrees of freedom; the pooled one counts 4. With the pooled one
alone, an arm of 4 times the standard deviation of 11 others and no difference would be called
better or worse in 19 to 20 % of finals with 5 or 3 seeds, now in 5 to 9 %. The screening has one
seed and is as before.

Amended a fifth time that day, after the screening: an arm is inert by its losses up to the critical
rate, the higher one of arm and baseline. Above, runs whose programs round differently end up to
0.13 nats apart, and so the control that must be inert was not. The finalists are the same.

Amended a sixth time, on 30 November 2026, after the screening: Prodigy safeguards its estimate in
the warm-up, as its authors advise, and Muon on a spectral sphere starts on the sphere, as in its
source. Their runs were repeated. Prodigy is no finalist any more, embedding norm is.

Amended a seventh time, on 30 November 2026, after 381 runs of the finals, whose verdicts on losses
stay as they were: differences from the baseline are those of the mean curves over seeds, and their
scatter by seed is the jackknife's. Each seed's own lowest loss favours arms that are good at
several rates, by up to 0.008 nats in simulations, and its own best rate jumps, so that headroom was
mostly noise. Arms that lack runs count as tests of Holm's procedure that are not passed, not in the
pooled variance and not on the front; a control is inert only once it has all its runs.

Amended an eighth time, on 30 November 2026, after 583 runs of the finals, in which beta2 = 0.9999
ties at 37K, and before any run of the new arm: finals and pairs have a second control that must be
worse, a learning rate that stays constant after the warm-up. Without a decay, losses stay higher
(arXiv 2405.18392, section 3); at 37K, this one must be more than 0.02 nats above the baseline's.

Arms of one size have the same width and depth. Experts have 5.7 times the parameters, of which a
token uses 1.7 times those of the baseline; the gate of gated attention, 8 %, is not counted.

Measured at night scale (configs/README.md): of 86 arms, 46 are within both bands of the baseline.
On the front are experts with router bias, Muon, SOAP, cautious AdamW, AdEMAMix and WeSaR.
The control beta2 = 0.9999 is only 0.008 nats above the baseline.

Time at night scale: 804 runs; they took 5.8 hours on two busy cores. At cpu scale about an hour
(estimate).

  python -m launch.sweep --config=configs/leaderboard.py --workdir=runs/leaderboard

An arm of your own stands beside them, or, with --arms, beside the baseline and those you name
(configs/README.md has an example).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import arms, grid
from stability import config as config_lib
from stability import hyper

STEPS = 2_000  # of a run at night scale
# Above the base width, at which muParam and the embedding's rate are those of the baseline.
SIZES = {'cpu': '37K', 'night': '83K', 'gpu': '9.4M', 'paper': '9.4M'}
SEEDS = (0,)
OTHER_SEEDS = 10  # what is added to the seeds of AGAIN, which the finals have

AGAIN, BAD, NOTHING = 'AdamW again', 'beta2 0.9999', 'clipped at 1e9 deviations'
CONSTANT = 'constant rate'
CONTROL_ARMS = {BAD: arms.OPTIMIZERS[BAD], NOTHING: {'optimizer.update_clip': 1e9}}
FINAL_CONTROL_ARMS = {AGAIN: {}, CONSTANT: arms.CONSTANT_RATE, **CONTROL_ARMS}
CONTROLS = {  # the verdicts that they must have
    AGAIN: 'tie',
    BAD: 'worse',
    CONSTANT: 'worse',
    NOTHING: 'inert',
}

COUNT = 9  # learning rates
# Methods that find the rate themselves: COUNT multipliers of it from here on, at every scale.
MULTIPLIERS = {'Prodigy': 1e-2, 'DoWG': 1e-2}
# Arm or pair -> how many rates are added below and above its window, because its optimum was at
# that end. Controls have those of the baseline.
MORE_RATES = {'WeSaR': (0, 2), 'Prodigy': (0, 1)}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all arms change, with the run length of a screening."""
  return of_length(scale, STEPS)


def of_length(scale: str, steps: int) -> ConfigDict:
  """configs/grid.py with this run length at night scale and all that is a part of it."""
  c = grid.get_config(scale)
  if scale == 'night':
    c.schedule.steps = steps
    c.schedule.warmup_steps = steps // 20
    c.schedule.decay_steps = steps // 5
    c.evaluation.average_steps = steps // 10
    c.optimizer.beta3 = 1 - 10 / steps  # of AdEMAMix: a memory of a tenth of the run
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Arm x learning rate."""
  return points(scale)


def get_report(scale: str = 'cpu') -> dict[str, Any]:
  """The places of the arms, and the verdicts that controls must have."""
  del scale
  places = {name: place for place, of_place in arms.PLACES.items() for name in of_place}
  return {'places': places, 'controls': CONTROLS}


def points(scale: str, own: Mapping[str, Mapping[str, Any]] | None = None) -> list[hyper.Point]:
  """The screening, with arms of your own: name -> options that the arm changes."""
  size = config_lib.for_scale(scale, SIZES)
  return of_arms(scale, {**arms.ARMS, **CONTROL_ARMS, **(own or {})}, {size: SEEDS})


def of_arms(
    scale: str,
    fields: Mapping[str, Mapping[str, Any]],
    seeds: Mapping[str, Sequence[int]],
    parts: Mapping[str, Sequence[str]] = {},
    more_rates: Mapping[str, tuple[int, int]] | None = None,
) -> list[hyper.Point]:
  """Size x arm x learning rate x seed.

  Args:
    scale: of the window of learning rates.
    fields: name of an arm -> the options that it changes; the first is the baseline.
    seeds: size -> seeds.
    parts: name of an arm that combines others -> those, on which its window depends.
    more_rates: as MORE_RATES, which is the default.
  """
  if more_rates is None:
    more_rates = MORE_RATES
  return hyper.chain([
      hyper.product([
          grid.sizes(scale, [size]),
          [{'arm': name, **changed}],
          _window(scale, name, parts.get(name, (name,)), more_rates),
          hyper.sweep('seed', [seed + OTHER_SEEDS * (name == AGAIN) for seed in of_size]),
      ])
      for size, of_size in seeds.items()
      for name, changed in fields.items()
  ])


def _window(
    scale: str, name: str, parts: Sequence[str], more_rates: Mapping[str, tuple[int, int]]
) -> list[hyper.Point]:
  """The learning rates of an arm, or of several together, whose windows are shifted by all."""
  of_arms = [name, *parts] if name not in CONTROLS else [arms.BASELINE]
  below, above = (max(ends) for ends in zip(*(more_rates.get(arm, (0, 0)) for arm in of_arms)))
  first, shift = config_lib.for_scale(scale, grid.LOWEST), 0
  for part in parts:
    if part in MULTIPLIERS:
      first = MULTIPLIERS[part]
    else:
      shift += arms.SHIFTS.get(part, 0)
  rates = grid.rates_from(first, shift - below, COUNT + below + above)
  return hyper.product([[grid.schedule_floor(shift)], rates])
