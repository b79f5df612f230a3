"""Layouts: a run does not depend on its slot, its neighbours or how its steps are chunked."""

import jax
import numpy as np
import pytest

from stability.devices.single_device import SingleDeviceLayout
from stability.devices.vmapped import VmappedLayout
from stability.step import train_step

pytestmark = pytest.mark.slow

ROW = [
    {'optimizer.learning_rate': rate, 'seed': seed}
    for rate, seed in [(1e-3, 0), (1e-2, 0), (1e-1, 1), (1.0, 2), (1e-2, 3)]
]


def same(left, right) -> bool:
  """Whether two trees agree bit for bit."""
  pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
  return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


@pytest.fixture(scope='module')
def programs(tiny):
  return train_step.programs(tiny().static, vocabulary_size=64)


@pytest.fixture(scope='module')
def single(programs, text, tiny):
  return SingleDeviceLayout(programs, text, tiny().hparams)


@pytest.fixture(scope='module')
def population(programs, text, tiny):
  return VmappedLayout(programs, text, tiny().hparams, jax.devices()[:2], members=3)


def started(layout, runs):
  """A state with runs in the slots that `runs` names."""
  state = layout.empty()
  for slot, run in runs.items():
    state = layout.insert(state, slot, layout.init(run.hparams))
  return state


def trained(layout, runs, steps=7):
  """The states of the runs and their metrics after some steps."""
  state, fetch = layout.step(started(layout, runs), 'quiet', steps)
  rows = fetch.read()
  members = layout.extract(state)
  return {slot: (members[slot], rows[slot]) for slot in runs}


def test_run_alone_and_in_population(population, tiny):
  row = [tiny(overrides) for overrides in ROW]
  together = trained(population, dict(enumerate(row)))
  for slot, run in enumerate(row):
    other_slot = population.width - 1 - slot
    alone = trained(population, {other_slot: run})
    assert same(alone[other_slot], together[slot])


@pytest.mark.slow
def test_muon_in_population(tiny, text):
  """Muon's matrix products are batched over the runs."""
  overrides = {'optimizer.name': 'muon', 'model.depth': 1, 'probe.every_steps': 0}
  row = [tiny(overrides | member) for member in ROW[:2]]
  programs = train_step.programs(row[0].static, vocabulary_size=64)
  layout = VmappedLayout(programs, text, row[0].hparams, jax.devices()[:1], members=2)
  together = trained(layout, dict(enumerate(row)), steps=3)
  for slot, run in enumerate(row):
    assert same(trained(layout, {1 - slot: run}, steps=3)[1 - slot], together[slot])
  assert together[0][1]['loss'] != together[1][1]['loss']


def test_runs_differ(population, tiny):
  together = trained(population, {slot: tiny(ROW[slot]) for slot in range(len(ROW))})
  losses = [metrics['loss'] for _, metrics in together.values()]
  assert len(set(losses)) == len(ROW)


@pytest.mark.slow
def test_eight_devices(programs, text, tiny):
  layout = VmappedLayout(programs, text, tiny().hparams, jax.devices(), members=1)
  assert layout.width == 8
  row = [tiny({'optimizer.learning_rate': 10.0 ** (-n / 2)}) for n in range(8)]
  together = trained(layout, dict(enumerate(row)), steps=3)
  for slot in (0, 3, 7):
    assert same(trained(layout, {7 - slot: row[slot]}, steps=3)[7 - slot], together[slot])


def test_single_device_and_population(single, population, tiny):
  # Executables may round differently; a low learning rate keeps that from growing.
  run = tiny({'optimizer.learning_rate': 1e-3})
  alone, metrics = trained(single, {0: run})[0]
  member, member_metrics = trained(population, {4: run})[4]
  for a, b in zip(jax.tree.leaves(alone['params']), jax.tree.leaves(member['params'])):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  assert metrics['loss'] == pytest.approx(member_metrics['loss'], rel=1e-5)


@pytest.mark.parametrize('layout', ['single', 'population'])
def test_chunks(layout, tiny, request):
  layout = request.getfixturevalue(layout)
  whole, _ = layout.step(started(layout, {0: tiny()}), 'quiet', 5)
  whole = layout.extract(whole)[0]
  parts = started(layout, {0: tiny()})
  for steps in (1, 3, 1):
    parts, _ = layout.step(parts, 'quiet', steps)
  assert same(layout.extract(parts)[0], whole)
  assert whole['step'] == 5


@pytest.mark.parametrize('layout', ['single', 'population'])
def test_extract_and_insert(layout, tiny, request):
  layout = request.getfixturevalue(layout)
  straight = trained(layout, {0: tiny()}, steps=6)[0]
  state, _ = layout.step(started(layout, {0: tiny()}), 'quiet', 4)
  member = layout.extract(state)[0]
  slot = layout.width - 1
  state, fetch = layout.step(layout.insert(layout.empty(), slot, member), 'quiet', 2)
  assert same((layout.extract(state)[slot], fetch.read()[slot]), straight)


def test_divergence(population, tiny):
  good, bad = tiny(), tiny({'optimizer.learning_rate': 1e30})
  together = trained(population, {0: bad, 1: good, 2: bad, 5: bad})
  assert together[0][0]['diverged'] and together[0][1]['diverged']
  assert together[0][0]['step'] < 7
  assert same(together[1], trained(population, {1: good})[1])
  assert not together[1][0]['diverged']


def test_finished_run_is_unchanged(population, tiny):
  short = tiny({'schedule.steps': 4, 'schedule.warmup_steps': 0})
  after_4, after_9 = (trained(population, {0: short, 1: tiny()}, steps=n) for n in (4, 9))
  assert after_9[0][0]['step'] == 4 and after_9[1][0]['step'] == 9
  assert same(after_4[0][0], after_9[0][0])


@pytest.mark.parametrize('layout', ['single', 'population'])
def test_evaluate(layout, programs, text, tiny, request):
  layout = request.getfixturevalue(layout)
  runs = {slot: tiny({'seed': slot}) for slot in range(min(layout.width, 3))}
  losses = layout.evaluate(started(layout, runs))
  interrupted = iter([False, True])  # before the second of two batches
  assert layout.evaluate(started(layout, runs), lambda: next(interrupted)) is None
  for slot, run in runs.items():
    state = layout.init(run.hparams)
    batches = [programs.evaluate(text, state, np.int32(i)) for i in range(2)]
    assert losses[slot] == pytest.approx(np.mean(batches), rel=1e-5)
  assert len(set(losses[: len(runs)])) == len(runs)


@pytest.mark.parametrize('layout', ['single', 'population'])
def test_probed_step(layout, tiny, request):
  layout = request.getfixturevalue(layout)
  run = tiny({'optimizer.eps': 1e-3})  # rounding of tiny gradients does not turn updates around
  quiet, fetch = layout.step(started(layout, {0: run}), 'quiet')
  probed, probed_fetch = layout.step(started(layout, {0: run}), 'probed')
  row, probed_row = fetch.read()[0], probed_fetch.read()[0]
  assert row == pytest.approx({name: probed_row[name] for name in row}, rel=1e-6)
  assert 'block_0/attention_logit_max' in probed_row
  for a, b in zip(*(jax.tree.leaves(layout.extract(s)[0]['params']) for s in (quiet, probed))):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # two executables, two roundings
