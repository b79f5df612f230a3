"""Steps of a run: what they depend on, when they stop, and that nothing is compiled twice."""

import itertools
import re

import jax
import numpy as np
import pytest

from stability import config as config_lib
from stability import variants
from stability.data import batches
from stability.devices.single_device import SingleDeviceLayout
from stability.model import transformer as transformer_lib
from stability.optim import schedules
from stability.step import objective as objective_lib
from stability.step import train_step


@pytest.fixture(scope='module')
def single(tiny, text):
  """A run of one block on one device, with compiled executables."""
  return layout_of(tiny({'model.depth': 1}), text)


def layout_of(run, text):
  programs = train_step.programs(run.static, vocabulary_size=64)
  return SingleDeviceLayout(programs, text, run.hparams)


def started(layout, run):
  """The state of a run before its first update."""
  return layout.insert(layout.empty(), 0, layout.init(run.hparams))


def trained(layout, run, steps):
  """The run's state on the host after some steps, and the metrics of the last."""
  state, fetch = layout.step(started(layout, run), 'quiet', steps)
  return layout.extract(state)[0], fetch.read()[0]


def leaves(state):
  """A state's arrays by path."""
  return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(state)}


def assert_same(left, right):
  """Bit for bit."""
  left, right = leaves(left), leaves(right)
  assert left.keys() == right.keys()
  for path in left:
    np.testing.assert_array_equal(left[path], right[path], err_msg=path)


# Hyperparameters, each with a value that must change a run.
CHANGED = {
    'seed': 1,
    'data.seed': 1,
    'model.logit_scale': 3.0,
    'model.qk_gain': 1.5,
    'model.attention_soft_cap': 0.5,
    'model.output_soft_cap': 0.5,
    'objective.z_loss': 1e-3,
    'objective.mu_loss': 1e-2,
    'optimizer.learning_rate': 2e-2,
    'optimizer.beta1': 0.8,
    'optimizer.beta2': 0.99,
    'optimizer.eps': 1e-4,
    'optimizer.clip_norm': 0.0,
    'optimizer.layer_rate_decay': 0.5,
    'optimizer.weight_decay': 1e-3,
    'parameterization.base_width': 8,
    'schedule.decay_steps': 5,
    'schedule.steps': 30,
    'schedule.warmup_steps': 3,
    'schedule.min_learning_rate': 5e-3,
}
# The options that give hyperparameters an effect, all at once so that one compilation suffices.
ON = {
    'model.qk_norm': 'fixed',
    'model.qk_gain': 1.0,
    'model.attention_soft_cap': 1.0,
    'model.output_soft_cap': 1.0,
    'objective.mu_loss': 1.0,
    'optimizer.layer_rate_decay': 0.9,
    'parameterization.name': 'mup',
    'parameterization.exponents': 'full_alignment',
    'schedule.shape': 'wsd',
    'schedule.decay_steps': 17,  # all steps but the warm-up and one
}
READ_IF_ON = (
    'model.logit_scale',
    'model.qk_gain',
    'model.attention_soft_cap',
    'model.output_soft_cap',
    'objective.mu_loss',
    'optimizer.layer_rate_decay',
    'parameterization.base_width',
    'schedule.decay_steps',
)


@pytest.fixture(scope='module')
def switched_on(tiny, text):
  return layout_of(tiny({'model.depth': 1} | ON), text)


def test_every_hyperparameter_is_listed():
  """The others are read by entries of tables, which have their own tests."""
  traced = {field for field, record in config_lib.FIELDS.items() if record.traced}
  entries = [entry for table in variants.TABLES.values() for entry in
             (table.values() if isinstance(table, variants.Choices) else table)]  # fmt: skip
  read = {field for entry in entries for field in entry.reads}
  assert CHANGED.keys() <= traced <= CHANGED.keys() | read
  assert read <= config_lib.FIELDS.keys()


def test_choices_match_the_tables():
  """A choice option that has a table accepts exactly its entries."""
  tables = {name: t for name, t in variants.TABLES.items() if isinstance(t, variants.Choices)}
  assert tables.keys() >= {'optimizer.name', 'model.norm', 'schedule.shape'}
  for option, table in tables.items():
    allowed = config_lib.FIELDS[option].allowed.removeprefix('one of ').split(', ')
    assert set(allowed) == set(table), option


@pytest.mark.slow
@pytest.mark.parametrize('field', CHANGED)
def test_every_hyperparameter_has_an_effect(single, switched_on, tiny, field):
  """After four updates, states differ by far more than rounding; before, only the seed matters."""
  layout, base = (switched_on, ON) if field in READ_IF_ON else (single, {})
  default, changed = tiny(base), tiny(base | {field: CHANGED[field]})
  a, b = (layout.init(run.hparams)['params']['head'] for run in (default, changed))
  assert np.array_equal(a, b) == (field != 'seed')
  a, b = (trained(layout, run, 4)[0]['params']['head'] for run in (default, changed))
  assert np.linalg.norm(a - b) > 1e-4 * np.linalg.norm(a)


def test_step_is_a_function_of_the_state(single, tiny):
  for field in ('step', 'params', 'optimizer'):
    member = trained(single, tiny(), 3)[0]
    other = trained(single, tiny(), 2)[0]
    states = [member, member | {field: other[field]}]
    results = [single.step(single.insert(single.empty(), 0, s), 'quiet')[0] for s in states]
    heads = [single.extract(state)[0]['params']['head'] for state in results]
    assert not np.array_equal(*heads), field


@pytest.fixture(scope='module')
def loss_on(tiny):
  """Cross-entropy of parameters on rows of tokens."""
  run = tiny({'model.depth': 1})
  network = transformer_lib.Transformer(run.static.model, 64)

  @jax.jit
  def loss(params, rows):
    logits = network.apply({'params': params}, rows[:, :-1], run.hparams)
    return objective_lib.cross_entropy(logits, rows[:, 1:])

  return lambda params, rows: float(loss(params, rows.astype(np.int32)))


def test_metrics_of_a_step(single, tiny, text, loss_on):
  """The loss is on the batch that the host draws for this step, before the update."""
  run = tiny({'objective.z_loss': 0.5})
  for steps in (1, 4):
    before = trained(single, run, steps - 1)[0] if steps > 1 else single.init(run.hparams)
    _, metrics = trained(single, run, steps)
    starts = batches.window_starts(
        np, 0, steps - 1, batch_size=4, sequence_length=16, tokens=len(text['text'])
    )
    rows = batches.gather(text['text'], starts, 16)
    assert metrics['loss'] == pytest.approx(loss_on(before['params'], rows), rel=1e-5)
    assert metrics['step'] == steps and metrics['diverged'] == 0
    rate = schedules.learning_rate(run.hparams, np.int32(steps), run.static)
    assert metrics['learning_rate'] == pytest.approx(float(rate), rel=1e-6)
    assert metrics['z_loss'] > 1  # 0.5 ln(64)^2, and not in the loss


def test_evaluation_is_only_cross_entropy(single, tiny, text, loss_on):
  run = tiny({'objective.z_loss': 0.5})
  params = single.init(run.hparams)['params']
  expected = [loss_on(params, rows) for rows in text['validation']]
  assert single.evaluate(started(single, run)) == [pytest.approx(np.mean(expected), rel=1e-5)]


def test_mu_centering_leaves_the_initial_head(tiny):
  """The mean output embedding is not 0 before the first update."""
  run = tiny({'model.depth': 0, 'model.output_centering': 'mean'})
  programs = train_step.programs(run.static, vocabulary_size=64)
  head = np.asarray(jax.jit(programs.init)(run.hparams)['params']['head'])
  assert np.abs(head.mean(1)).max() > 1e-3


def test_learns(single, tiny, text):
  run = tiny({'schedule.steps': 100})
  before = single.evaluate(started(single, run))[0]
  state, _ = single.step(started(single, run), 'quiet', 100)
  assert single.evaluate(state)[0] < before - 0.4


def test_probed_and_quiet_steps_make_the_same_update(single, tiny):
  """The states agree within the rounding of two executables, 1e-6 of a tensor's norm."""
  [member] = single.extract(single.step(started(single, tiny()), 'quiet', 3)[0])
  quiet, fetch = single.step(single.insert(single.empty(), 0, member), 'quiet')
  probed, probed_fetch = single.step(single.insert(single.empty(), 0, member), 'probed')
  quiet, probed = leaves(single.extract(quiet)[0]), leaves(single.extract(probed)[0])
  assert quiet.keys() == probed.keys()
  for path, value in quiet.items():
    error = np.linalg.norm(probed[path].astype(np.float64) - value)
    assert error <= 1e-6 * np.linalg.norm(value), path
  metrics, probed_metrics = fetch.read()[0], probed_fetch.read()[0]
  for name, value in metrics.items():
    assert probed_metrics[name] == pytest.approx(value, rel=1e-6), name


@pytest.mark.parametrize(
    'name, precision, of_process',
    [('highest', 'HIGHEST', 'bfloat16'), ('hardware', 'DEFAULT', None)],
)
def test_matmul_precision(tiny, text, name, precision, of_process):
  """Every matrix product states its precision, which a setting of the process does not change."""
  overrides = {'model.matmul_precision': name, 'model.depth': 1}
  run = tiny(overrides | {'probe.sharpness_every_steps': 20, 'probe.every_steps': 20})
  programs = train_step.programs(run.static, vocabulary_size=64)
  with jax.default_matmul_precision(of_process):
    state = jax.eval_shape(programs.init, run.hparams)
    traced = [jax.jit(program).lower(text, state) for program in programs.steps.values()]
    traced.append(jax.jit(programs.evaluate).lower(text, state, 0))
  assert len(traced) == 4
  for program in traced:
    lines = program.as_text().splitlines()  # products of vectors are optax's
    products = [line for line in lines if re.search(r'dot_general.*\(tensor<\d+x\d', line)]
    assert len(products) > 4
    assert all(f'precision = [{precision}, {precision}]' in line for line in products)


def test_new_hyperparameters_compile_nothing(tiny, text):
  """Hyperparameters are arguments of the executables that the layout has compiled."""
  run = tiny({'model.depth': 0})
  programs = train_step.programs(run.static, vocabulary_size=64)
  layout = SingleDeviceLayout(programs, text, run.hparams)
  events = []

  def listen(event, duration, **kwargs):
    del duration, kwargs
    events.append(event)

  compiles = '/jax/core/compile/backend_compile_duration'
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for rate, eps, warmup in itertools.product((1e-3, 1e-2, 1e-1), (1e-15, 1e-8), (0, 5)):
      overrides = {
          'model.depth': 0,
          'optimizer.learning_rate': rate,
          'optimizer.eps': eps,
          'schedule.warmup_steps': warmup,
      }
      state, fetch = layout.step(started(layout, tiny(overrides)), 'quiet', 2)
      fetch.read()
      state, fetch = layout.step(state, 'probed')
      fetch.read()
      layout.evaluate(state)
      layout.extract(state)
    assert compiles not in events
    jax.jit(lambda x: x + 1).lower(np.float32(0)).compile()
    assert compiles in events  # the listener notices compilations
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize('kind', ['quiet', 'probed'])
def test_finished_run_keeps_its_state(single, tiny, kind):
  short = tiny({'schedule.steps': 5})
  state, _ = single.step(started(single, short), 'quiet', 5)
  [after] = single.extract(state)
  assert after['step'] == 5
  state, _ = single.step(state, kind, 3)
  [later] = single.extract(state)
  assert_same(later, after)
  assert not later['diverged']


@pytest.mark.parametrize('kind', ['quiet', 'probed'])
def test_nonfinite_loss_ends_a_run(single, tiny, kind):
  """Except for `diverged`, the state stays that before the step; later steps change nothing."""
  healthy, _ = trained(single, tiny(), 3)
  broken = healthy | {'params': healthy['params'] | {'head': 1e38 * healthy['params']['head']}}
  state = single.insert(single.empty(), 0, broken)
  for steps in (1, 3):
    state, fetch = single.step(state, kind, steps)
    metrics = fetch.read()[0]
    assert metrics['diverged'] == 1 and not np.isfinite(metrics['loss'])
    assert_same(single.extract(state)[0], broken | {'diverged': np.bool(True)})


def test_diverged_run_does_not_continue(single, tiny):
  """The run stays diverged even if its loss is finite again."""
  healthy, _ = trained(single, tiny(), 3)
  over = healthy | {'diverged': np.bool(True)}
  state, fetch = single.step(single.insert(single.empty(), 0, over), 'quiet', 2)
  assert_same(single.extract(state)[0], over)
  assert fetch.read()[0]['diverged'] == 1


def test_excessive_learning_rate_diverges(single, tiny):
  """The run stops at the update that fails."""
  state, metrics = trained(single, tiny({'optimizer.learning_rate': 1e30}), 10)
  assert state['diverged'] and metrics['diverged'] == 1
  assert 0 < state['step'] < 10 and metrics['step'] == state['step'] + 1
