"""Synthetic sweeps with known laws: power laws for critical learning rates and attention logits."""

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis.prediction import observations
from stability.analysis.results import LOGIT, Results

SIZES = (9_216, 36_864, 82_944, 147_456, 589_824)  # the largest has four times the second largest
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
INITIAL = 5.5
STEPS = (20, 40, 60, 80, 100)
EPS = 1e-8


def critical_rate(parameters, *, at_10k=0.4, power=-0.35):
  """The critical learning rate of a size: a power law."""
  return at_10k * (parameters / 1e4) ** power


def log_logit(parameters, rate, step=100):
  """log10 of the highest attention logit up to a step; early in training runs hardly differ."""
  final = 4.0 + np.log10(rate / critical_rate(parameters))
  return 0.7 + (max(final, 0.75) - 0.7) * min(1.0, step / 60)


def gradient_rms(parameters, rate):
  """The gradient RMS at the end of training: a power law."""
  return 1e-4 * (parameters / 1e4) ** -0.5 * (rate / 1e-2) ** -0.8


def sweep(
    rng, *, sizes=SIZES, rates=RATES, seeds=(0,), noise=0.05, interventions=('none',), **law
):
  """The results and curves of a sweep.

  Args:
    rng: generator of the noise.
    sizes: parameter counts.
    rates: learning rates.
    seeds: seeds of the runs.
    noise: standard deviation of the critical rate and the logits over runs, in decades.
    interventions: values of model.qk_norm; all follow the same laws.
    law: arguments of critical_rate.
  """
  rows, curves = [], []
  for qk_norm in interventions:
    for parameters in sizes:
      best = 4.0 - 0.4 * np.log10(parameters)
      for seed in seeds:
        critical = critical_rate(parameters, **law) * 10 ** rng.normal(0, noise)
        for rate in rates:
          name = f'{qk_norm}, {parameters}, {rate}, {seed}'
          excess = np.log10(rate / critical)  # decades
          final = best + 0.02 * abs(np.log10(rate / rates[0]))
          # The loss exceeds the best one by the margin at the critical rate itself.
          final += instability.MARGIN * (INITIAL - best) * (10 ** min(excess, 0.9) - 0.1)
          rows.append({
              'run': name,
              'status': 'done',
              'parameters': parameters,
              'learning_rate': rate,
              'seed': seed,
              'initial_loss': INITIAL,
              'final_loss': final,
              'model.qk_norm': qk_norm,
              'optimizer.eps': EPS,
              'schedule.warmup_steps': 40,
          })
          gradient = gradient_rms(parameters, rate)
          level = rng.normal(0, noise)
          for step in STEPS:
            logit = log_logit(parameters, rate, step) + level + rng.normal(0, noise / 2)
            curves.append({
                'run': name,
                'step': step,
                'loss': final,
                LOGIT: 10**logit,
                observations.GRADIENT_RMS: gradient * 10 ** rng.normal(0, noise),
                observations.CRITICAL_SHARPNESS: np.nan,
                observations.PRECONDITIONED_SHARPNESS: np.nan,
            })
  runs = pd.DataFrame(rows).astype({'parameters': 'Int64'})
  return Results(runs, ['model.qk_norm'], []), pd.DataFrame(curves)


def bowls(
    rng,
    critical,
    *,
    sizes=SIZES,
    rates=RATES,
    seeds=(0,),
    headroom=0.8,
    noise=0.01,
    fields=None,
):
  """The results of a sweep whose loss is a bowl over log learning rate, and curves without probes.

  Args:
    rng: generator of the noise.
    critical: parameters -> critical learning rate, where the loss exceeds the best by the margin.
    sizes: parameter counts.
    rates: learning rates.
    seeds: seeds of the runs.
    headroom: decades from the best learning rate to the critical one.
    noise: standard deviation of the final loss, in nats.
    fields: field -> value: the arm.
  """
  rows = []
  for parameters in sizes:
    best = 4.0 - 0.4 * np.log10(parameters)
    margin = instability.MARGIN * (INITIAL - best)
    for rate in rates:
      above_best = np.log10(rate / critical(parameters)) + headroom
      steepness = margin / headroom**2 * (1.0 if above_best > 0 else 0.3)
      rows.extend(
          {
              'run': f'{fields}, {parameters}, {rate}, {seed}',
              'status': 'done',
              'parameters': parameters,
              'learning_rate': rate,
              'seed': seed,
              'initial_loss': INITIAL,
              'final_loss': best + steepness * above_best**2 + rng.normal(0, noise),
              **(fields or {}),
          }
          for seed in seeds
      )
  runs = pd.DataFrame(rows).astype({'parameters': 'Int64'})
  curves = pd.DataFrame(columns=['run', 'step', 'loss', *observations.PROBES], dtype=float)
  return Results(runs, list(fields or {}), []), curves
