"""Coordinate check: slopes of synthetic activations, and of real ones under muP and standard."""

import functools

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import made_up

from stability import hyper
from stability.analysis import coordinate_check
from stability.analysis import results as results_lib
from stability.step import train_step
from stability.storage import files, run_files

WIDTHS = (32, 256)
STEPS = 6


def sweep_of(arms, widths):
  """Results of a sweep over widths and parameterizations."""
  rows = [
      {'run': f'{name},{width}', 'parameterization.name': name, 'model.width': width}
      for name in arms
      for width in widths
  ]
  return results_lib.Results(pd.DataFrame(rows), ['parameterization.name'], ['model.width'])


def slope(table, name, probe, step):
  chosen = table[
      (table['parameterization.name'] == name) & (table['probe'] == probe) & (table['step'] == step)
  ]
  return chosen['slope'].item()


def test_slopes_of_power_laws():
  results = sweep_of(['a', 'b'], (16, 32, 64, 128))
  powers = {'activation_rms/embedding': -0.5, 'block_0/output_rms': 0.25}
  rows = []
  for run, name, width in results.runs.itertuples(index=False):
    for step in (1, 2):
      gain = 1.0 if name == 'a' else 2.0
      grown = {probe: 3 * width ** (gain * step * power) for probe, power in powers.items()}
      rows.append({'run': run, 'step': step, 'loss': 1.0, 'log_z': 7.0} | grown)
  table = coordinate_check.slopes(results, pd.DataFrame(rows))
  assert list(table) == ['probe', 'parameterization.name', 'step', 'slope']
  assert len(table) == 2 * 2 * 2
  for probe, power in powers.items():
    for name, gain in (('a', 1), ('b', 2)):
      for step in (1, 2):
        assert slope(table, name, probe, step) == pytest.approx(gain * step * power)


def test_non_finite_activations_are_ignored():
  """A run that diverged or has no probe at a step does not count; a slope needs two widths."""
  results = sweep_of(['a'], (16, 32, 64))
  rms = [[2.0, 4.0, np.nan], [2.0, np.inf, np.nan]]  # by step and width
  rows = [
      {'run': run, 'step': step, 'loss': 1.0, 'block_0/output_rms': rms[step][i]}
      for i, run in enumerate(results.runs['run'])
      for step in (0, 1)
  ]
  [row] = coordinate_check.slopes(results, pd.DataFrame(rows)).to_dict('records')
  assert row['step'] == 0
  assert row['slope'] == pytest.approx(1)


def test_load_activations(tmp_path):
  rows = [
      [{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 2.0, 'activation_rms/embedding': 0.5}],
      [{'step': 2, 'loss': 2.0, 'block_0/output_rms': None, 'log_z': 1.0}],
  ]
  interventions = hyper.sweep('model.qk_norm', ['none'])
  names = made_up.write_sweep(
      tmp_path, widths=(16, 32), interventions=interventions, rates=(1e-2,), seeds=(0,)
  )
  for name, of_run in zip(names, rows, strict=True):
    files.write_lines(run_files.run_dir(tmp_path, name) / 'metrics.jsonl', of_run)
  table = coordinate_check.load_activations(tmp_path)
  assert list(table) == ['run', 'step', 'loss', 'activation_rms/embedding', 'block_0/output_rms']
  assert table['activation_rms/embedding'].tolist()[1] == 0.5
  assert len(table) == 3


@pytest.fixture(scope='module')
def trained(tiny, text):
  """Slopes over the first steps of real runs, at a constant learning rate."""
  # Optimization takes most of the time of a compile and does not change the result.
  compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})
  exponents = {'standard': 'none', 'mup': 'full_alignment', 'muparam_simple': 'none'}
  results = sweep_of(exponents, WIDTHS)
  rows = []
  for run, name, width in results.runs.itertuples(index=False):
    overrides = {
        'model.width': width,
        'model.depth': 1,
        'parameterization.name': name,
        'parameterization.exponents': exponents[name],
        'parameterization.base_width': WIDTHS[0],
        'schedule.shape': 'wsd',
        'schedule.warmup_steps': 0,
        'schedule.decay_steps': 0,
    }
    config = tiny(overrides)
    programs = train_step.programs(config.static, vocabulary_size=64)
    state = compiled(programs.init)(config.hparams)
    step = compiled(programs.steps['probed'])
    for _ in range(STEPS):
      state, metrics = step(text, state)
      rows.append({'run': run} | {name: float(value) for name, value in metrics.items()})
  return coordinate_check.slopes(results, pd.DataFrame(rows))


OUTPUTS = ['activation_rms/block_0/attention/output', 'activation_rms/block_0/mlp/output']


@pytest.mark.slow
@pytest.mark.parametrize('probe', OUTPUTS)
def test_muparam_keeps_activation_size(trained, probe):
  """The same limits as for muP below; it differs from standard in its learning rates only."""
  for step in range(1, STEPS + 1):
    assert abs(slope(trained, 'muparam_simple', probe, step)) < 0.3
  others = slope(trained, 'standard', probe, STEPS)
  assert others > slope(trained, 'muparam_simple', probe, STEPS) + 0.1


@pytest.mark.slow
@pytest.mark.parametrize('probe', [*OUTPUTS, 'block_0/output_rms'])
def test_mup_keeps_activation_size(trained, probe):
  """Slopes over a factor of 8 in width, with the same seed and batches, from the first update on.

  At the base width of 32, updates are larger than in the infinite-width limit, so muP's slopes are
  negative: |slope| < 0.3. The slopes of standard grow with every update, past 0.4 after five.
  """
  for name in ('mup', 'standard'):
    assert abs(slope(trained, name, probe, 1)) < 0.15  # before the first update
  for step in range(2, STEPS + 1):
    assert abs(slope(trained, 'mup', probe, step)) < 0.3
    assert slope(trained, 'standard', probe, step) > slope(trained, 'mup', probe, step) + 0.1
  assert slope(trained, 'standard', probe, STEPS) > 0.4


@pytest.mark.slow
def test_logit_slopes(trained):
  """Under muP, logits start smaller at larger widths and then lose that slope."""
  probe = 'activation_rms/logits'
  assert slope(trained, 'mup', probe, 1) == pytest.approx(-0.5, abs=0.1)
  assert slope(trained, 'standard', probe, 1) == pytest.approx(0, abs=0.1)
  assert slope(trained, 'mup', probe, STEPS) == pytest.approx(0, abs=0.2)
  assert slope(trained, 'standard', probe, STEPS) > 0.25


@pytest.mark.slow
def test_embedding_slopes(trained):
  """Under standard, the embedding is initialised with a standard deviation of 1/sqrt(width)."""
  probe = 'activation_rms/embedding'
  for step in range(1, STEPS + 1):
    assert abs(slope(trained, 'mup', probe, step)) < 0.05
    assert slope(trained, 'standard', probe, step) == pytest.approx(-0.5, abs=0.1)
