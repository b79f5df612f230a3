"""The local backend with workers that hang or die, and with other launchers."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers import made_up, training
from rich.console import Console

from configs import base
from launch.backends import local
from launch.common import environment, preemption, replay
from launch.workers import multihost, worker_process
from stability import hyper
from stability.data import prepare, tokens
from stability.errors import BadInput, CannotWrite
from stability.storage import files, run_files, sweeps
from stability.storage import leases as leases_lib

pytestmark = pytest.mark.slow

STUB = pathlib.Path(__file__).parents[2] / 'helpers' / 'stub_worker.py'


WORKER = worker_process.COMMAND


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A function that writes a sweep whose workers are stubs, with plans by index of the run."""

  def write(plans=None, runs=3):
    expanded = hyper.expand(base.get_config().to_dict(), hyper.sweep('seed', range(runs)))
    made_up.write_runs(tmp_path, expanded)
    names = list(expanded.configs)
    plan = {names[number]: planned for number, planned in (plans or {}).items()}
    (tmp_path / 'plan.json').write_text(json.dumps(plan))
    command = (sys.executable, '-S', '-E', str(STUB), str(tmp_path / 'plan.json'))
    monkeypatch.setattr(worker_process, 'COMMAND', command)
    monkeypatch.setattr(local, 'POLL_SECONDS', 0.05)
    monkeypatch.setattr(local, 'CHECK_SECONDS', 0.1)
    return tmp_path, expanded.configs

  return write


def train(workdir, configs, workers=1):
  local.train(workdir, sweeps.runs_to_train(workdir, configs), workers)


def tries(workdir, name):
  return files.read_lines(run_files.run_dir(workdir, name) / 'tries.jsonl')


def results(workdir, configs):
  found = [run_files.read_result(run_files.run_dir(workdir, name)) for name in configs]
  return [result and result.status for result in found]


def leases(workdir):
  return [path for path in workdir.rglob('*') if leases_lib.is_lease(path)]


def test_phases(place, monkeypatch):
  """A worker reports each when it begins, and the progress line shows them."""
  workdir, configs = place(runs=2)
  config = base.get_config().data
  config.source = 'synthetic'
  folder = prepare.prepare(config, workdir / 'data', 16)
  data = {'path': str(folder), **tokens.open_tokens(folder).meta}
  sweep = dataclasses.replace(sweeps.read_sweep(workdir), data=data)
  sweeps.write_sweep(workdir, sweep)
  noop = (sys.executable, str(STUB.with_name('noop_worker.py')))
  monkeypatch.setattr(worker_process, 'COMMAND', noop)
  # This project's packages first: tests/ has folders of the same names.
  folders = (STUB.parents[2], STUB.parents[1])
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(map(str, folders)))
  reported, shown = [], []

  def report(process, phase):
    process.__dict__['phase'] = phase
    reported.append(phase)

  phase = property(lambda process: process.__dict__['phase'], report)
  monkeypatch.setattr(worker_process.WorkerProcess, 'phase', phase, raising=False)
  update = local.Progress.update

  def show(progress, running, finished, phases):
    shown.append(phases)
    update(progress, running, finished, phases)

  monkeypatch.setattr(local.Progress, 'update', show)
  train(workdir, configs)
  assert [phase for phase, _ in itertools.groupby(reported)] == [
      'starting', 'reading text', 'compiling', 'training'
  ]
  assert shown[0] == ['starting workers'] and shown[-1] == []


WIDTHS = """
from launch.workers import worker

def make_layout(*arguments):
  from stability.devices.make_layout import make_layout
  layout = make_layout(*arguments)
  print('slots:', layout.width)
  return layout

worker.main(make_layout)
"""


def test_slots_for_the_runs_of_this_launcher(tmp_path, monkeypatch, capfd):
  """A job with two of a sweep's four runs, then a launcher with those that are left."""
  fields = {'parallel.layout': 'population', 'schedule.steps': 4, 'probe.every_steps': 0}
  data = training.prepare(tmp_path / 'data')
  training.write_sweep(tmp_path, data, hyper.sweep('seed', range(4)), **fields)
  (tmp_path / 'widths.py').write_text(WIDTHS)
  monkeypatch.setattr(worker_process, 'COMMAND', (sys.executable, str(tmp_path / 'widths.py')))
  monkeypatch.setenv('PYTHONPATH', str(STUB.parents[2]))
  configs = sweeps.read_sweep(tmp_path).runs
  train(tmp_path, dict(list(configs.items())[1:3]))
  train(tmp_path, configs)
  assert None not in results(tmp_path, configs)
  assert re.findall(r'slots: (\d+)', capfd.readouterr().err) == ['2', '2']
  run = run_files.run_dir(tmp_path, list(configs)[1])
  assert replay.replay(run, tmp_path / 'again', Console(file=io.StringIO())) == 0
  assert re.findall(r'slots: (\d+)', capfd.readouterr().err) == ['2']


def test_every_run_is_trained_once(place):
  workdir, configs = place(runs=7)
  train(workdir, configs, workers=3)
  assert results(workdir, configs) == ['done'] * 7
  assert [len(tries(workdir, name)) for name in configs] == [1] * 7
  assert leases(workdir) == []
  train(workdir, configs)  # nothing
  assert [len(tries(workdir, name)) for name in configs] == [1] * 7


def write_forks(workdir, config, runs):
  for name, run in runs.items():
    files.write_json(run_files.run_dir(workdir, name) / 'config.json', config)
    sweeps.write_fork(workdir, name, sweeps.Fork(run, 0, {}))


def test_forks_of_a_share(place):
  """Forks of its runs, also of finished ones, are trained; those of other shares are not."""
  workdir, configs = place()
  finished, ours, theirs = configs
  train(workdir, {finished: configs[finished]})
  runs = {'fork1': finished, 'fork2': ours, 'fork3': theirs, 'a_fork2': 'fork2', 'a_fork3': 'fork3'}
  write_forks(workdir, configs[ours], runs)
  local.train(workdir, {ours: configs[ours]}, 1, owned=[finished, ours])
  assert results(workdir, [ours, 'fork1', 'fork2', 'a_fork2']) == ['done'] * 4
  assert results(workdir, [theirs, 'fork3', 'a_fork3']) == [None] * 3
  train(workdir, configs)
  assert results(workdir, [theirs, 'fork3', 'a_fork3']) == ['done'] * 3


def test_gpus_of_workers(place, monkeypatch):
  """Workers see no GPU of each other's, nor do those that replace them."""
  monkeypatch.setattr(environment, 'accelerator', lambda: 'cuda')
  monkeypatch.setattr(environment, 'flags_error', lambda flags: '')
  monkeypatch.setattr(environment, 'gpus', lambda: ['4', '5', '6', '7'])
  seen, popen = [], subprocess.Popen

  def start(command, env, **options):
    seen.append(env['CUDA_VISIBLE_DEVICES'])
    return popen(command, env=env, **options)

  monkeypatch.setattr(subprocess, 'Popen', start)
  workdir, configs = place({0: ['kill', 'ok'], 1: ['kill', 'ok']}, runs=4)
  train(workdir, configs, workers=2)
  assert results(workdir, configs) == ['done'] * 4
  assert seen[:2] == ['4,5', '6,7'] and len(seen) > 2 and set(seen[2:]) <= set(seen[:2])


@pytest.mark.parametrize(
    ('fault', 'said'),
    [
        ('freeze', 'its worker sent no heartbeat for'),
        ('stuck', 'its worker made no progress for 4000 s and was killed'),
        ('kill', 'its worker was killed (signal 9), by the system for lack of memory or by'),
        ('exit', 'its worker ended with exit code 3'),
    ],
)
def test_lost_worker(place, capfd, monkeypatch, fault, said):
  if fault == 'freeze':
    monkeypatch.setattr(worker_process, 'SILENT_SECONDS', 1)
  workdir, configs = place({1: [fault, 'ok']})
  train(workdir, configs)
  assert results(workdir, configs) == ['done'] * 3
  assert [len(tries(workdir, name)) for name in configs] == [1, 2, 1]
  err = capfd.readouterr().err
  assert said in err and 'tried again from its start (try 2 of 3)' in err
  assert list(configs)[1] in err
  assert len({line['pid'] for line in tries(workdir, list(configs)[1])}) == 2


def test_three_lost_workers_fail_a_run(place):
  workdir, configs = place({0: ['exit'], 2: ['kill', 'exit', 'kill', 'ok']})
  train(workdir, configs, workers=2)
  assert results(workdir, configs) == ['failed', 'done', 'failed']
  first = next(iter(configs))
  assert [len(tries(workdir, name)) for name in configs] == [3, 1, 3]
  error = run_files.read_result(run_files.run_dir(workdir, first)).error
  assert 'some last words' in error
  assert error.splitlines()[-1] == (
      f'{first}: its worker ended with exit code 3, as in each of 3 tries; the other runs continue'
  )
  assert leases(workdir) == []
  train(workdir, configs)  # failed runs are tried again; now the third succeeds
  assert results(workdir, configs) == ['failed', 'done', 'done']


def test_new_checkpoint_resets_tries(place):
  workdir, configs = place({0: ['kill', 'reach', 'kill', 'reach', 'kill', 'ok']}, runs=1)
  train(workdir, configs)
  assert results(workdir, configs) == ['done'] and len(tries(workdir, next(iter(configs)))) == 6


def test_out_of_memory_halves_members(place, capfd):
  workdir, configs = place({0: [3]}, runs=1)
  train(workdir, configs)
  (name,) = configs
  assert results(workdir, configs) == ['done']
  assert [line['members'] for line in tries(workdir, name)] == [None, 4, 2]
  err = capfd.readouterr().err
  assert 'with at most 4 runs per device instead of 8' in err


def test_out_of_memory_with_one_member_fails(place):
  workdir, configs = place({0: [0]}, runs=2)
  train(workdir, configs)
  name = next(iter(configs))
  assert results(workdir, configs) == ['failed', 'done']
  assert [line['members'] for line in tries(workdir, name)] == [None, 4, 2, 1, 1, 1]
  error = run_files.read_result(run_files.run_dir(workdir, name)).error
  assert 'for lack of memory' in error.splitlines()[-1]


def test_preempted_worker_is_replaced(place):
  workdir, configs = place({0: ['saved'] * 5 + ['ok']}, runs=1)
  train(workdir, configs)
  assert results(workdir, configs) == ['done']
  assert len(tries(workdir, next(iter(configs)))) == 6


def test_worker_preempted_before_first_request(place, monkeypatch, tmp_path):
  """SLURM tells all processes of a job; an error here would keep the job from being requeued."""
  workdir, configs = place()
  script = f"""
import os, pathlib, runpy
told = pathlib.Path({str(tmp_path / 'told')!r})
if not told.exists():
  told.touch()
  os._exit(75)
runpy.run_path({str(STUB)!r}, run_name='__main__')
"""
  command = (sys.executable, '-S', '-E', '-c', script, str(tmp_path / 'plan.json'))
  monkeypatch.setattr(worker_process, 'COMMAND', command)
  train(workdir, configs)
  assert results(workdir, configs) == ['done'] * 3


def test_workers_cannot_start(place, monkeypatch):
  workdir, configs = place()
  ends = (sys.executable, '-S', '-c', 'raise SystemExit("no")')
  monkeypatch.setattr(worker_process, 'COMMAND', ends)
  with pytest.raises(RuntimeError, match='start: it ended with exit code 1; last output:\nno'):
    train(workdir, configs)
  killed = 'import os; os.kill(os.getpid(), 9)'
  monkeypatch.setattr(worker_process, 'COMMAND', (sys.executable, '-S', '-c', killed))
  with pytest.raises(RuntimeError, match='cannot start: it was killed'):
    train(workdir, configs)
  assert results(workdir, configs) == [None] * 3


@contextlib.contextmanager
def signals_installed():
  before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
  preemption.install()
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def train_until_told(workdir, configs, count, sent=signal.SIGTERM, **options):
  """Trains until the launcher is told to end, when workers have tried runs `count` times."""
  ended = threading.Event()

  def tried():
    return sum(len(tries(workdir, name)) for name in configs)

  def notify():
    deadline = time.monotonic() + 120
    while tried() < count and time.monotonic() < deadline:
      if ended.wait(0.01):
        return  # a signal would end the tests
    os.kill(os.getpid(), sent)

  helper = threading.Thread(target=notify, daemon=True)
  helper.start()
  try:
    with signals_installed(), pytest.raises(preemption.Preempted):
      train(workdir, configs, **options)
  finally:
    ended.set()
    helper.join()
  assert tried() >= count, 'told to end after the deadline'


@pytest.mark.parametrize('sent', preemption.SIGNALS)
def test_preemption(place, sent):
  workdir, configs = place({0: ['wait'], 1: ['wait']})
  train_until_told(workdir, configs, 2, sent, workers=2)
  assert results(workdir, configs) == [None] * 3
  for name in configs:
    assert leases_lib.holder(run_files.run_dir(workdir, name)) is None


def test_death_of_a_worker_that_is_told_to_end_does_not_count(place):
  """The signal may end the compiler of the worker too; its third death would be a failure."""
  workdir, configs = place({0: ['exit', 'exit', 'break']}, runs=1)
  train_until_told(workdir, configs, 3)
  assert results(workdir, configs) == [None]


def test_full_disk_while_saving(place):
  workdir, configs = place({0: ['full']}, runs=1)
  with pytest.raises(CannotWrite, match=f'{next(iter(configs))}: cannot be written: No space'):
    train_until_told(workdir, configs, 1)
  assert results(workdir, configs) == [None]


def test_slow_worker_is_killed(place, monkeypatch):
  monkeypatch.setattr(preemption, 'GRACE_SECONDS', 1)
  workdir, configs = place({0: ['freeze']}, runs=1)
  name = next(iter(configs))
  train_until_told(workdir, configs, 1)
  assert results(workdir, configs) == [None]
  with pytest.raises(ProcessLookupError):
    os.kill(tries(workdir, name)[0]['pid'], 0)


def contribute(workdir, configs, workers):
  """Trains a run as process 1 of a group does."""
  code = multihost.contribute_devices(workdir, *configs, multihost.ProcessGroup(1, {}))
  if code == preemption.EXIT_CODE:
    raise preemption.Preempted


@pytest.mark.parametrize('method', [local.train, contribute])
def test_large_states_have_time_to_be_saved(method, place, monkeypatch):
  monkeypatch.setattr(preemption, 'GRACE_SECONDS', 1)
  monkeypatch.setattr(local, 'train', method)
  workdir, configs = place({0: ['large']}, runs=1)
  train_until_told(workdir, configs, 1)
  assert run_files.checkpoint_steps(run_files.run_dir(workdir, *configs)) == [1]


def test_launchers_share_a_workdir(place):
  """Each run is trained by one launcher, and every launcher waits until all are finished."""
  workdir, configs = place(runs=24)
  launchers = [threading.Thread(target=train, args=(workdir, configs, 2)) for _ in range(3)]
  for launcher in launchers:
    launcher.start()
  for launcher in launchers:
    launcher.join(60)
  assert results(workdir, configs) == ['done'] * 24
  assert [len(tries(workdir, name)) for name in configs] == [1] * 24
  assert leases(workdir) == []


def test_runs_of_another_launcher(place, capfd):
  workdir, configs = place()
  folders = [run_files.run_dir(workdir, name) for name in configs]
  for folder in folders[:2]:
    theirs = leases_lib._identity(None) | {'machine': 'other'}
    (folder / 'lease.1.json').write_text(json.dumps(theirs))
  launcher = threading.Thread(target=train, args=(workdir, configs))
  launcher.start()
  deadline = time.monotonic() + 30
  while results(workdir, configs)[2] is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(0.5)
  assert launcher.is_alive() and results(workdir, configs) == [None, None, 'done']
  run_files.write_failure(folders[0], 'it was them')
  os.utime(folders[1] / 'lease.1.json', (time.time() - 70,) * 2)
  launcher.join(30)
  assert results(workdir, configs) == ['failed', 'done', 'done']
  assert [len(tries(workdir, name)) for name in configs] == [0, 1, 1]
  assert 'it was them' in capfd.readouterr().err


def test_lost_lease(place, monkeypatch, capfd):
  monkeypatch.setattr(leases_lib, 'REFRESH_SECONDS', 0.05)
  workdir, configs = place({0: ['wait', 'ok']}, runs=1)
  (name,) = configs
  folder = run_files.run_dir(workdir, name)
  launcher = threading.Thread(target=train, args=(workdir, configs))
  launcher.start()
  deadline = time.monotonic() + 30
  while not tries(workdir, name):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  theirs = leases_lib._identity(None) | {'machine': 'other'}
  (folder / 'lease.2.json').write_text(json.dumps(theirs))
  while 'was too slow' not in capfd.readouterr().err:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  assert len(tries(workdir, name)) == 1
  os.utime(folder / 'lease.2.json', (0, 0))
  launcher.join(30)
  assert results(workdir, configs) == ['done'] and len(tries(workdir, name)) == 2


def change_sweep(sweep_json, place, value):
  """Changes a value in sweep.json, or that of all its runs; None removes it."""
  *_, section, key = place.split('.')
  configs = sweep_json['runs'].values() if place.startswith('runs') else [sweep_json]
  for part in (config[section] for config in configs):
    if value is None:
      del part[key]
    else:
      part[key] = value


CHANGES = {
    'no longer a sweep': (None, r'sweep\.json: damaged: config_file is missing'),
    'no path': (('data.path', None), r'sweep\.json: damaged: data: path is missing'),
    'another path': (('data.path', 'elsewhere'), r'sweep\.json: its data, elsewhere, is missing'),
    'an unknown field': (('runs.model.new', 3), r"its run 'seed=0': config\.model\.new: no such"),
    'another config': (('runs.model.depth', 2), r"its run 'seed=0' has another config than .*json"),
}


@pytest.mark.parametrize('case', CHANGES)
def test_sweep_changes_meanwhile(case, place, monkeypatch):
  """The worker, which reads sweep.json after the launcher, reports it in one line."""
  change, said = CHANGES[case]
  workdir, configs = place(runs=1)
  path = workdir / 'sweep.json'
  found = files.read_json(path) | {'data': {'path': 'data/text'}}
  files.write_json(workdir / 'data' / 'text' / 'meta.json', {})
  monkeypatch.setattr(worker_process, 'COMMAND', WORKER)
  waiting = sweeps.runs_to_train(workdir, configs)
  if change is None:
    found = {}
  else:
    change_sweep(found, *change)
  files.write_json(path, found)
  with pytest.raises(BadInput, match=said) as error:
    local.train(workdir, waiting, 1)
  assert '\n' not in str(error.value) and results(workdir, configs) == [None]
