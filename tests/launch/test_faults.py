"""Real faults of processes: no work is lost or repeated, and no number changes.

The soak test (pytest -m soak tests/launch/test_faults.py) kills a hundred times.
"""

import contextlib
import json
import os
import pathlib
import pty
import random
import signal
import subprocess
import sys
import time

import pytest
from helpers import experiment
from helpers.processes import assert_end, children, command, is_running, outcomes, run, wait_for

from stability.storage import results_csv, run_files, sweeps

pytestmark = pytest.mark.slow

EXPERIMENT = experiment.config_file(
    {
        'data.batch_size': 8,
        'data.validation_batches': 4,
        'schedule.steps': 800,
        'schedule.warmup_steps': 20,
        'probe.every_steps': 50,
        'checkpoint.every_steps': 100,
    },
    "hyper.sweep('optimizer.learning_rate', [1e-2, 1.0, 1e25])",
)
PREEMPTED = 75
PATIENCE = 240  # seconds; generous, for a busy machine


@pytest.fixture(scope='module')
def undisturbed(place):
  """The outcomes of the sweep without faults, and the seconds it takes once it is compiled."""
  for workdir in ('first', 'undisturbed'):
    begun = time.monotonic()
    process = run(place, 'sweep', *arguments(workdir))
    assert process.returncode == 0, process.stderr
  return outcomes(place / 'undisturbed'), time.monotonic() - begun


def arguments(workdir, workers=1):
  return [f'--workdir={workdir}', '--config=experiment.py', f'--workers={workers}']


def launch(place, workdir, workers=1):
  return subprocess.Popen(
      **command(place, 'sweep', *arguments(workdir, workers)),
      stdout=subprocess.DEVNULL,
      stderr=(place / f'{workdir}.log').open('a'),
  )


def last_checkpoint(folder):
  """The step of the last complete checkpoint, 0 if there is none."""
  marks = folder.glob('checkpoints/*/checksums.json')
  return max((int(mark.parent.name) for mark in marks), default=0)


def kept(workdir):
  """The bytes of each run's metrics that must never be rewritten: up to its last checkpoint."""
  found = {}
  for folder in workdir.glob('runs/*'):
    if (folder / 'metrics.jsonl').exists():
      until = last_checkpoint(folder)
      lines = (folder / 'metrics.jsonl').read_bytes().splitlines(keepends=True)
      whole = [line for line in lines if line.endswith(b'\n')]
      if not (folder / 'result.json').exists():
        whole = [line for line in whole if json.loads(line)['step'] <= until]
      found[folder.name] = b''.join(whole)
  return found


def finished(workdir):
  """The time at which the result of each finished run was written."""
  return {path.parent.name: path.stat().st_mtime_ns for path in workdir.glob('runs/*/result.json')}


def assert_nothing_lost(workdir, before):
  """Compares bytes, which contain clock readings, so that repeated work would show."""
  lines, results = before
  now = kept(workdir)
  for name, content in lines.items():
    assert now[name].startswith(content), f'{name}: saved steps were trained again'
  assert finished(workdir).items() >= results.items(), 'a finished run was trained again'


def kill(launcher, what, rng):
  """Kills a worker, the launcher or everything; workers must end with their launcher."""
  workers = children(launcher.pid)
  victims = {'launcher': [launcher.pid], 'everything': [launcher.pid, *workers]}.get(what)
  for victim in victims or [rng.choice(workers or [launcher.pid])]:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
      os.kill(victim, signal.SIGKILL)
  if victims is None and workers:
    return
  launcher.wait()
  assert_end(workers)


def disturb(place, undisturbed, name, seed, kills):
  """Kills at random moments until the sweep has finished; returns the number of kills."""
  expected, span = undisturbed
  rng = random.Random(seed)
  workdir = place / name
  done, before = 0, ({}, {})
  launcher = launch(place, name, workers=rng.choice((1, 2)))
  try:
    while True:
      pause = rng.uniform(0, 0.9 * span) if done < kills else 4 * PATIENCE
      try:
        code = launcher.wait(pause)
      except subprocess.TimeoutExpired:
        assert done < kills, 'the sweep does not end'
        kill(launcher, rng.choice(('worker', 'launcher', 'everything')), rng)
        done += 1
        if launcher.returncode is None:
          continue
      else:
        failed = [row for row in results_csv.read_results(workdir) if row['status'] == 'failed']
        assert code == (1 if failed else 0), (place / f'{name}.log').read_text()
        assert all('signal 9' in row['error'] for row in failed)
        if not failed:
          break
        for row in failed:  # three workers died with it; the next start retries it
          before[1].pop(row['run'], None)
      assert_nothing_lost(workdir, before)
      before = kept(workdir), {
          run: at for run, at in finished(workdir).items() if not has_failed(workdir, run)
      }
      launcher = launch(place, name, workers=rng.choice((1, 2)))
  finally:
    launcher.kill()
    launcher.wait()
  assert_nothing_lost(workdir, before)
  assert outcomes(workdir) == expected
  assert not list(workdir.rglob('lease.*'))
  return done


def has_failed(workdir, run):
  return run_files.read_result(run_files.run_dir(workdir, run)).status == 'failed'


def test_random_kills(place, undisturbed):
  """A sweep may end before it is killed if the machine was busier while its time was taken."""
  assert any(disturb(place, undisturbed, f'killed-{seed}', seed, kills=4) for seed in range(5))


@pytest.mark.soak
def test_a_hundred_random_kills(place, undisturbed):
  kills = 0
  for seed in range(1000):
    kills += disturb(place, undisturbed, f'soak-{seed}', seed, 100 - kills)
    if kills == 100:
      return


def wait_for_lines(launcher, workdir, count):
  """Waits until an unfinished run has this many lines of metrics; returns its folder."""
  deadline = time.monotonic() + PATIENCE
  while True:
    for path in workdir.glob('runs/*/metrics.jsonl'):
      over = (path.parent / 'result.json').exists()
      if not over and path.read_bytes().count(b'\n') >= count:
        return path.parent
    assert time.monotonic() < deadline and launcher.poll() is None
    time.sleep(0.005)


def test_preemption_of_worker_and_launcher(place, undisturbed):
  """Every line logged before is still there afterwards, byte for byte."""
  workdir = place / 'told'
  launcher = launch(place, 'told')
  folder = wait_for_lines(launcher, workdir, 3)
  (worker,) = children(launcher.pid)
  os.kill(worker, signal.SIGUSR1)
  deadline = time.monotonic() + PATIENCE
  while is_running(worker):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  lines = (folder / 'metrics.jsonl').read_bytes()
  assert last_checkpoint(folder) >= run_files.last_metrics(folder)['step']
  while len((folder / 'metrics.jsonl').read_bytes()) == len(lines):  # another worker continues
    assert time.monotonic() < deadline and launcher.poll() is None
    time.sleep(0.005)
  assert (folder / 'metrics.jsonl').read_bytes().startswith(lines)
  launcher.send_signal(signal.SIGTERM)
  told = time.monotonic()
  assert launcher.wait(PATIENCE) == PREEMPTED
  assert time.monotonic() - told < 10
  for folder in workdir.glob('runs/*'):
    logged = run_files.last_metrics(folder)
    if logged and not (folder / 'result.json').exists():
      assert last_checkpoint(folder) >= logged['step'] > 0
  before = kept(workdir), finished(workdir)
  assert run(place, 'sweep', *arguments('told')).returncode == 0
  assert_nothing_lost(workdir, before)
  assert outcomes(workdir) == undisturbed[0]


TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_closed_terminal(place):
  """The kernel sends SIGHUP to what runs in it."""
  workdir = place / 'hangup'
  prepared = command(place, 'sweep', *arguments(workdir), '--config.schedule.steps=100000')
  prepared['args'] = [sys.executable, '-c', TERMINAL, *prepared['args'][1:]]
  main, terminal = pty.openpty()
  launcher = subprocess.Popen(**prepared, stdin=terminal, stdout=terminal, stderr=terminal)
  os.close(terminal)
  try:
    folder = wait_for_lines(launcher, workdir, 20)
    os.close(main)
    assert launcher.wait(PATIENCE) == PREEMPTED
  finally:
    launcher.kill()
  assert last_checkpoint(folder) >= run_files.last_metrics(folder)['step'] > 0


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGUSR1])
def test_preemption_while_compiling(place, tmp_path, sent):
  prepared = command(
      place, 'train', '--workdir=compiling', '--config=experiment.py', '--config.model.depth=3'
  )
  cache = tmp_path / 'cache'
  prepared['env']['XDG_CACHE_HOME'] = str(cache)
  launcher = subprocess.Popen(**prepared, stderr=subprocess.PIPE)
  try:
    deadline = time.monotonic() + PATIENCE
    while not list(cache.glob('**/compiling/*')):  # a program is being compiled
      assert time.monotonic() < deadline and launcher.poll() is None
      time.sleep(0.01)
    workers = children(launcher.pid)
    launcher.send_signal(sent)
    told = time.monotonic()
    _, err = launcher.communicate(timeout=2 * PATIENCE)
  finally:
    launcher.kill()
  assert launcher.returncode == PREEMPTED and time.monotonic() - told < 10
  assert err.endswith('preempted; to go on, start the same command again\n')
  assert not any(map(is_running, workers))
  for path in (place / 'compiling').rglob('*.json'):
    json.loads(path.read_text())
  assert not list((place / 'compiling').rglob('metrics.jsonl'))


def test_end_of_standard_input(place):
  """An attached launcher saves its runs, as on SIGTERM."""
  workdir = place / 'attached'
  more = ('--config.schedule.steps=100000', '--attached')
  prepared = command(place, 'sweep', *arguments(workdir), *more)
  with subprocess.Popen(**prepared, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
    try:
      folder = wait_for_lines(launcher, workdir, 20)
      workers = children(launcher.pid)
      _, err = launcher.communicate(timeout=PATIENCE)  # closes it
    finally:
      launcher.kill()
  assert launcher.returncode == PREEMPTED and err.endswith('start the same command again\n')
  assert not any(map(is_running, workers))
  assert last_checkpoint(folder) >= run_files.last_metrics(folder)['step'] > 0


SLOW_EVALUATION = """
import time
from launch.workers import worker

def make_slow_layout(*arguments):
  from stability.devices.make_layout import make_layout
  layout = make_layout(*arguments)
  evaluate = layout.evaluate

  def evaluate_slowly(state, interrupted):
    with open('evaluations', 'a') as file:
      file.write('x')
    return evaluate(state, lambda: time.sleep(1) or interrupted())

  layout.evaluate = evaluate_slowly
  return layout

worker.main(make_slow_layout)
"""


def test_preemption_while_evaluating(place, undisturbed):
  """Preempts the first evaluation, before any step, and the last, after all steps."""
  workdir, evaluations = place / 'evaluating', place / 'evaluations'  # a byte per evaluation
  (place / 'evaluating.py').write_text(SLOW_EVALUATION)
  launcher = (
      'import sys; from launch import train; from launch.common import app, preemption;'
      'from launch.workers import worker_process; preemption.install();'
      'worker_process.COMMAND = (sys.executable, "evaluating.py");'
      'app.run(train.main, train.FLAGS)'
  )
  prepared = command(place, 'train')
  prepared['args'] = [
      *(sys.executable, '-c', launcher, '--workdir=evaluating', '--config=experiment.py')
  ]
  begun = 0  # evaluations so far
  for sent, more in ((signal.SIGTERM, 1), (signal.SIGUSR1, 2)):
    process = subprocess.Popen(**prepared, stderr=subprocess.DEVNULL)
    try:
      deadline = time.monotonic() + PATIENCE
      while not evaluations.exists() or evaluations.stat().st_size < begun + more:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
      begun += more
      process.send_signal(sent)
      told = time.monotonic()
      assert process.wait(PATIENCE) == PREEMPTED and time.monotonic() - told < 10
    finally:
      process.kill()
    (folder,) = workdir.glob('runs/*')
    assert not (folder / 'result.json').exists()
    assert last_checkpoint(folder) == (0 if sent == signal.SIGTERM else 800)
  assert run(place, 'train', *prepared['args'][3:]).returncode == 0
  assert evaluations.stat().st_size == begun
  expected, _ = undisturbed
  assert list(outcomes(workdir).values()) == [expected['learning_rate=0.01,seed=0']]


def test_damaged_checkpoint(place, undisturbed):
  workdir = place / 'damaged'
  launcher = launch(place, 'damaged')
  wait_for(launcher, workdir, 'runs/*/checkpoints/200/checksums.json')
  kill(launcher, 'everything', random)
  (path,) = (
      p for p in workdir.glob('runs/*/checkpoints') if not (p.parent / 'result.json').exists()
  )
  step = last_checkpoint(path.parent)
  file = max((path / str(step)).rglob('*'), key=lambda f: f.stat().st_size * f.is_file())
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])
  again = run(place, 'sweep', *arguments('damaged', workers=2))
  assert again.returncode == 0
  said = f'{path.parent.name}: the checkpoint of step {step} is damaged and not used: {file}'
  (line,) = [line for line in again.stderr.splitlines() if said in line]
  assert line.endswith(f'the run resumes from step {step - 100}')
  assert outcomes(workdir) == undisturbed[0]


def test_read_only_disk(place, undisturbed):
  disk = place / 'disk'
  disk.mkdir()
  workdir = disk / 'sweep'
  tmpfs = ['mount', '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs', str(disk)]
  if subprocess.run(tmpfs, capture_output=True, check=False).returncode:
    pytest.skip('may not mount here')
  prepared = command(place, 'sweep', *arguments(workdir))
  launcher = subprocess.Popen(**prepared, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  try:
    wait_for(launcher, workdir, 'runs/*/checkpoints/100/checksums.json')
    # A read-only bind mount over it leaves open files open, as a disk error does.
    subprocess.run(['mount', '--bind', disk, disk], check=True)
    subprocess.run(['mount', '-o', 'remount,bind,ro', disk], check=True)
    out, err = launcher.communicate(timeout=PATIENCE)
    assert launcher.returncode == 1 and not out and 'Traceback' not in err, err
    last = err.splitlines()[-1]
    assert last.startswith(f'error: {workdir}/') and 'Read-only file system' in last
    before = kept(workdir), finished(workdir)
    assert sweeps.read_sweep(workdir)
    subprocess.run(['umount', disk], check=True)
    again = run(place, 'sweep', *arguments(workdir))
    assert again.returncode == 0, again.stderr
    assert_nothing_lost(workdir, before)
    assert outcomes(workdir) == undisturbed[0]
  finally:
    launcher.kill()
    while os.path.ismount(disk):
      subprocess.run(['umount', '--lazy', disk], check=True)


def test_one_of_two_launchers_is_killed(place, undisturbed):
  workdir = place / 'two'
  launchers = [launch(place, 'two') for _ in range(2)]
  try:
    deadline = time.monotonic() + PATIENCE
    while not list(workdir.glob('runs/*/lease.*.json')):
      assert time.monotonic() < deadline
      time.sleep(0.005)
    (taken, *_) = workdir.glob('runs/*/lease.*.json')
    holder = json.loads(taken.read_text())['pid']
    killed, other = sorted(launchers, key=lambda launcher: launcher.pid != holder)
    assert killed.pid == holder
    wait_for(killed, workdir, f'runs/{taken.parent.name}/metrics.jsonl')
    kill(killed, 'launcher', random)
    assert other.wait(2 * PATIENCE) == 0, (place / 'two.log').read_text()
  finally:
    for launcher in launchers:
      launcher.kill()
      launcher.wait()
  assert outcomes(workdir) == undisturbed[0]
  assert not list(workdir.rglob('lease.*'))
  for folder in workdir.glob('runs/*'):  # each start of a run writes an event file
    begun = len(list(folder.glob('events.*')))
    assert begun == 1 or (begun == 2 and folder == taken.parent)


def test_worker_without_answers_ends(tmp_path):
  program = 'from launch.workers import worker; worker.SILENCE_SECONDS = 1; worker.main()'
  worker = subprocess.Popen(
      [sys.executable, '-c', program, f'--workdir={tmp_path}', '--cores=0'],
      env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
      stdin=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
  )
  try:
    assert worker.wait(PATIENCE) == PREEMPTED
  finally:
    worker.kill()
    worker.stdin.close()


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the kernel is asked')
@pytest.mark.parametrize('when', ['later', 'before it has begun'])
def test_blocked_worker_ends_with_its_launcher(tmp_path, when):
  """While XLA or an import holds the interpreter lock, no thread can see standard input close."""
  hold = 'ctypes.PyDLL(None).sleep(600)'
  lines = [
      'import ctypes, os, pathlib, time',
      'from launch.common import environment, preemption',
      'from launch.workers import worker',
      f'environment.pin = lambda cores: (pathlib.Path("holds").touch(), {hold})',
  ]
  if when != 'later':  # it asks the kernel only after its launcher has died
    lines.append('pathlib.Path("holds").touch()')
    lines.append('while not os.path.exists("dead"): time.sleep(0.01)')
    lines.append(f'worker.FLAGS = lambda argv: {hold}')
  (tmp_path / 'holding.py').write_text('\n'.join([*lines, 'worker.main()']))
  launcher = (
      'import pathlib, sys; from launch.workers import shares, worker_process as w;'
      'w.COMMAND = (sys.executable, "holding.py");'
      'w.WorkerProcess(pathlib.Path("."), shares.Share([0], {})).wait()'
  )
  process = subprocess.Popen(
      [sys.executable, '-c', launcher],
      cwd=tmp_path,
      env=os.environ | {'PYTHONPATH': str(pathlib.Path(__file__).parents[2])},
  )
  deadline = time.monotonic() + PATIENCE
  while not (tmp_path / 'holds').exists():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.01)
  (worker,) = children(process.pid)
  try:
    process.kill()
    process.wait()
    (tmp_path / 'dead').touch()
    assert_end([worker])
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.kill(worker, signal.SIGKILL)


@pytest.mark.soak
def test_stopped_worker_is_replaced(place, undisturbed):
  workdir = place / 'stopped'
  prepared = command(place, 'sweep', *arguments('stopped'))
  program = (
      'from launch import sweep; from launch.common import app;'
      'from launch.workers import worker_process;'
      'worker_process.SILENT_SECONDS = 15; app.run(sweep.main, sweep.FLAGS)'
  )
  prepared['args'] = [sys.executable, '-c', program, *arguments('stopped')]
  launcher = subprocess.Popen(**prepared, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
  try:
    wait_for_lines(launcher, workdir, 3)
    (worker,) = children(launcher.pid)
    os.kill(worker, signal.SIGSTOP)
    _, err = launcher.communicate(timeout=2 * PATIENCE)
  finally:
    launcher.kill()
  assert launcher.returncode == 0 and 'sent no heartbeat' in err
  assert outcomes(workdir) == undisturbed[0]
