"""A made-up sweep on disk: plausible numbers, written through the code that writes real ones."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from configs import base
from stability import hyper
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.storage import files, run_files, sweeps

INITIAL_LOSS = 5.55
BIGRAM_LOSS = 2.48
STEPS = 300
WIDTHS = (16, 32, 64)
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)


def write_sweep(
    workdir: Path,
    *,
    widths: tuple[int, ...] = WIDTHS,
    interventions: list[hyper.Point] | None = None,
    seeds: tuple[int, ...] = (0, 1),
    rates: tuple[float, ...] = LEARNING_RATES,
    leave_out: tuple[int, ...] = (),
    results: dict[int, files.Json] | None = None,
) -> list[str]:
  """Writes a sweep whose loss is lowest near 1e-2 and rises above it, more without qk-norm.

  Args:
    workdir: an empty or absent folder.
    widths: widths of the model.
    interventions: points of the sweep; None stands for qk_norm layernorm and none.
    seeds: seeds of the runs.
    rates: learning rates.
    leave_out: positions of runs for which no files are written.
    results: position of a run -> entries that replace those of its made-up result.json.

  Returns:
    The names of the runs.
  """
  if interventions is None:
    interventions = hyper.sweep('model.qk_norm', ['layernorm', 'none'])
  points = hyper.product([
      hyper.sweep('model.width', widths),
      interventions,
      hyper.sweep('optimizer.learning_rate', rates),
      hyper.sweep('seed', seeds),
  ])
  runs = hyper.expand(base.get_config('cpu').to_dict(), points)
  data = {
      'path': 'data/0123456789abcdef',
      'tokenizer': 'bytes',
      'vocabulary_size': 256,
      'train_tokens': 11_700_000,
      'validation_tokens': 620_000,
      'bigram_loss': BIGRAM_LOSS,
      'unigram_loss': 3.41,
      'entropy_rate': None,
  }
  sweep = sweeps.Sweep(
      runs.fields,
      runs.configs,
      config_file='configs/quickstart.py',
      scale='cpu',
      overrides={'schedule.steps': STEPS},
      data=data,
      versions={'python': '3.11.7', 'jax': '0.10.2', 'flax': '0.12.8'},
  )
  sweeps.write_sweep(workdir, sweep)
  for position, (name, config) in enumerate(runs.configs.items()):
    if position not in leave_out:
      _write_run(run_files.run_dir(workdir, name), config, (results or {}).get(position, {}))
  return list(runs.configs)


def judged(workdir: Path) -> pd.DataFrame:
  """The verdicts on all claims for a sweep, finished or not."""
  results = results_lib.load_workdir(workdir)
  return registry.judge(results, results_lib.load_curves(workdir, registry.probes(results)))


def write_runs(workdir: Path, runs: hyper.Runs, data: files.Json | None = None) -> None:
  """Writes sweep.json and each config.json for runs that a test trains or writes itself."""
  sweep = sweeps.Sweep(
      runs.fields,
      runs.configs,
      config_file='x',
      scale='cpu',
      overrides={},
      data=data or {},
      versions={},
  )
  sweeps.write_sweep(workdir, sweep)


def _write_run(run: Path, config: files.Json, replaced: files.Json) -> None:
  width, rate = config['model']['width'], config['optimizer']['learning_rate']
  rng = np.random.default_rng([width, round(1e6 * rate), config['seed']])
  trained = config['model']['qk_norm'] == 'layernorm'
  decades = math.log10(rate / 0.012)
  best = 3.1 - 0.27 * math.log2(width / 8)
  slope = 0.09 if trained else 0.14 * math.log2(width / 4)
  final = best + (slope if decades > 0 else 0.45) * decades**2 + rng.normal(0, 0.02)
  diverged = not trained and width == 64 and rate == 1.0
  logit = 6 + 40 * rate if trained else 6 + 12 * (width / 16) ** 2.2 * (rate / 1e-2) ** 1.7
  steps = np.arange(10, STEPS + 1, 10)
  loss = final + (INITIAL_LOSS - final) * np.exp(-steps / 35) + rng.normal(0, 0.03, len(steps))
  if diverged:
    loss[12:] = np.nan

  def probes(step):
    logit_now = logit * (1 - math.exp(-step / 60))
    return {'block_0/attention_logit_max': logit_now, 'acted/clip_norm': float(not trained)}

  lines = [
      {
          'step': int(step),
          'tokens': int(step) * 1024,
          'loss': float(loss[i]) if np.isfinite(loss[i]) else None,
          'learning_rate': rate * (1 - step / STEPS),
          'gradient_norm': 0.5,
          'seconds': 0.06 * float(step),
          'tokens_per_second': 17_000.0,
      }
      | (probes(step) if i % 2 else {})
      for i, step in enumerate(steps)
  ]
  files.write_atomic(
      run / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in lines)
  )
  result = run_files.Result(
      status='diverged' if diverged else 'done',
      initial_loss=INITIAL_LOSS + rng.normal(0, 0.003),
      final_loss=None if diverged else final,
      parameters=12 * config['model']['depth'] * width**2,
      steps=STEPS,
      tokens=STEPS * 1024,
      seconds=18.0,
  )
  run_files.write_result(run, dataclasses.replace(result, **replaced))
