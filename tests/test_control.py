"""Stepping in: each action on a run that trains, its records, its refusals, replays and resumes."""

import json
import time

import jax
import pytest

from configs import base
from stability import actions, alarms, checkpoint, control, hyper, member, population
from stability import config as config_lib
from stability import workdir as workdir_lib
from stability.data import tokens

FIELDS = {
    'data.batch_size': 4,
    'data.sequence_length': 16,
    'data.validation_batches': 2,
    'data.source': 'synthetic',
    'model.width': 16,
    'model.depth': 1,
    'optimizer.learning_rate': 1e-2,
    'schedule.steps': 24,
    'schedule.warmup_steps': 2,
    'log.every_steps': 2,
    'probe.every_steps': 4,
    'checkpoint.every_steps': 6,
    'checkpoint.keep': 9,
}
WALL_CLOCK = {'seconds', 'tokens_per_second', 'time'}
RATE = 'optimizer.learning_rate'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of token files, shared by the sweeps."""
  directory = tmp_path_factory.mktemp('data')
  config = base.get_config().data
  config.source = 'synthetic'
  return tokens.prepare(config, directory, 16)


LAYOUTS = {}


@pytest.fixture(autouse=True)
def one_layout_for_all(monkeypatch):
  """Three devices; of configs that only the host reads differently, one layout, compiled once."""
  make, devices = population.make_layout, jax.local_devices()[:3]

  def cached(workdir, sweep, static, example):
    key = static.parallel.layout
    if key not in LAYOUTS:
      LAYOUTS[key] = make(workdir, sweep, static, example)
    return LAYOUTS[key]

  monkeypatch.setattr(population, 'make_layout', cached)
  monkeypatch.setattr(population.jax, 'local_devices', lambda: devices)


@pytest.fixture
def sweep(tmp_path, data):
  """A function that writes a sweep of one run, or of the given rates -> its runs' folders."""

  def write(rates=(1e-2,), **fields):
    flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
    runs = hyper.expand(config_lib.unflatten(flat), hyper.sweep(RATE, rates))
    workdir = tmp_path / f'sweep-{len(list(tmp_path.iterdir()))}'
    about = {'path': str(data), **tokens.open_tokens(data).meta}
    workdir_lib.write_sweep(
        workdir, runs, config_file='x', scale='cpu', overrides={}, data=about, versions={}
    )
    return [workdir_lib.run_dir(workdir, name) for name in runs.configs]

  return write


class Killed(BaseException):
  """As if the process had died."""


@pytest.fixture
def at(monkeypatch):
  """A function that does something when a run comes to a step, `killed` after its actions."""
  todo = {}
  act = population.Population._act

  def acting(self):
    found = [(m.folder, m.step) for m in self._members.values() if (m.folder, m.step) in todo]
    doing = [do for key in found for do in todo.pop(key)]
    for do in doing:
      if do is not killed:
        do()
    act(self)
    if killed in doing:
      killed()

  monkeypatch.setattr(population.Population, '_act', acting)
  return lambda run, step, *do: todo.setdefault((run, step), []).extend(do)


def asks(run, action, **arguments):
  return lambda: actions.request(run, {'action': action, **arguments}, 'ann', 'to see')


def killed():
  raise Killed


def train(*runs, paused=None):
  """Trains runs of one sweep as a worker does; returns those left paused."""
  workdir = runs[0].parent.parent
  waiting = iter(run.name for run in runs)
  paused = {} if paused is None else paused
  population.train_population(
      workdir, workdir_lib.read_sweep(workdir), next(waiting), lambda: next(waiting, None), paused
  )
  for run in runs:
    result = workdir_lib.read_result(run)
    assert result is None or result['error'] is None, result['error']
  return paused


def numbers(run):
  """The lines and the result of a run, without what the clock says."""
  lines = [*workdir_lib.read_metrics(run), workdir_lib.read_result(run)]
  return [{key: line[key] for key in line if key not in WALL_CLOCK} for line in lines]


def told(run):
  """(action, step, by) of each record."""
  return [(r['action'], r['step'], r['by']) for r in actions.read(run)]


def by_step(run):
  return {line['step']: line for line in workdir_lib.read_metrics(run)}


@pytest.fixture
def replayed(sweep):
  """A function that trains a run's config and actions anew -> its folder."""

  def again(run, **fields):
    (copy,) = sweep(**fields)
    workdir_lib.write_lines(copy / 'actions.jsonl', actions.done(actions.read(run)))
    train(copy)
    return copy

  return again


def test_a_run_left_alone_writes_no_actions(sweep):
  (run,) = sweep()
  assert train(run) == {}
  assert workdir_lib.read_result(run)['status'] == 'done'
  assert not (run / 'actions.jsonl').exists()


def test_set_changes_the_course_from_its_step_on(sweep, at, replayed):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 8, asks(run, 'set', changes={RATE: 1e-3}))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  for step in (2, 4, 6, 8):
    assert ours[step]['loss'] == theirs[step]['loss']
  assert ours[10]['learning_rate'] == pytest.approx(theirs[10]['learning_rate'] / 10, rel=0.05)
  assert ours[12]['loss'] != theirs[12]['loss']
  (record,) = actions.read(run)
  assert told(run) == [('set', 8, 'ann')] and record['why'] == 'to see'
  assert record['before']['hyperparameters'][RATE] == 1e-2 and record['before']['step'] == 8
  assert actions.requests(run) == []
  assert numbers(replayed(run)) == numbers(run)


def test_skip_gives_the_batches_that_come_later(sweep, at, replayed):
  """With a learning rate of next to nothing, a loss is that of its batch."""
  still = {'schedule.min_learning_rate': 1e-12, 'optimizer.weight_decay': 0.0}
  plain, run = sweep([1e-12], **still)[0], sweep([1e-12], **still)[0]
  train(plain)
  at(run, 8, asks(run, 'skip', steps=6))
  train(run)
  ours, theirs = by_step(run), by_step(plain)
  assert ours[8]['loss'] == theirs[8]['loss']
  for step in (10, 14, 18):
    assert ours[step]['loss'] == pytest.approx(theirs[step + 6]['loss'], abs=1e-5)
    assert ours[step]['loss'] != pytest.approx(theirs[step]['loss'], abs=1e-4)


def test_pause_frees_the_slot_and_continue_goes_on_bit_for_bit(sweep, at):
  plain, (run, other) = sweep()[0], sweep([1e-2, 1e-3])
  train(plain)
  at(run, 8, asks(run, 'pause'))
  paused = train(run, other)
  assert list(paused) == [run.name] and workdir_lib.read_result(run) is None
  assert workdir_lib.read_result(other)['status'] == 'done'
  assert train(run) == paused  # a worker started anew leaves it as it is
  asks(run, 'continue')()
  assert train(run, paused=paused) == {}
  assert numbers(run) == numbers(plain)
  assert told(run) == [('pause', 8, 'ann'), ('continue', 8, 'ann')]


def test_stop_ends_with_a_result_that_counts_nowhere(sweep, at):
  (run,) = sweep()
  at(run, 8, asks(run, 'stop'))
  train(run)
  result = workdir_lib.read_result(run)
  assert (result['status'], result['steps']) == ('stopped', 8)
  assert 0 < result['final_loss'] < result['initial_loss']
  assert max(by_step(run)) == 8


def test_stop_of_a_paused_run(sweep, at):
  (run,) = sweep()
  at(run, 8, asks(run, 'pause'))
  paused = train(run)
  asks(run, 'stop')()
  assert train(run, paused=paused) == {}
  assert workdir_lib.read_result(run)['steps'] == 8


def test_a_rewind_goes_back_and_keeps_what_it_cuts(sweep, at, replayed):
  """With nothing changed, the same steps come again."""
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 16, asks(run, 'rewind', to=6))
  train(run)
  assert numbers(run) == numbers(plain)
  (record,) = actions.read(run)
  cut = workdir_lib.read_lines(run / record['cut'])
  assert [line['step'] for line in cut] == [8, 10, 12, 14, 16]
  assert cut[0]['loss'] == by_step(plain)[8]['loss']
  assert numbers(replayed(run)) == numbers(run)


def test_a_rewind_with_the_recipe(sweep, at, replayed):
  (run,) = sweep()
  changes = {RATE: 3e-3}
  at(run, 16, asks(run, 'rewind', to=0, skip=16, changes=changes))
  at(run, 20, asks(run, 'set', changes={'optimizer.clip_norm': 0.5}))
  train(run)
  rates = [line['learning_rate'] for line in workdir_lib.read_metrics(run)]
  assert max(rates) == pytest.approx(3e-3)
  assert [step for step in by_step(run)] == list(range(2, 25, 2))
  assert numbers(replayed(run)) == numbers(run)


def test_a_rewind_without_its_checkpoint_is_refused(sweep, at):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 16, asks(run, 'rewind', to=7), asks(run, 'rewind', to=20))
  train(run)
  reasons = [record['refused'] for record in actions.read(run)]
  assert reasons[0] == 'rewind: to 7: no such checkpoint; there are 0, 6, 12'
  assert 'must not be above the present step, 16' in reasons[1]
  assert numbers(run) == numbers(plain)


def test_a_fork_is_a_run_of_its_own(sweep, at, replayed):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 8, asks(run, 'fork', changes={RATE: 1e-3}))
  train(run)
  assert numbers(run) == numbers(plain)
  workdir = run.parent.parent
  (name,) = workdir_lib.read_forks(workdir)
  assert name == f'{run.name}+fork1'
  fork = workdir_lib.run_dir(workdir, name)
  train(fork)
  same = sweep()[0]
  at(same, 8, asks(same, 'set', changes={RATE: 1e-3}))
  train(same)
  assert numbers(fork) == numbers(same) != numbers(plain)
  assert numbers(replayed(fork)) == numbers(fork)  # without its parent's state
  workdir_lib.write_results(workdir)
  assert name in (workdir / 'results.csv').read_text()
  assert [row['run'] for row in workdir_lib.read_results(workdir)] == [run.name]


def test_checkpoint_now(sweep, at):
  (run,) = sweep()
  at(run, 8, asks(run, 'checkpoint'))
  train(run)
  assert checkpoint.good_steps(run) == [6, 8, 12, 18]


@pytest.mark.parametrize('kill', [8, 10, 12, 14, 22])
def test_killed_after_actions_and_resumed(sweep, at, kill):
  """Whatever came after the last checkpoint is taken again at its step."""
  twin, run = sweep()[0], sweep()[0]
  for each in (twin, run):
    at(each, 8, asks(each, 'set', changes={RATE: 5e-3}))
    at(each, 10, asks(each, 'skip', steps=3))
    at(each, 14, asks(each, 'rewind', to=6, changes={RATE: 2e-3}))
  train(twin)
  at(run, kill, killed)
  with pytest.raises(Killed):
    train(run)
  train(run)
  assert numbers(run) == numbers(twin)
  assert told(run) == told(twin)


def test_killed_between_the_record_and_its_request(sweep, at, monkeypatch):
  """The request that is still there is not taken a second time."""
  twin, run = sweep()[0], sweep()[0]
  for each in (twin, run):
    at(each, 8, asks(each, 'skip', steps=3))
  train(twin)
  with monkeypatch.context() as m:
    m.setattr(control.Path, 'unlink', lambda self: killed())
    with pytest.raises(Killed):
      train(run)
  assert len(actions.requests(run)) == 1
  train(run)
  assert numbers(run) == numbers(twin) and len(actions.read(run)) == 1


def test_what_is_no_action_is_refused_and_the_run_goes_on(sweep, at):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  (run / 'requests').mkdir()

  def writes(name, content):
    return lambda: (run / 'requests' / name).write_text(content)

  at(
      run,
      8,
      writes('1.json', '{"action": "se'),
      writes('2.json', '[]'),
      writes('3.json', '{"action": "exec", "changes": "rm"}'),
      writes('4.json', '{"action": ["set"]}'),
      writes('5.json', '{"action": "set", "changes": {"seed": 1}}'),
      writes('6.json', '{"action": "set", "changes": {"optimizer.eps": "1"}}'),
      writes('7.json', '{"action": "set", "changes": {"optimizer.learning_rate": NaN}}'),
      writes('8.json', '{"action": "skip", "steps": 1.5}'),
      writes('9.json', '{"action": "stop", "now": true}'),
      asks(run, 'set', changes={'model.attention_soft_cap': 30.0}),
      asks(run, 'continue'),
  )
  train(run)
  assert numbers(run) == numbers(plain)
  reasons = [record['refused'] for record in actions.read(run)]
  for reason, words in zip(
      reasons,
      [
          'built without this term',  # its file's name is the first in order
          'is not paused',
          'not a request',
          'must be a JSON object',
          "action 'exec': must be one of pause",
          'must be one of pause',
          'config.seed: cannot be set',
          'must be a number',
          'must be a number above 0',
          'must be a whole number',
          "takes no 'now'",
      ],
      strict=True,
  ):
    assert words in reason
  assert actions.requests(run) == []


def test_two_people_at_once(sweep, at):
  (run,) = sweep()
  at(
      run,
      8,
      asks(run, 'set', changes={RATE: 5e-3}),
      lambda: actions.request(run, {'action': 'set', 'changes': {RATE: 1e-3}}, 'bob', ''),
  )
  train(run)
  first, second = actions.read(run)
  assert (first['by'], second['by']) == ('ann', 'bob')
  assert second['before']['hyperparameters'][RATE] == 5e-3


def test_a_request_that_comes_too_late_is_answered(sweep, at, monkeypatch):
  (run,) = sweep()
  finish = population.Population._finish

  def late(self):
    if any(member.step == 24 for member in self._members.values()):
      asks(run, 'set', changes={RATE: 1e-3})()
    finish(self)

  monkeypatch.setattr(population.Population, '_finish', late)
  train(run)
  (record,) = actions.read(run)
  assert record['refused'] == 'the run has ended: done'


# Alarms.


def rising(limit):
  """A rule that fires once the step is above a limit."""
  return alarms.Rule(step, limit, 0.5, 'step {value}', (alarms.LEARNING_RATE,))


def step(history):
  return history.row['step']


@pytest.fixture
def fires_at(monkeypatch):
  """A function that makes a rule fire at the row of a step, and of no step before it."""
  return lambda at_step: monkeypatch.setattr(alarms, 'RULES', (rising(at_step - 1),))


@pytest.mark.parametrize('members', [1, 2])
def test_alarms_are_recorded_and_change_nothing_by_themselves(sweep, fires_at, members):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  fires_at(7)
  train(run)
  (alarm,) = workdir_lib.read_lines(run / 'alarms.jsonl')
  assert (alarm['rule'], alarm['step'], alarm['value']) == ('step', 8, 8)
  assert alarm['suggested'][1] == {'action': 'set', 'changes': {RATE: pytest.approx(1e-2 / 3)}}
  assert numbers(run) == numbers(plain)
  assert not (run / 'actions.jsonl').exists()


def test_ask_pauses_at_the_next_stop_and_waits(sweep, fires_at):
  plain, run = sweep()[0], sweep(**{'control.on_alarm': 'ask'})[0]
  train(plain)
  fires_at(7)
  paused = train(run)
  assert told(run) == [('pause', 10, 'alarm')] and max(by_step(run)) == 10
  assert time.monotonic() < paused[run.name] < time.monotonic() + 3600
  assert train(run) == pytest.approx(paused, abs=60)
  asks(run, 'continue')()
  train(run, paused=paused)
  assert numbers(run) == numbers(plain)  # and the same alarm does not stop it again


@pytest.mark.parametrize(
    ('default', 'taken', 'status'),
    [
        ('continue', [('continue', 10, 'timeout')], 'done'),
        ('stop', [('stop', 10, 'timeout')], 'stopped'),
        ('policy', [('rewind', 10, 'policy'), ('pause', 10, 'alarm')], None),
    ],
)
def test_after_the_timeout_the_default(sweep, fires_at, default, taken, status):
  (run,) = sweep(**{'control.on_alarm': 'ask', 'control.default_action': default})
  fires_at(7)
  paused = train(run)
  paused[run.name] = time.monotonic() - 1
  train(run, paused=paused)
  assert told(run) == [('pause', 10, 'alarm'), *taken]
  result = workdir_lib.read_result(run)
  assert (result and result['status']) == status


def test_the_policy_tries_a_few_times(sweep, fires_at, replayed):
  policy = {'control.on_alarm': 'policy', 'control.tries': 2}
  (run,) = sweep(**policy)
  fires_at(7)
  train(run)
  assert told(run) == [('rewind', 10, 'policy'), ('rewind', 10, 'policy')]
  first, second = actions.read(run)
  assert (first['to'], first['skip']) == (0, 10)
  assert first['changes'][RATE] == pytest.approx(1e-2 / 3)
  assert second['changes'][RATE] == pytest.approx(1e-2 / 9)
  assert workdir_lib.read_result(run)['steps'] == 24
  assert len(workdir_lib.read_lines(run / 'alarms.jsonl')) == 3
  assert numbers(replayed(run)) == numbers(run)  # by its actions alone
  assert numbers(replayed(run, **policy)) == numbers(run)


@pytest.mark.parametrize('kill', [10, 12])
def test_the_policy_after_a_kill(sweep, fires_at, at, kill):
  policy = {'control.on_alarm': 'policy', 'control.tries': 1}
  twin, run = sweep(**policy)[0], sweep(**policy)[0]
  fires_at(7)
  train(twin)
  at(run, kill, killed)
  with pytest.raises(Killed):
    train(run)
  train(run)
  assert numbers(run) == numbers(twin) and told(run) == told(twin)


def test_the_policy_rescues_a_run_that_diverges(sweep):
  (run,) = sweep([1e25], **{'control.on_alarm': 'policy', 'control.tries': 60})
  plain = sweep([1e25])[0]
  train(plain)
  assert workdir_lib.read_result(plain)['status'] == 'diverged'
  train(run)
  assert {r['action'] for r in actions.read(run)} == {'rewind'}
  assert workdir_lib.read_result(run)['status'] == 'done'


def test_actions_do_not_depend_on_neighbours(sweep, at, fires_at):
  """Three runs on three devices, each with a fate of its own, and each of them alone."""
  rates = [1e-3, 1e-2, 1e-1]
  wide = {
      'parallel.layout': 'population',
      'parallel.members': 1,
      'control.on_alarm': 'policy',
      'control.tries': 1,
  }
  together, alone = sweep(rates, **wide), [sweep([rate], **wide)[0] for rate in rates]
  fires_at(15)
  for runs in (together, alone):
    at(runs[0], 6, asks(runs[0], 'rewind', to=0, skip=2))
    at(runs[1], 10, asks(runs[1], 'set', changes={'optimizer.clip_norm': 0.1}))
  train(*together)
  for run in alone:
    train(run)
  for ours, theirs in zip(together, alone, strict=True):
    assert numbers(ours) == numbers(theirs) and told(ours) == told(theirs)


def test_tensorboard_shows_alarms_and_actions_at_their_step(sweep, fires_at):
  (run,) = sweep(**{'control.on_alarm': 'policy', 'control.tries': 1})
  fires_at(7)
  train(run)
  from tensorboard.backend.event_processing import event_accumulator

  board = event_accumulator.EventAccumulator(str(run))
  board.Reload()
  assert 8 in [event.step for event in board.Scalars('alarm/step')]
  assert [event.step for event in board.Scalars('action/rewind')] == [10]
  (shown,) = board.Tensors('action/rewind/text_summary')
  assert json.loads(shown.tensor_proto.string_val[0])['by'] == 'policy'


# Several processes that share a run.


def test_a_shared_run_takes_no_actions(sweep, at, monkeypatch):
  plain, run = sweep()[0], sweep()[0]
  train(plain)
  at(run, 8, asks(run, 'stop'))
  monkeypatch.setattr(member, 'is_shared', lambda: True)
  train(run)
  (record,) = actions.read(run)
  assert record['refused'] == 'a run shared by several processes takes no actions'
  assert numbers(run) == numbers(plain)


def test_a_shared_run_cannot_act_on_alarms(sweep, monkeypatch):
  (run,) = sweep(**{'control.on_alarm': 'policy'})
  monkeypatch.setattr(member, 'is_shared', lambda: True)
  population.train_population(
      run.parent.parent, workdir_lib.read_sweep(run.parent.parent), run.name, lambda: None
  )
  result = workdir_lib.read_result(run)
  assert result['status'] == 'failed' and 'config.control.on_alarm=policy' in result['error']
