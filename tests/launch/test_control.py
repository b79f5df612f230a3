"""launch.control: what it lists and shows of runs, how it asks, and what becomes of an answer."""

import json
import math
import re

import pytest
from helpers import made_up

from launch import control, train
from launch.common import app, multihost, start
from stability import hyper
from stability.control import actions
from stability.storage import files, run_files

RATE = 'optimizer.learning_rate'
SEEN = 'the highest attention logit is 412; limit 300'
SUGGESTED = [
    {'action': 'rewind', 'to': 100, 'skip': 60, 'changes': {RATE: 1 / 300}},
    {'action': 'set', 'changes': {'model.attention_soft_cap': 25.0}},
]


def alarm(step, **other):
  return {
      'step': step,
      'rule': 'attention_logit',
      'value': 412.0,
      'limit': 300,
      'seen': SEEN,
      'sure': 0.98,
      'actions': 0,
      'suggested': SUGGESTED,
  } | other


def record(action, step, **other):
  return {'action': action, 'step': step, 'by': 'ann', 'why': '', 'time': ''} | other


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """Folders of four runs: one that trains, one paused, one done, one that nobody has begun."""
  monkeypatch.setenv('COLUMNS', '150')
  points = hyper.sweep('model.qk_norm', ['none'])
  names = made_up.write_sweep(
      tmp_path,
      widths=(32,),
      seeds=(0,),
      rates=(1e-3, 1e-2, 1e-1, 1.0),
      interventions=points,
      leave_out=(3,),
  )
  found = [run_files.run_dir(tmp_path, name) for name in names]
  for run in found[:2]:
    (run / 'result.json').unlink()
  files.write_lines(found[0] / 'alarms.jsonl', [alarm(60), alarm(120, rule='loss_spike')])
  files.write_lines(found[1] / 'actions.jsonl', [record('pause', 300)])
  return found


@pytest.fixture
def call(capsys):
  """A function that runs the program -> exit code, output, errors."""

  def program(*arguments):
    code = app.execute(control.main, control.FLAGS, ['control', *arguments], words=True)
    return code, *capsys.readouterr()

  return program


def row_of(out, run):
  """The line of a run in the list, without its name."""
  (line,) = (line for line in out.splitlines() if run.name in line)
  return line.replace(run.name, '').split()


def test_the_list_tells_how_each_run_is(runs, call):
  code, out, _ = call(f'--workdir={runs[0].parent.parent}')
  assert code == 0
  losses = [f'{run_files.last_metrics(run)["loss"]:.3f}' for run in runs[:3]]
  last = ['loss_spike', 'at', 'step', '120']
  assert row_of(out, runs[0]) == ['started', '300', losses[0], '2', *last]
  assert row_of(out, runs[1]) == ['paused', '300', losses[1], '1']
  assert row_of(out, runs[2]) == ['done', '300', losses[2]]
  assert row_of(out, runs[3]) == ['waiting']


def test_the_list_has_the_forks(runs, call):
  workdir = runs[0].parent.parent
  fork = run_files.run_dir(workdir, f'{runs[0].name}+fork1')
  files.write_json(fork / 'config.json', run_files.read_config(runs[0]))
  about = {'run': 'x', 'step': 0, 'changes': {}}
  files.write_json(workdir / 'forks' / f'{fork.name}.json', about)
  _, out, _ = call(f'--workdir={workdir}')
  assert row_of(out, fork) == ['waiting']


def test_a_run_is_shown_with_curves_alarms_and_what_may_help(runs, call):
  files.write_lines(
      runs[0] / 'actions.jsonl',
      [
          record('set', 30, changes={RATE: 5e-3}, why='too slow'),
          record('stop', 40, refused='not now', by=''),
      ],
  )
  code, out, _ = call(f'--run={runs[0]}')
  lines = out.splitlines()
  assert code == 0
  assert lines[0] == f'{runs[0].name}: started, step 300 of 500'
  assert 'loss (! alarm, * action)' in lines
  logits = lines.index('highest attention logit, power of ten')
  rows = run_files.read_metrics(runs[0])
  highest = max(row.get('block_0/attention_logit_max', 0) for row in rows)
  assert lines[logits + 1].split()[0] == f'{math.log10(highest):.4g}'
  # 60 columns for 500 steps; the label takes ten.
  marks = [line for line in lines if set(line) == {' ', '!', '*'}]
  assert [[(n - 10, c) for n, c in enumerate(m) if c != ' '] for m in marks] == 2 * [
      [(3, '*'), (7, '!'), (14, '!')]
  ]
  assert f'  step 60: {SEEN} (98% of such runs were unstable)' in lines
  helps = lines.index('what may help')
  assert lines[helps + 1 : helps + 3] == [
      f'  rewind 100 skip=60 {RATE}=0.00333333',
      '  set model.attention_soft_cap=25',
  ]
  done = lines.index('actions')
  assert lines[done + 1 :] == [
      f'  step 30: set {RATE}=0.005 (by ann: too slow)',
      '  step 40: stop, refused: not now (by ?)',
  ]


def test_what_is_suggested_can_be_typed(runs):
  for suggested in SUGGESTED:
    words = tuple(actions.words_of(suggested).split())
    parsed = control.parse(words)
    changes = {field: pytest.approx(value, rel=1e-5) for field, value in parsed['changes'].items()}
    assert parsed | {'changes': changes} == suggested


def test_a_run_not_begun_is_shown(runs, call):
  code, out, _ = call(f'--run={runs[3]}')
  assert code == 0 and 'waiting, step 0 of 500' in out and 'nothing logged yet' in out
  assert not {'alarms', 'what may help', 'actions'} & set(out.splitlines())


def test_only_the_last_few_are_shown(runs, call):
  lines = [alarm(10 * n) for n in range(1, 9)]
  files.write_lines(runs[0] / 'alarms.jsonl', lines)
  _, out, _ = call(f'--run={runs[0]}')
  assert re.findall(r'step (\d+): the', out) == ['40', '50', '60', '70', '80']


def test_a_reason_cannot_command_the_terminal(runs, call):
  files.write_lines(
      runs[0] / 'actions.jsonl', [record('pause', 30, why='\x1b[2J[bold]\nx', by='\x07')]
  )
  _, out, _ = call(f'--run={runs[0]}')
  assert '\x1b' not in out and '\x07' not in out and '[bold]' in out


@pytest.fixture
def trainer(monkeypatch):
  """A function that sets what the run's trainer does while the program waits for an answer."""

  def does(do):
    monkeypatch.setattr(control.time, 'sleep', lambda seconds: do())

  monkeypatch.setattr(control, 'ANSWER_SECONDS', 0.2)
  monkeypatch.setattr(control.getpass, 'getuser', lambda: 'bob')
  return does


def answers(run, **other):
  """What writes the record that answers the first request."""

  def answer():
    (path,) = actions.requests(run)
    asked = actions.read_request(path)
    files.write_lines(
        run / 'actions.jsonl', [asked | {'step': 310, 'request': path.name} | other]
    )
    path.unlink()

  return answer


def test_an_action_is_asked_for_and_its_record_awaited(runs, call, trainer):
  trainer(answers(runs[0]))
  words = ('rewind', '100', 'skip=20', f'{RATE}=3e-3')
  code, out, _ = call(f'--run={runs[0]}', *words, '--why=logits at 5e3')
  assert code == 0 and out == f'taken at step 310: rewind 100 skip=20 {RATE}=0.003\n'
  (found,) = actions.read(runs[0])
  assert (found['by'], found['why']) == ('bob', 'logits at 5e3')
  assert (found['to'], found['skip'], found['changes']) == (100, 20, {RATE: 3e-3})


def test_a_refusal_is_an_error_of_one_line(runs, call, trainer):
  trainer(answers(runs[0], refused='rewind: to 7: no such checkpoint; there are 0, 100'))
  code, out, err = call(f'--run={runs[0]}', 'rewind', '7')
  assert (code, out) == (2, '')
  assert err == 'error: rewind: to 7: no such checkpoint; there are 0, 100\n'


def test_without_an_answer_the_request_stays(runs, call, trainer):
  trainer(lambda: None)
  code, out, _ = call(f'--run={runs[0]}', 'stop')
  (path,) = actions.requests(runs[0])
  assert code == 0 and out.startswith('asked for; ') and str(path) in out
  assert json.loads(path.read_text())['action'] == 'stop'


def test_a_run_that_ends_meanwhile_is_said_to_have(runs, call, trainer):
  result = run_files.read_result(runs[2])
  trainer(lambda: run_files.write_result(runs[0], result))
  code, _, err = call(f'--run={runs[0]}', 'stop')
  assert code == 2 and 'has ended (done); nothing was done to it' in err
  assert actions.requests(runs[0]) == []


def test_a_run_that_failed_waits_for_its_next_start(runs, call, trainer):
  run_files.write_failure(runs[0], 'Traceback')
  trainer(lambda: None)
  code, out, _ = call(f'--run={runs[0]}', 'stop')
  assert code == 0 and 'asked for' in out and len(actions.requests(runs[0])) == 1


REFUSED = {
    'unknown': (['explode'], "'explode': must be one of pause, continue"),
    'no steps': (['skip'], 'skip: needs a number of steps'),
    'no number of steps': (['rewind', 'x'], 'rewind: needs a number of steps'),
    'what takes none': (['pause', '3'], "pause: takes no '3'"),
    'no value': (['set', RATE], f"set: takes no '{RATE}'"),
    'no number': (['set', f'{RATE}=high'], f'{RATE}=high: must be a number'),
    'nothing set': (['set'], 'set: names no field'),
    'no such field': (['set', 'seed=1'], 'config.seed: cannot be set'),
    'out of range': (['set', f'{RATE}=-1'], RATE),
    'a term it lacks': (['set', 'model.attention_soft_cap=5'], 'built without this term'),
    'later step': (['rewind', '400'], 'must not be above the present step, 300'),
    'skip of another': (['set', 'skip=3'], 'config.skip: cannot be set'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_done_is_refused_before_it_is_asked_for(runs, call, case):
  words, told = REFUSED[case]
  code, out, err = call(f'--run={runs[0]}', *words)
  assert code == 2 and told in err and err.count('\n') == 1 and out == ''
  assert actions.requests(runs[0]) == []


def test_a_run_that_is_over_takes_none(runs, call):
  code, _, err = call(f'--run={runs[2]}', 'stop')
  assert code == 2 and 'has ended (done); nothing can be done to it' in err


def test_flags_that_do_not_go_together(runs, call):
  workdir = runs[0].parent.parent
  assert call()[0] == call(f'--workdir={workdir}', f'--run={runs[0]}')[0] == 2
  assert "'stop': an action needs --run" in call(f'--workdir={workdir}', 'stop')[2]
  assert 'must be the folder of a run' in call(f'--run={workdir}', 'stop')[2]
  assert 'replay: needs --workdir=NEW' in call(f'--run={runs[0]}', 'replay')[2]


@pytest.mark.parametrize('typed', ['stop', '', EOFError])
def test_asking_shows_the_run_first(runs, call, trainer, monkeypatch, typed):
  trainer(answers(runs[0]))

  def typing(prompt):
    if typed is EOFError:
      raise EOFError
    return typed

  monkeypatch.setattr('builtins.input', typing)
  code, out, _ = call(f'--run={runs[0]}', 'ask')
  assert code == 0 and SEEN in out
  assert 'pause, continue, stop, checkpoint, set, skip, rewind, fork, or nothing' in out
  assert ('taken at step 310: stop' in out) == (typed == 'stop')
  assert len(actions.read(runs[0])) == (typed == 'stop')


# A run that several processes share.


@pytest.mark.parametrize('on_alarm', ['ask', 'policy'])
@pytest.mark.parametrize('number', [0, 1])
def test_a_shared_run_cannot_act_on_alarms(tmp_path, monkeypatch, capsys, on_alarm, number):
  """Each of the processes says so, before anything is written or compiled."""
  for module, name in ((multihost, 'follow'), (start, 'start')):
    monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail('started'))
  arguments = ['--config=configs/base.py', f'--workdir={tmp_path / "x"}']
  shared = ['--coordinator_address=a:1', '--num_processes=2', f'--process_id={number}']
  override = f'--config.control.on_alarm={on_alarm}'
  code = app.execute(train.main, train.FLAGS, ['train', *arguments, *shared, override])
  err = capsys.readouterr().err
  assert code == 2 and not (tmp_path / 'x').exists()
  assert err == (
      f'error: config.control.on_alarm={on_alarm}: must be none where several processes share a'
      ' run\n'
  )


def test_a_shared_run_that_only_records_alarms_starts(tmp_path, monkeypatch):
  monkeypatch.setattr(start, 'start', lambda *a, **k: 0)
  arguments = ['--config=configs/base.py', f'--workdir={tmp_path / "x"}', '--process_id=0']
  shared = ['--coordinator_address=a:1', '--num_processes=2']
  assert app.execute(train.main, train.FLAGS, ['train', *arguments, *shared]) == 0
