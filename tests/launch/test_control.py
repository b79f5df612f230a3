"""launch.control: listing and showing runs, and requesting actions."""

import io
import json
import math
import os
import re
import threading
import time

import pytest
from helpers import made_up
from rich.console import Console

from launch import control
from launch.common import app, user
from stability import hyper
from stability.control import records, requests
from stability.control.actions import Action
from stability.control.alarms import Alarm
from stability.control.records import Record
from stability.errors import BadInput
from stability.storage import files, run_files, sweeps

RATE = 'optimizer.learning_rate'
SUGGESTIONS = (
    Action('rewind', to=100, skip=60, changes={RATE: 1 / 300}),
    Action('set', changes={'model.attention_soft_cap': 25.0}),
)
ALARM = Alarm(
    step=60,
    rule='attention_logit',
    value=412.0,
    limit=300,
    message='the highest attention logit is 412; limit 300',
    probability=0.98,
    suggestions=SUGGESTIONS,
)


def write_alarms(run, *steps, rule='attention_logit'):
  lines = [ALARM.to_json() | {'step': step} for step in steps]
  lines[-1]['rule'] = rule
  files.write_lines(run / 'alarms.jsonl', lines)


def write_records(run, *written):
  for record in written:
    records.append_record(run, record)


def record(step, kind, by='ann', why='', **arguments):
  return Record(step, Action(kind, **arguments), by, why)


@pytest.fixture
def runs(tmp_path, monkeypatch):
  """Folders of four runs: one in training, one paused, one done, one not started."""
  monkeypatch.setenv('COLUMNS', '150')
  names = made_up.write_sweep(
      tmp_path,
      widths=(32,),
      seeds=(0,),
      rates=(1e-3, 1e-2, 1e-1, 1.0),
      interventions=hyper.sweep('model.qk_norm', ['none']),
      leave_out=(3,),
  )
  found = [run_files.run_dir(tmp_path, name) for name in names]
  for run in found[:2]:
    (run / 'result.json').unlink()
  write_alarms(found[0], 60, 120, rule='loss_spike')
  write_records(found[1], record(300, 'pause'))
  return found


@pytest.fixture
def call(capsys):
  """A function that runs the program -> exit code, output, errors."""

  def program(*arguments):
    code = app.execute(control.main, control.FLAGS, ['control', *arguments], words=True)
    return code, *capsys.readouterr()

  return program


# Listing and showing.


def row_of(out, run):
  """The line of a run in the list, without its name."""
  (line,) = (line for line in out.splitlines() if run.name in line)
  return line.replace(run.name, '').split()


def test_list(runs, call):
  code, out, _ = call(f'--workdir={runs[0].parent.parent}')
  assert code == 0
  losses = [f'{run_files.last_metrics(run)["loss"]:.3f}' for run in runs[:3]]
  last = ['loss_spike', 'at', 'step', '120']
  actions = str(len(records.read_taken(runs[0])) or '')
  assert row_of(out, runs[0]) == ['started', '300', losses[0], '2', *actions, *last]
  assert row_of(out, runs[1]) == ['paused', '300', losses[1], '1']
  assert row_of(out, runs[2]) == ['done', '300', losses[2]]
  assert row_of(out, runs[3]) == ['waiting']


def test_show_has_checkpoints(runs, call):
  folder = runs[2] / 'checkpoints'
  assert 'checkpoints:' not in call(f'--run={runs[2]}')[1]
  for name in ('200', '40', '.300.tmp'):
    (folder / name).mkdir(parents=True)
  assert 'checkpoints: 0, 40, 200\n' in call(f'--run={runs[2]}')[1]


def test_list_has_forks(runs, call):
  workdir = runs[0].parent.parent
  fork = run_files.run_dir(workdir, f'{runs[0].name}+fork1')
  files.write_json(fork / 'config.json', run_files.read_config(runs[0]))
  sweeps.write_fork(workdir, fork.name, sweeps.Fork('x', 0, {}))
  _, out, _ = call(f'--workdir={workdir}')
  assert row_of(out, fork) == ['waiting']


def test_show(runs, call):
  refused = Record(40, None, '', '', refused='not now', asked={'action': 'stop'})
  write_records(
      runs[0], record(30, 'set', changes={RATE: 5e-3}, why='too slow'), refused
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
  assert f'  step 60: {ALARM.message} (unstable with a probability of 98%)' in lines
  first = lines.index('what may help') + 1
  assert lines[first : first + 2] == [
      f'  rewind 100 skip=60 {RATE}=0.00333333',
      '  set model.attention_soft_cap=25',
  ]
  assert lines[lines.index('actions') + 1 :] == [
      f'  step 30: set {RATE}=0.005 (by ann: too slow)',
      '  step 40: stop, refused: not now (by ?)',
  ]


def test_suggestions_can_be_typed():
  for suggested in SUGGESTIONS:
    parsed = control.parse(tuple(str(suggested).split()))
    changes = {field: pytest.approx(value, rel=1e-5) for field, value in suggested.changes.items()}
    assert (parsed.kind, parsed.to, parsed.skip) == (suggested.kind, suggested.to, suggested.skip)
    assert parsed.changes == changes


def test_show_run_not_started(runs, call):
  code, out, _ = call(f'--run={runs[3]}')
  assert code == 0 and 'waiting, step 0 of 500' in out and 'nothing logged yet' in out
  assert not {'alarms', 'what may help', 'actions'} & set(out.splitlines())


def test_show_attention_logits_of_zero(runs, call):
  rows = [{'step': step, 'block_0/attention_logit_max': 0.0} for step in (10, 20)]
  files.write_lines(runs[0] / 'metrics.jsonl', rows)
  code, out, _ = call(f'--run={runs[0]}')
  assert code == 0 and 'attention logit, power' not in out


def test_show_first_and_last_alarms(runs, call):
  write_alarms(runs[0], *range(10, 90, 10))
  _, out, _ = call(f'--run={runs[0]}')
  assert re.findall(r'step (\d+): the', out) == ['10', '50', '60', '70', '80']
  assert re.search(r'step 10: .*\n  \.\.\. 3 more\n  step 50: ', out)


def test_control_characters_are_escaped(runs, call):
  write_records(runs[0], record(30, 'pause', why='\x1b[2J[bold]\nx', by='\x07'))
  _, out, _ = call(f'--run={runs[0]}')
  assert '\x1b' not in out and '\x07' not in out and '[bold]' in out


# Requests.


@pytest.fixture
def trainer(monkeypatch):
  """A function that runs a stand-in for a run's trainer: it calls `act` at the first request."""
  monkeypatch.setenv('LOGNAME', 'bob')
  threads = []

  def start_trainer(run, act):
    def wait_and_act():
      while not requests.request_files(run):
        time.sleep(0.01)
      act()

    threads.append(threading.Thread(target=wait_and_act, daemon=True))
    threads[-1].start()

  yield start_trainer
  for thread in threads:
    thread.join(10)
    assert not thread.is_alive()


def answer(run, refused=''):
  """A function that records the answer to a run's request and removes it."""

  def act():
    (path,) = requests.request_files(run)
    asked = requests.read_request(path)
    about = {key: asked[key] for key in requests.ABOUT} | {'request': path.name}
    action = None if refused else requests.parse_request(asked)
    records.append_record(run, Record(310, action, cut='cut.jsonl', refused=refused, **about))
    path.unlink()

  return act


def test_request_and_answer(runs, call, trainer):
  trainer(runs[0], answer(runs[0]))
  words = ('rewind', '100', 'skip=20', f'{RATE}=3e-3')
  code, out, _ = call(f'--run={runs[0]}', *words, '--why=logits at 5e3')
  assert code == 0 and out == f'taken at step 310: rewind 100 skip=20 {RATE}=0.003\n'
  (found,) = records.read_records(runs[0])
  assert (found.by, found.why) == ('bob', 'logits at 5e3')
  assert found.action == Action('rewind', to=100, skip=20, changes={RATE: 3e-3})


def test_rewind_to_a_checkpoint_after_the_last_row(runs, call, trainer):
  (runs[0] / 'checkpoints' / '305').mkdir(parents=True)
  trainer(runs[0], answer(runs[0]))
  assert call(f'--run={runs[0]}', 'rewind', '305')[:2] == (0, 'taken at step 310: rewind 305\n')


def test_refusal_is_an_error_of_one_line(runs, call, trainer):
  reason = 'rewind: to 7: no such checkpoint; there are 0, 100'
  trainer(runs[0], answer(runs[0], refused=reason))
  assert call(f'--run={runs[0]}', 'rewind', '7') == (2, '', f'error: {reason}\n')


@pytest.mark.parametrize('error', [KeyError('getpwuid(): uid not found: 12345'), OSError('none')])
def test_user_without_a_name(runs, call, trainer, error, monkeypatch):
  """Containers run with numbers that /etc/passwd does not have."""

  def getuser():
    raise error

  monkeypatch.setattr(user.getpass, 'getuser', getuser)
  trainer(runs[0], answer(runs[0]))
  code, _, err = call(f'--run={runs[0]}', 'pause')
  assert (code, err) == (0, '')
  (found,) = records.read_records(runs[0])
  assert found.by == f'uid {os.getuid()}'


def request(run, seconds):
  """Requests a stop; returns what is printed."""
  out = io.StringIO()
  console = Console(file=out, width=100)
  control.request(run, Action('stop'), '', console, seconds)
  return out.getvalue()


def test_request_without_answer_stays(runs):
  out = request(runs[0], seconds=0.1)
  (path,) = requests.request_files(runs[0])
  assert out.startswith('requested; ') and str(path) in out
  assert json.loads(path.read_text())['action'] == 'stop'


def test_run_ends_before_its_answer(runs, trainer):
  result = run_files.read_result(runs[2])
  trainer(runs[0], lambda: run_files.write_result(runs[0], result))
  with pytest.raises(BadInput, match=r'has ended \(done\) before it took the action'):
    request(runs[0], seconds=10)
  assert requests.request_files(runs[0]) == []


def test_failed_run_keeps_its_request(runs):
  """The run's next start answers it."""
  run_files.write_failure(runs[0], 'Traceback')
  assert 'requested' in request(runs[0], seconds=0.1)
  assert len(requests.request_files(runs[0])) == 1


def test_ended_run_takes_no_actions(runs, call):
  code, _, err = call(f'--run={runs[2]}', 'stop')
  assert code == 2 and 'has ended (done); it takes no actions' in err


REFUSED = {
    'unknown': (['explode'], "'explode': must be one of pause, continue"),
    'no steps': (['skip'], 'skip: needs a number of steps'),
    'steps not a number': (['rewind', 'x'], 'rewind: needs a number of steps'),
    'negative skip': (['rewind', '10', 'skip=-5'], 'skip=-5: must be a whole number, 0 or more'),
    'unknown argument': (['pause', '3'], "pause: takes no '3'"),
    'no value': (['set', RATE], f"set: takes no '{RATE}'"),
    'value not a number': (['set', f'{RATE}=high'], f'{RATE}=high: must be a number'),
    'nothing set': (['set'], 'set: names no field'),
    'not settable': (['set', 'seed=1'], 'config.seed: cannot be set'),
    'out of range': (['set', f'{RATE}=-1'], RATE),
    'absent term': (['set', 'model.attention_soft_cap=5'], 'built without this term'),
    'later step': (['rewind', '400'], 'must not be above the current step, 300'),
    'skip of a rewind': (['set', 'skip=3'], 'config.skip: cannot be set'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_bad_action_is_not_requested(runs, call, case):
  words, message = REFUSED[case]
  code, out, err = call(f'--run={runs[0]}', *words)
  assert code == 2 and message in err and err.count('\n') == 1 and out == ''
  assert requests.request_files(runs[0]) == []


def test_flags(runs, call):
  workdir = runs[0].parent.parent
  assert call()[0] == call(f'--workdir={workdir}', f'--run={runs[0]}')[0] == 2
  assert "'stop': an action needs --run" in call(f'--workdir={workdir}', 'stop')[2]
  assert 'must be the folder of a run' in call(f'--run={workdir}', 'stop')[2]
  assert 'replay: needs --workdir=NEW' in call(f'--run={runs[0]}', 'replay')[2]


@pytest.mark.parametrize('typed', ['stop\n', '\n', ''])
def test_ask(runs, call, trainer, monkeypatch, typed):
  """Nothing is requested for an empty line or at the end of the input."""
  if typed == 'stop\n':
    trainer(runs[0], answer(runs[0]))
  monkeypatch.setattr('sys.stdin', io.StringIO(typed))
  code, out, _ = call(f'--run={runs[0]}', 'ask')
  assert code == 0 and ALARM.message in out
  assert 'pause, continue, stop, checkpoint, set, skip, rewind, fork, or nothing' in out
  assert ('taken at step 310: stop' in out) == (typed == 'stop\n')
  assert len(records.read_records(runs[0])) == (typed == 'stop\n')
