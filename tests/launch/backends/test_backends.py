"""Sweeps on real backends: a manifest, SLURM and Ray on this machine.

The outcome of a run must not depend on the backend, or on how often it is moved.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import experiment, slurm_cluster
from helpers import multihost as multihost_helper

from launch.backends import slurm as slurm_backend
from launch.common import jobs
from stability.storage import run_files, sweeps

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
SECONDS = 600  # to wait at most, on a busy machine

FIELDS = {
    'data.batch_size': 4,
    'data.validation_batches': 1,
    'schedule.steps': 20,
    'schedule.warmup_steps': 2,
    'log.every_steps': 5,
    'probe.every_steps': 0,
    'checkpoint.every_steps': 10,
}
SWEEP = """hyper.product([
      hyper.sweep('model.depth', [1, 2]),
      hyper.sweep('optimizer.learning_rate', [1e-2, 1e-1]),
  ])"""
# One run that is long enough to be interrupted.
LONG = (
    '--config=one.py',
    '--config.schedule.steps=1500',
    '--config.log.every_steps=50',
    '--config.checkpoint.every_steps=100',
)
NAME = 'seed=0'


class Place:
  """A folder with config files and its own compilation cache, in which programs are run."""

  def __init__(self, folder):
    self.folder = folder
    (folder / 'four.py').write_text(experiment.config_file(FIELDS, SWEEP))
    (folder / 'one.py').write_text(experiment.config_file(FIELDS))
    self.variables = os.environ | {
        'PYTHONPATH': str(ROOT),
        'XDG_CACHE_HOME': str(folder / 'cache'),
        'XLA_FLAGS': '--xla_backend_optimization_level=0',  # compiles faster
        'RAY_worker_niceness': '0',  # the default 15 starves them on a busy machine
    }

  def start(self, program, *arguments, **more):
    return subprocess.Popen(
        [sys.executable, '-m', f'launch.{program}', *arguments],
        cwd=self.folder,
        env=self.variables | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

  def run(self, program, *arguments, **more):
    """Runs a program to its end; returns its output and exit code."""
    process = self.start(program, *arguments, **more)
    try:
      return process.communicate(timeout=SECONDS)[0], process.returncode
    finally:
      process.kill()

  def outcomes(self, workdir):
    """The rows and results of a sweep's runs, without clock readings."""
    found = {}
    for name in sweeps.read_sweep(self.folder / workdir).runs:
      run = run_files.run_dir(self.folder / workdir, name)
      result = run_files.read_result(run)
      lines = [*run_files.read_metrics(run), result.to_json() if result else {}]
      found[name] = [
          {key: value for key, value in line.items() if key not in multihost_helper.WALL_CLOCK}
          for line in lines
      ]
    return found


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  return Place(tmp_path_factory.mktemp('place'))


@pytest.fixture(scope='module')
def expected(place):
  """The outcomes of the four runs, trained by the local backend without interruption."""
  said, code = place.run('sweep', '--config=four.py', '--workdir=local', '--workers=1')
  assert code == 0, said
  return place.outcomes('local')


@pytest.fixture(scope='module')
def expected_long(place):
  """The outcome of the long run without interruption."""
  said, code = place.run('sweep', *LONG, '--workdir=local_long', '--workers=1')
  assert code == 0, said
  return place.outcomes('local_long')


@pytest.fixture(scope='module')
def slurm(place, tmp_path_factory):
  """The environment variables of a SLURM cluster on this machine."""
  if why := slurm_cluster.missing():
    pytest.skip(why)
  with slurm_cluster.cluster(tmp_path_factory.mktemp('slurm')) as conf:
    yield {'SLURM_CONF': str(conf)}


@contextlib.contextmanager
def ending(process):
  """Waits for a process at the end of the block and appends its output to the yielded list."""
  said = []
  try:
    yield said
    said.append(process.communicate(timeout=SECONDS)[0])
  finally:
    process.kill()
    process.wait()


def wait_for(what, process=None):
  """Waits for a function to return a true value; fails if the process ends first."""
  deadline = time.monotonic() + SECONDS
  while not (value := what()):
    assert time.monotonic() < deadline
    assert process is None or process.poll() is None, process.communicate()[0]
    time.sleep(0.05)
  return value


def step(place, workdir):
  """The last step that the long run has logged, 0 if none."""
  line = run_files.last_metrics(run_files.run_dir(place.folder / workdir, NAME))
  return line['step'] if line else 0


def test_manifest_then_local(place, expected):
  sweep = ('--config=four.py', '--workdir=manifest', '--backend=manifest', '--jobs=2')
  said, code = place.run('sweep', *sweep)
  assert code == 0 and '2 jobs for 4 runs' in said
  first, _ = map(json.loads, (place.folder / 'manifest' / 'manifest.jsonl').open())
  subprocess.run(
      first['command'],
      env=place.variables | first['env'],
      cwd='/',  # it must not matter
      timeout=SECONDS,
      check=True,
  )
  over = [lines for lines in place.outcomes('manifest').values() if lines[-1]]
  assert 0 < len(over) < 4
  said, code = place.run('sweep', *sweep[:2], '--workers=1')
  assert code == 0, said
  assert f'{4 - len(over)}/{4 - len(over)} runs finished' in said
  assert place.outcomes('manifest') == expected


def test_manifest_commands_of_the_readme(place, expected, slurm):
  """Runs the lines of launch/README.md: one sweep with GNU parallel, one with SLURM."""
  if absent := [program for program in ('jq', 'parallel') if not shutil.which(program)]:
    pytest.skip(f'{absent[0]} is not installed')
  readme = (ROOT / 'launch' / 'README.md').read_text()
  jq, parallel, sbatch = re.findall(r'^(?:jq|parallel|sbatch) -.+', readme, re.MULTILINE)
  for workdir, scheduler in (('by parallel', parallel), ('by_array', f'{sbatch} --wait')):
    said, code = place.run(
        'sweep', '--config=four.py', f'--workdir={workdir}', '--backend=manifest', '--jobs=2'
    )
    assert code == 0, said
    subprocess.run(
        ['bash', '-euc', '\n'.join([jq.replace('DIR', shlex.quote(workdir)), scheduler])],
        cwd=place.folder,
        env=place.variables | slurm,
        timeout=SECONDS,
        check=True,
    )
    assert place.outcomes(workdir) == expected


def test_array_of_the_readme_starts_preempted_jobs_again(tmp_path, slurm):
  readme = (ROOT / 'launch' / 'README.md').read_text()
  (sbatch,) = re.findall(r'^sbatch -.+', readme, re.MULTILINE)
  job = 'echo >> starts; [ $(wc -l < starts) = 2 ] || exit 75'
  (tmp_path / 'jobs.sh').write_text(f'sh -c {shlex.quote(job)}\n')
  subprocess.run(['bash', '-euc', sbatch], cwd=tmp_path, env=os.environ | slurm, check=True)
  wait_for((tmp_path / 'starts').exists)
  wait_for(lambda: not scontrol(slurm, 'squeue', '--noheader').split())
  assert (tmp_path / 'starts').read_text() == '\n\n'


def test_local_then_slurm_then_local(place, expected, slurm):
  """The traceback of a run that fails in a job is shown by the launcher."""
  sweep = ('--config=four.py', '--workdir=a slurm\'s "$HOME"')
  folder = place.folder / sweep[1].removeprefix('--workdir=')
  place.run('sweep', *sweep, '--backend=manifest')
  shallow, _, deep, last = expected
  (place.folder / 'last.json').write_text(json.dumps([last]))
  said, code = place.run('work', sweep[1], '--runs=last.json', '--workers=1')
  assert code == 0, said
  (done,) = folder.glob('runs/*/result.json')
  before = done.stat().st_mtime_ns
  wrong = folder / 'runs' / deep / 'checkpoints'
  shutil.copytree(place.folder / 'local' / 'runs' / shallow / 'checkpoints', wrong)

  asked = ('--backend=slurm', '--jobs=2', '--job_cpus=1', '--job_memory_gb=1')
  said, code = place.run('sweep', *sweep, *asked, **slurm)
  assert code == 1
  assert '2 tasks for 3 runs' in said and '3/3 runs finished' in said
  assert 'Traceback' in said and 'stability/trainer/' in said, said  # the place of the error
  assert f'failed: {deep}: KeyError' in said

  shutil.rmtree(wrong)
  said, code = place.run('sweep', *sweep, '--workers=1')
  assert code == 0, said
  assert '1/1 runs finished' in said
  assert done.stat().st_mtime_ns == before
  assert place.outcomes(folder) == expected


def scontrol(slurm, *arguments):
  environment = os.environ | slurm
  return subprocess.run(
      arguments, env=environment, capture_output=True, text=True, check=True
  ).stdout


def test_slurm_job_that_inherits_nothing(tmp_path, slurm, monkeypatch):
  """The script's variables reach the trainer; printenv takes --runs for a variable."""
  monkeypatch.setattr(jobs, 'command', lambda *_: ['printenv', 'PYTHONPATH'])
  resources = jobs.Resources(jobs=1, cpus=1, gpus=0, memory_gb=None, minutes=None)
  (tmp_path / 'slurm').mkdir()
  script = tmp_path / 'slurm' / 'a.sh'
  script.write_text(slurm_backend.script(tmp_path, [tmp_path / 'list.json'], resources))
  command = slurm_backend.sbatch(tmp_path, 'a', 1, 60, resources, ['--export=NONE'])
  job = scontrol(slurm, *command, str(script)).strip()
  wait_for(lambda: not scontrol(slurm, 'squeue', '--noheader').split())
  said = (tmp_path / 'slurm' / f'{job}_0.log').read_text()
  # Among lines of srun, which may have waited for the step.
  assert str(ROOT) in [line.split(':')[0] for line in said.splitlines()], said


def test_slurm_preemption(place, expected_long, slurm):
  """A job of a partition with higher priority preempts the one that flags have configured."""
  asked = ('--slurm_partition=all', '--job_cpus=1', '--job_gpus=1', '--job_minutes=90')
  sweep = place.start('sweep', *LONG, *asked, '--workdir=requeued', '--backend=slurm', **slurm)
  with ending(sweep) as said:
    wait_for(lambda: step(place, 'requeued') >= 300, sweep)
    (job,) = scontrol(slurm, 'squeue', '--noheader', '--partition=all', '--format=%A').split()
    shown = scontrol(slurm, 'scontrol', 'show', 'job', job)
    for fact in ('Partition=all', 'NumCPUs=1', 'TresPerNode=gres:gpu:1', 'TimeLimit=01:30:00'):
      assert fact in shown
    urgent = ('--partition=urgent', '--cpus-per-task=2', '--chdir=/', '--output=/dev/null')
    scontrol(slurm, 'sbatch', *urgent, '--wrap=sleep 2')
    wait_for(lambda: 'Restarts=1' in scontrol(slurm, 'scontrol', 'show', 'job', job), sweep)
    left_at = step(place, 'requeued')
    assert left_at < 1500  # otherwise it had already finished
  assert sweep.returncode == 0, said
  assert 'JobState=COMPLETED' in scontrol(slurm, 'scontrol', 'show', 'job', job)
  assert place.outcomes('requeued') == expected_long


def test_slurm_cancellation(place, slurm):
  endless = (*LONG, '--config.schedule.steps=1000000', '--workdir=cancelled', '--backend=slurm')
  sweep = place.start('sweep', *endless, **slurm)
  with ending(sweep):
    wait_for(lambda: step(place, 'cancelled') >= 50, sweep)
    sweep.send_signal(signal.SIGINT)
  ((job,),) = [scontrol(slurm, 'squeue', '--noheader', '--format=%A').split()]
  again = place.start('sweep', *endless, **slurm)
  with ending(again) as said:
    for line in again.stdout:
      if 'earlier jobs' in line:
        break
    assert scontrol(slurm, 'squeue', '--noheader', '--format=%A').split() == [job]
    scontrol(slurm, 'scancel', job)
    wait_for(lambda: not scontrol(slurm, 'squeue', '--noheader').split())
  assert again.returncode == 1
  assert 'no job is left, but some runs are unfinished' in said[0]
  assert '1 runs have not finished' in said[0]
  assert not scontrol(slurm, 'squeue', '--noheader').split()


def test_srun_multihost(place, slurm):
  """Two tasks of srun equal one process with all devices, up to the order of summation."""
  fields = multihost_helper.FIELDS | {'parallel.layout': 'data_parallel'}
  shared, alone = place.folder / 'shared', place.folder / 'alone'
  done = subprocess.run(
      [
          *('srun', '--ntasks=2', sys.executable, '-m', 'launch.train', '--config=one.py'),
          *(f'--config.{field}={value}' for field, value in fields.items()),
          *('--multihost=auto', f'--workdir={shared}'),
      ],
      cwd=place.folder,
      env=place.variables
      | slurm
      | {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('count=8', 'count=4')},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      timeout=SECONDS,
      check=False,
  )
  assert done.returncode == 0, done.stdout
  multihost_helper.check_against_one_process(shared, alone)


def workers_of(workdir):
  """The ids (process, parent) of each launch.work on a workdir."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):
      words = (path / 'cmdline').read_text().split('\0')
      if 'launch.work' in words and f'--workdir={workdir}' in words:
        parent = (path / 'stat').read_text().rsplit(')', 1)[1].split()[1]
        found.append((int(path.name), int(parent)))
  return found


@pytest.fixture
def ray_cluster(monkeypatch):
  """A Ray cluster with one node of one core, to which tests add nodes."""
  if importlib.util.find_spec('ray') is None:
    pytest.skip("Ray is not installed: pip install -e '.[ray]'")
  monkeypatch.setenv('RAY_worker_niceness', '0')  # for its nodes
  from ray import cluster_utils

  cluster = cluster_utils.Cluster(True, head_node_args={'num_cpus': 1, 'include_dashboard': False})
  yield cluster
  cluster.shutdown()


def raylet_of(work):
  """The raylet process of the node on which a task's program runs."""
  variables = pathlib.Path(f'/proc/{work}/environ').read_text().split('\0')
  (raylet,) = [v for v in variables if v.startswith('RAY_RAYLET_PID=')]
  return int(raylet.removeprefix('RAY_RAYLET_PID='))


def test_local_then_ray_that_loses_its_node(
    place, expected_long, ray_cluster
):
  """Only one node at a time has the requested cores; the cluster is found by its address."""
  folder = place.folder / 'moved'
  local = place.start('sweep', *LONG, f'--workdir={folder}', '--workers=1')
  with ending(local):
    wait_for(lambda: step(place, 'moved') >= 300, local)
    local.send_signal(signal.SIGTERM)
  assert local.returncode == 75

  on_ray = ('--backend=ray', f'--ray_address={ray_cluster.address}', '--job_cpus=2')
  sweep = place.start('sweep', *LONG, f'--workdir={folder}', *on_ray)
  with ending(sweep) as said:
    for line in sweep.stdout:
      if 'no node of this Ray cluster has 2 CPUs' in line:
        break
    first = ray_cluster.add_node(num_cpus=2)
    ((work, _),) = wait_for(lambda: workers_of(folder), sweep)
    assert raylet_of(work) == first.all_processes['raylet'][0].process.pid
    wait_for(lambda: step(place, 'moved') >= 500, sweep)
    ray_cluster.remove_node(first, allow_graceful=False)
    wait_for(lambda: not workers_of(folder), sweep)
    assert step(place, 'moved') < 1500
    second = ray_cluster.add_node(num_cpus=2)
    ((again, _),) = wait_for(lambda: workers_of(folder), sweep)
    assert raylet_of(again) == second.all_processes['raylet'][0].process.pid
  assert sweep.returncode == 0, said
  assert '1/1 runs finished' in said[0]
  assert place.outcomes('moved') == expected_long


def test_ray_task_fails(place, ray_cluster):
  """The log of the job cannot be written."""
  sweep = ('--config=one.py', f'--workdir={place.folder / "no_log"}')
  place.run('sweep', *sweep, '--backend=manifest')
  (listed,) = (place.folder / 'no_log').glob('jobs/*.json')
  (place.folder / 'no_log' / 'ray' / f'{listed.stem}.log').mkdir(parents=True)
  on_ray = ('--backend=ray', f'--ray_address={ray_cluster.address}')
  said, code = place.run('sweep', *sweep, *on_ray)
  assert code == 1
  assert 'no job is left, but some runs are unfinished' in said
  assert 'a Ray task failed' in said and 'IsADirectoryError' in said
  assert 'no node of this Ray' not in said


def test_ray_ends_with_its_launcher(place):
  """Told to end, the launcher has the tasks save their runs first."""
  if importlib.util.find_spec('ray') is None:
    pytest.skip("Ray is not installed: pip install 'stability[ray]'")
  folder = place.folder / 'ray_told'
  endless = (*LONG, '--config.schedule.steps=1000000', '--config.checkpoint.every_steps=500000')
  sweep = place.start('sweep', *endless, f'--workdir={folder}', '--backend=ray', '--job_cpus=1')
  with ending(sweep) as said:
    wait_for(lambda: step(place, 'ray_told') >= 300, sweep)
    sweep.send_signal(signal.SIGTERM)
  assert sweep.returncode == 75, said
  assert said[0].endswith('preempted; to go on, start the same command again\n')
  assert not workers_of(folder)
  run = run_files.run_dir(folder, NAME)
  saved = [int(path.parent.name) for path in run.glob('checkpoints/*/checksums.json')]
  assert max(saved) >= run_files.last_metrics(run)['step']


def test_ray_loses_a_worker(place, expected_long):
  if importlib.util.find_spec('ray') is None:
    pytest.skip("Ray is not installed: pip install -e '.[ray]'")
  folder = place.folder / 'ray'
  sweep = place.start('sweep', *LONG, f'--workdir={folder}', '--backend=ray', '--job_cpus=1')
  with ending(sweep) as said:
    wait_for(lambda: step(place, 'ray') >= 300, sweep)
    ((work, parent),) = workers_of(folder)
    assert 'ray::' in pathlib.Path(f'/proc/{parent}/cmdline').read_text()
    os.kill(parent, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: work not in dict(workers_of(folder)))
    assert time.monotonic() - killed < 5
    assert step(place, 'ray') < 1500
    ((again, _),) = wait_for(lambda: workers_of(folder), sweep)
    assert again != work
  assert sweep.returncode == 0, said
  assert place.outcomes('ray') == expected_long
