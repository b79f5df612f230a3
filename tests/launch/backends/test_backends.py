"""One sweep on every backend, for real: a manifest, SLURM and Ray on this machine.

What a run gives must not depend on who trains it, or on how often it is moved.
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
from helpers import multihost as multihost_helper
from helpers import slurm_cluster

from stability.storage import run_files, sweeps

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
SECONDS = 600  # for whatever is waited for, on a busy machine

EXPERIMENT = """
from configs import base
from stability import hyper

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.source = 'synthetic'
  c.data.batch_size = 4
  c.data.sequence_length = 16
  c.data.validation_batches = 1
  c.model.width = 16
  c.model.depth = 1
  c.schedule.steps = 20
  c.schedule.warmup_steps = 2
  c.log.every_steps = 5
  c.probe.every_steps = 0
  c.checkpoint.every_steps = 10
  return c
"""
SWEEP = """
def get_sweep(scale='cpu'):
  return hyper.product([
      hyper.sweep('model.depth', [1, 2]),
      hyper.sweep('optimizer.learning_rate', [1e-2, 1e-1]),
  ])
"""
# One run, long enough to be met in the middle.
LONG = (
    '--config=one.py',
    '--config.schedule.steps=1500',
    '--config.log.every_steps=50',
    '--config.checkpoint.every_steps=100',
)
NAME = 'seed=0'


class Place:
  """A folder with config files and a compilation cache of its own, where programs are run."""

  def __init__(self, folder):
    self.folder = folder
    (folder / 'four.py').write_text(EXPERIMENT + SWEEP)
    (folder / 'one.py').write_text(EXPERIMENT)
    self.variables = os.environ | {
        'PYTHONPATH': str(ROOT),
        'XDG_CACHE_HOME': str(folder / 'cache'),
        'XLA_FLAGS': '--xla_backend_optimization_level=0',  # compiles sooner
        'RAY_worker_niceness': '0',  # 15 starves them on a busy machine
    }

  def started(self, program, *arguments, **more):
    return subprocess.Popen(
        [sys.executable, '-m', f'launch.{program}', *arguments],
        cwd=self.folder,
        env=self.variables | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

  def run(self, program, *arguments, **more):
    """What a program that ends by itself has said, and its exit code."""
    process = self.started(program, *arguments, **more)
    try:
      return process.communicate(timeout=SECONDS)[0], process.returncode
    finally:
      process.kill()

  def outcomes(self, workdir):
    """All of a sweep's runs that must not depend on how they were trained."""
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
  """The outcomes of the four runs, trained by the local backend without disturbance."""
  said, code = place.run('sweep', '--config=four.py', '--workdir=local', '--workers=1')
  assert code == 0, said
  return place.outcomes('local')


@pytest.fixture(scope='module')
def expected_long(place):
  """The outcome of the long run, undisturbed."""
  said, code = place.run('sweep', *LONG, '--workdir=local_long', '--workers=1')
  assert code == 0, said
  return place.outcomes('local_long')


@pytest.fixture(scope='module')
def slurm(place, tmp_path_factory):
  """The environment variables by which programs find a SLURM."""
  if why := slurm_cluster.missing():
    pytest.skip(why)
  with slurm_cluster.cluster(tmp_path_factory.mktemp('slurm')) as conf:
    yield {'SLURM_CONF': str(conf)}


@contextlib.contextmanager
def ending(process):
  """A process that is no more afterwards; what it has said."""
  said = []
  try:
    yield said
    said.append(process.communicate(timeout=SECONDS)[0])
  finally:
    process.kill()
    process.wait()


def wait_for(what, process=None):
  """The first true value of a function; fails if the process ends before."""
  deadline = time.monotonic() + SECONDS
  while not (value := what()):
    assert time.monotonic() < deadline
    assert process is None or process.poll() is None, process.communicate()[0]
    time.sleep(0.05)
  return value


def step(place, workdir):
  """The last step that the long run has logged."""
  line = run_files.last_metrics(run_files.run_dir(place.folder / workdir, NAME))
  return line['step'] if line else 0


def test_a_manifest_is_begun_elsewhere_and_finished_here(place, expected):
  sweep = ('--config=four.py', '--workdir=manifest', '--backend=manifest', '--jobs=2')
  said, code = place.run('sweep', *sweep)
  assert code == 0 and '2 jobs for 4 runs' in said
  first, _ = map(json.loads, (place.folder / 'manifest' / 'manifest.jsonl').open())
  subprocess.run(
      first['command'],
      env=place.variables | first['env'],
      cwd='/',  # anywhere
      timeout=SECONDS,
      check=True,
  )
  over = [lines for lines in place.outcomes('manifest').values() if lines[-1]]
  assert 0 < len(over) < 4
  said, code = place.run('sweep', *sweep[:2], '--workers=1')
  assert code == 0, said
  assert f'{4 - len(over)}/{4 - len(over)} runs over' in said
  assert place.outcomes('manifest') == expected


def test_the_readme_feeds_a_manifest_to_two_schedulers(place, expected, slurm):
  """Its own lines: a sweep by GNU parallel, another by an array of SLURM's."""
  if absent := [program for program in ('jq', 'parallel') if not shutil.which(program)]:
    pytest.skip(f'{absent[0]} is not installed')
  readme = (ROOT / 'README.md').read_text()
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


def test_a_sweep_begun_here_goes_on_with_slurm_and_is_finished_here(place, expected, slurm):
  """A run that fails there says why here."""
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
  assert '2 tasks for 3 runs' in said and '3/3 runs over' in said
  assert 'Traceback' in said and 'in bring' in said, said  # where, not only what
  assert f'failed: {deep}: KeyError' in said

  shutil.rmtree(wrong)
  said, code = place.run('sweep', *sweep, '--workers=1')
  assert code == 0, said
  assert '1/1 runs over' in said
  assert done.stat().st_mtime_ns == before
  assert place.outcomes(folder) == expected


def scontrol(slurm, *arguments):
  environment = os.environ | slurm
  return subprocess.run(
      arguments, env=environment, capture_output=True, text=True, check=True
  ).stdout


def test_a_preempted_job_is_queued_again_and_goes_on_exactly(place, expected_long, slurm):
  """By a job of a partition that goes before its own, which it was told by flags."""
  asked = ('--slurm_partition=all', '--job_cpus=1', '--job_gpus=1', '--job_minutes=90')
  sweep = place.started('sweep', *LONG, *asked, '--workdir=requeued', '--backend=slurm', **slurm)
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
    assert left_at < 1500  # or it was over before
  assert sweep.returncode == 0, said
  assert 'JobState=COMPLETED' in scontrol(slurm, 'scontrol', 'show', 'job', job)
  assert place.outcomes('requeued') == expected_long


def test_a_cancelled_job_stays_so_and_its_runs_can_be_submitted_again(place, slurm):
  endless = (*LONG, '--config.schedule.steps=1000000', '--workdir=cancelled', '--backend=slurm')
  sweep = place.started('sweep', *endless, **slurm)
  with ending(sweep):
    wait_for(lambda: step(place, 'cancelled') >= 50, sweep)
    sweep.send_signal(signal.SIGINT)
  ((job,),) = [scontrol(slurm, 'squeue', '--noheader', '--format=%A').split()]
  again = place.started('sweep', *endless, **slurm)
  with ending(again) as said:
    for line in again.stdout:
      if 'jobs of before' in line:
        break
    assert scontrol(slurm, 'squeue', '--noheader', '--format=%A').split() == [job]
    scontrol(slurm, 'scancel', job)
    wait_for(lambda: not scontrol(slurm, 'squeue', '--noheader').split())
  assert again.returncode == 1
  assert 'no job is left, and some runs are not over' in said[0]
  assert '1 runs have not finished' in said[0]
  assert not scontrol(slurm, 'squeue', '--noheader').split()


def test_two_tasks_of_srun_share_one_run(place, slurm):
  """As one process with all their devices, within the rounding of another order of sums."""
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
  """(process, parent) of each launch.work on a folder."""
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
  """A Ray with a node of one core, which others may join."""
  if importlib.util.find_spec('ray') is None:
    pytest.skip("Ray is not installed: pip install 'stability[ray]'")
  monkeypatch.setenv('RAY_worker_niceness', '0')  # read by its nodes
  from ray import cluster_utils

  cluster = cluster_utils.Cluster(True, head_node_args={'num_cpus': 1, 'include_dashboard': False})
  yield cluster
  cluster.shutdown()


def raylet_of(work):
  """The process of the node that a task's program was started on."""
  variables = pathlib.Path(f'/proc/{work}/environ').read_text().split('\0')
  (raylet,) = [v for v in variables if v.startswith('RAY_RAYLET_PID=')]
  return int(raylet.removeprefix('RAY_RAYLET_PID='))


def test_a_run_begun_here_goes_on_exactly_on_a_ray_that_loses_its_node(
    place, expected_long, ray_cluster
):
  """Found by its address, of nodes of which one at a time has the cores that are asked for."""
  folder = place.folder / 'moved'
  local = place.started('sweep', *LONG, f'--workdir={folder}', '--workers=1')
  with ending(local):
    wait_for(lambda: step(place, 'moved') >= 300, local)
    local.send_signal(signal.SIGTERM)
  assert local.returncode == 75

  on_ray = ('--backend=ray', f'--ray_address={ray_cluster.address}', '--job_cpus=2')
  sweep = place.started('sweep', *LONG, f'--workdir={folder}', *on_ray)
  with ending(sweep) as said:
    for line in sweep.stdout:
      if 'no node of this Ray has 2 CPUs' in line:
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
  assert '1/1 runs over' in said[0]
  assert place.outcomes('moved') == expected_long


def test_what_keeps_ray_from_a_job_is_said(place, ray_cluster):
  """Here, that the job's log cannot be written."""
  sweep = ('--config=one.py', f'--workdir={place.folder / "no_log"}')
  place.run('sweep', *sweep, '--backend=manifest')
  (listed,) = (place.folder / 'no_log').glob('jobs/*.json')
  (place.folder / 'no_log' / 'ray' / f'{listed.stem}.log').mkdir(parents=True)
  on_ray = ('--backend=ray', f'--ray_address={ray_cluster.address}')
  said, code = place.run('sweep', *sweep, *on_ray)
  assert code == 1
  assert 'no job is left, and some runs are not over' in said
  assert 'a task of Ray failed' in said and 'IsADirectoryError' in said
  assert 'no node of this Ray' not in said


def test_a_lost_worker_of_ray_is_replaced_and_its_run_goes_on_exactly(place, expected_long):
  if importlib.util.find_spec('ray') is None:
    pytest.skip("Ray is not installed: pip install 'stability[ray]'")
  folder = place.folder / 'ray'
  sweep = place.started('sweep', *LONG, f'--workdir={folder}', '--backend=ray', '--job_cpus=1')
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
