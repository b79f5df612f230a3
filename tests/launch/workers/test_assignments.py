"""The assignment of runs and the progress of a sweep."""

import dataclasses
import json
import types

import pytest
from helpers import made_up

from configs import quickstart
from launch.common import display
from launch.common.progress import Progress
from launch.workers import assignments
from stability import hyper
from stability.storage import run_files, sweeps, versions


@pytest.fixture
def queue():
  runs = hyper.expand(quickstart.get_config().to_dict(), quickstart.get_sweep())
  return assignments.RunQueue(runs.configs)


def test_most_work_comes_first(queue):
  first = queue.take('a', None)
  assert first == 'width=64,qk_norm=layernorm,learning_rate=0.001,seed=0'
  assert queue.take('b', None).startswith('width=64,qk_norm=none')


def test_workers_get_different_executables(queue):
  """Of six groups, the seventh worker shares that with the most work left."""
  groups = [queue.take(worker, None).split(',learning_rate')[0] for worker in range(7)]
  assert len(set(groups[:6])) == 6
  assert groups[6] == groups[0]  # the most work left


def test_ended_worker_frees_its_executables(queue):
  for worker in range(6):
    queue.take(worker, None)
  queue.forget(3)  # it had width 32 without qk-layernorm
  assert queue.take('new', None).startswith('width=32,qk_norm=none')


def test_worker_keeps_its_executables(queue):
  first = queue.take('a', None)
  row = [queue.take('a', first) for _ in range(7)]
  assert all(name.startswith('width=64,qk_norm=layernorm') for name in row[:6])
  assert row[6] is None
  assert len(queue) == 35


def test_every_run_is_taken_once(queue):
  names = [queue.take(n % 2, None) for n in range(43)]
  assert len(set(names)) == 43 and names[-1] is None  # 42 and None


@dataclasses.dataclass(eq=False)
class Worker:
  pid: int
  phase: str


def test_phases_count_groups(tmp_path):
  """Two workers compile for one group, one reads the text for another and one trains."""
  runs = hyper.expand(quickstart.get_config().to_dict(), quickstart.get_sweep()).configs
  always = types.SimpleNamespace(try_acquire=lambda run, pid: True)
  assigned = assignments.Assignments(tmp_path, runs, always, print)
  workers = [Worker(n, 'training') for n in range(7)]
  for worker in workers:
    assigned.assign(worker, None)
  assert assigned.phases() == []
  workers[0].phase = workers[6].phase = 'compiling'  # of the same group, see above
  workers[1].phase = 'reading text'
  assert assigned.phases() == [
      'reading text for 1 of 6 groups of runs', 'compiling for 1 of 6 groups of runs'
  ]
  workers[2].phase = 'compiling'
  assert assigned.phases()[1] == 'compiling for 2 of 6 groups of runs'


def test_waiting_runs_are_counted(tmp_path):
  """A worker hears how many runs of the group wait, and another one how many are left."""
  _, runs = two_groups()
  always = types.SimpleNamespace(try_acquire=lambda run, pid: True)
  assigned = assignments.Assignments(tmp_path, dict(list(runs.items())[:5]), always, print)
  first, other = Worker(1, 'starting'), Worker(2, 'starting')
  answer = assigned.assign(first, None)
  assert answer['runs'] == 3
  assigned.assign(first, answer['run'])
  assert [assigned.assign(other, None)['runs'] for _ in range(2)] == [2, 1]
  assert assigned.assign(other, None)['runs'] == 1  # of the first group


def test_runs_that_have_begun_come_first(tmp_path):
  """In each group: a population gets the width with which its first run began."""
  names, runs = two_groups()
  for name in (names[2], names[4]):
    versions.record(run_files.run_dir(tmp_path, name), 0, runs=3)
  always = types.SimpleNamespace(try_acquire=lambda run, pid: True)
  assigned = assignments.Assignments(tmp_path, runs, always, print)
  assert assigned.assign(Worker(1, 'starting'), None)['run'] == names[2]
  assert assigned.assign(Worker(2, 'starting'), None)['run'] == names[4]


def test_launchers_train_different_groups(tmp_path):
  """A group of which another launcher trains a run comes last, until it gives the run up."""
  names, runs = two_groups()
  held = {names[0]}
  leases = types.SimpleNamespace(
      try_acquire=lambda run, pid=None: run.name not in held, release=lambda run: None
  )

  def launcher():
    return assignments.Assignments(tmp_path, runs, leases, print)

  second, worker = launcher(), Worker(1, 'starting')
  first = second.assign(worker, None)
  assert (first['run'], first['runs']) == (names[3], 3)
  row = [second.assign(worker, names[3])['run'] for _ in range(3)]
  assert row == [*names[4:], None]
  last = second.assign(worker, None)
  assert (last['run'], last['runs']) == (names[1], 2)  # it helps the other launcher
  held = {names[3]}
  third = launcher()
  row = [third.assign(Worker(n, 'starting'), None)['run'] for n in range(2)]
  assert row == names[:2]
  held.clear()
  third.check_elsewhere()
  assert third.assign(Worker(2, 'starting'), None)['run'] == names[4]


def test_out_of_memory_limits_all_groups_of_the_worker(tmp_path):
  """A run that is paused stays the worker's; which of its groups was on the device is not known."""
  names, runs = two_groups()
  leases = types.SimpleNamespace(
      try_acquire=lambda run, pid=None: True, release=lambda run: None, lost=set
  )
  assigned = assignments.Assignments(tmp_path, runs, leases, lambda line: None)
  worker = Worker(1, 'training')
  worker.members = 4
  worker.wait = lambda: None
  worker.end_reason = lambda: 'was killed'
  worker.may_have_run_out_of_memory = lambda: True
  taken = [assigned.assign(worker, like)['run'] for like in (None, names[0], names[0], None)]
  assert taken == names[:4]  # the first three are paused
  assigned.reclaim(worker)
  answers = [assigned.assign(worker, None) for _ in names]
  assert {answer['run']: answer['members'] for answer in answers} == dict.fromkeys(names, 2)


def two_groups():
  """The names and configs of six runs with two widths, the larger one first."""
  points = hyper.product([hyper.sweep('model.width', [64, 16]), hyper.sweep('seed', range(3))])
  runs = hyper.expand(quickstart.get_config().to_dict(), points).configs
  return list(runs), runs


def test_lost_lease_is_no_failure_of_the_run(tmp_path):
  """The worker is killed as another launcher trains one of its runs; only the other one fails."""
  names, runs = two_groups()
  lost = run_files.run_dir(tmp_path, names[0])
  leases = types.SimpleNamespace(
      try_acquire=lambda run, pid: True,
      release=lambda run: None,
      remove=lambda run: None,
      lost=lambda: {lost},
  )
  assigned = assignments.Assignments(tmp_path, runs, leases, print, tries=1)
  worker = Worker(1, 'training')
  worker.members = 1
  worker.wait = lambda: None
  worker.end_reason = lambda: 'was killed'
  worker.may_have_run_out_of_memory = worker.has_saved = lambda: False
  worker.last_output = lambda: ''
  assert [assigned.assign(worker, like)['run'] for like in (None, names[0])] == names[:2]
  assigned.reclaim(worker)
  assert run_files.read_result(lost) is None
  assert run_files.read_result(run_files.run_dir(tmp_path, names[1])).status == 'failed'


def test_phase_of_the_only_group(tmp_path):
  runs = hyper.expand(quickstart.get_config().to_dict(), [{}]).configs
  always = types.SimpleNamespace(try_acquire=lambda run, pid: True)
  assigned = assignments.Assignments(tmp_path, runs, always, print)
  assigned.assign(Worker(1, 'compiling'), None)
  assert assigned.phases() == ['compiling']


def test_progress_before_the_first_step(tmp_path, capsys):
  names = made_up.write_sweep(tmp_path, seeds=(0,), leave_out=tuple(range(42)))
  configs = sweeps.read_sweep(tmp_path).runs
  for phases, said in (([], 'no step logged yet'), (['compiling'], 'compiling')):
    with Progress(tmp_path, configs) as progress:
      progress.update(names[:1], phases=phases)
    err = capsys.readouterr().err
    assert err.endswith(f'1 running, 0 diverged, {said}\n')


def test_no_speed_while_all_workers_compile(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(display, 'PLAIN_SECONDS', 0)
  name, *_ = made_up.write_sweep(tmp_path, seeds=(0,), leave_out=tuple(range(42)))
  metrics = run_files.run_dir(tmp_path, name) / 'metrics.jsonl'
  with Progress(tmp_path, sweeps.read_sweep(tmp_path).runs) as progress:
    for step, speed in ((10, 5.0), (20, 0.0), (20, 0.0)):
      metrics.write_text(json.dumps({'step': step, 'tokens_per_second': speed}) + '\n')
      progress.update([name], phases=['compiling'])
  first, _, last = capsys.readouterr().err.splitlines()
  assert first.endswith('compiling, 5 tokens/s')
  assert 'compiling, ' in last and last.endswith(' left') and 'tokens/s' not in last


def test_progress(tmp_path, capsys):
  names = made_up.write_sweep(
      tmp_path,
      seeds=(0,),
      leave_out=(0, 1),
      results={3: {'status': 'failed', 'error': 'Traceback\nValueError: [bold]no'}},
  )
  configs = sweeps.read_sweep(tmp_path).runs
  folder = run_files.run_dir(tmp_path, names[0])
  folder.mkdir(parents=True, exist_ok=True)
  line = {'step': 150, 'tokens_per_second': 12_345.0}
  (folder / 'metrics.jsonl').write_text(json.dumps(line) + '\n')
  with Progress(tmp_path, configs) as progress:
    progress.update(names[:1])
    assert not progress.is_finished()
  said = capsys.readouterr().err
  assert '40/42 runs finished' in said and '1 running' in said and '1 failed' in said
  assert '12,345 tokens/s' in said
  assert f'{names[3]} failed: ValueError: [bold]no' in said.replace('\n', '')
