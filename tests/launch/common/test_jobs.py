"""The jobs that cluster backends submit, with fakes of the cluster's programs."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import stat
import subprocess
import sys
from unittest import mock

import pytest
from helpers import made_up

from configs import base
from launch import sweep, work
from launch.backends import local, manifest, ray, slurm
from launch.common import app, environment, jobs
from launch.common.jobs import Resources
from stability import config as config_lib
from stability import hyper
from stability.config import sizes
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import files, run_files, sweeps, versions

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
WORK = (sys.executable, '-P', f'{ROOT}/launch/common/programs.py', 'launch.work')
QUICKSTART = f'--config={ROOT}/configs/quickstart.py'
RESOURCES = Resources(jobs=3, cpus=2, gpus=0, memory_gb=4.0, minutes=30)
HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned` \\ %j\n#; * &'  # a valid name of a folder

RECORDER = """#!{python}
import json, os, sys
with open({log!r}, 'a') as log:
  print(json.dumps([sys.argv, dict(os.environ)]), file=log)
{body}
"""


def fake(folder: pathlib.Path, name: str, body: str = '') -> pathlib.Path:
  """Writes a program that records its calls and then runs `body`; returns the file of records."""
  folder.mkdir(exist_ok=True)
  program, log = folder / name, folder / f'{name}.log'
  program.write_text(RECORDER.format(python=sys.executable, log=str(log), body=body))
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  return log


def calls(log: pathlib.Path) -> list:
  """The arguments and environment of each recorded call."""
  if not log.exists():
    return []
  return [(argv[1:], variables) for argv, variables in map(json.loads, log.open())]


@pytest.fixture
def programs(tmp_path, monkeypatch):
  """A folder that comes first in PATH."""
  folder = tmp_path / 'bin'
  monkeypatch.setenv('PATH', f'{folder}:{os.environ["PATH"]}')
  return folder


def run_script(programs, workdir, code, state, **more):
  """Runs task 1 of an array's script; returns the calls of srun and of scontrol."""
  srun = fake(programs, 'srun', f'sys.exit({code})')
  fake(programs, 'squeue', f'print({state!r})')
  scontrol = fake(programs, 'scontrol')
  lists = [workdir / 'jobs' / '0.json', workdir / 'jobs' / '1.json']
  variables = {'SLURM_ARRAY_TASK_ID': '1', 'SLURM_ARRAY_JOB_ID': '70', 'SLURM_JOB_ID': '70'}
  done = subprocess.run(
      ['bash', '-c', slurm.script(workdir, lists, RESOURCES)],
      env=os.environ | variables | more,
      cwd=programs.parent,
      check=False,
  )
  assert done.returncode == code
  return calls(srun), calls(scontrol)


def test_script_quotes_names(programs, tmp_path):
  workdir = tmp_path / HOSTILE
  ((arguments, variables),), _ = run_script(programs, workdir, 0, 'RUNNING')
  assert arguments == [
      *('--export=ALL', '--ntasks=1', *WORK, f'--workdir={workdir}', '--workers=2'),
      f'--runs={workdir}/jobs/1.json',
  ]
  assert variables['PYTHONPATH'].split(':')[0] == str(ROOT)
  assert not (tmp_path / 'pwned').exists()


@pytest.mark.parametrize('given', [{}, {'SLURM_CPUS_PER_TASK': '3'}])
def test_cores_of_a_step(programs, tmp_path, given):
  """Those of --cpus-per-task, otherwise all that the job has, by --cpus-per-gpu for example."""
  ((_, variables),), _ = run_script(programs, tmp_path, 0, 'RUNNING', **given)
  assert variables.get('SRUN_CPUS_PER_TASK') == given.get('SLURM_CPUS_PER_TASK')


@pytest.mark.parametrize(
    ('code', 'state', 'again'),
    [
        (75, 'RUNNING', True),
        (138, 'RUNNING', True),  # before its handlers were installed
        (143, 'RUNNING', True),
        (137, 'RUNNING', False),
        (75, 'CANCELLED', False),
        (75, 'COMPLETING', False),
        (0, 'RUNNING', False),
        (1, 'RUNNING', False),
        (2, 'RUNNING', False),
    ],
)
def test_preempted_task_is_requeued(
    programs, tmp_path, code, state, again
):
  _, asked = run_script(programs, tmp_path, code, state)
  assert [arguments for arguments, _ in asked] == ([['requeue', '70_1']] if again else [])


@pytest.fixture
def unfinished(tmp_path):
  """A sweep of six untrained runs of three sizes: its workdir and the configs."""
  folder = tmp_path / HOSTILE.replace('\n', '')
  made_up.write_sweep(
      folder, interventions=[{}], seeds=(0,), rates=(1e-2, 1e-1), leave_out=tuple(range(6))
  )
  sweep = sweeps.read_sweep(folder)
  files.write_json(folder / sweep.data['path'] / 'meta.json', {})
  return folder, sweep.runs


def submit(workdir, waiting, options=()):
  slurm.train(workdir, waiting, RESOURCES, options)


@pytest.fixture
def queue(programs, monkeypatch):
  """A fake of SLURM whose queue is a file; submitting does not wait for the jobs."""
  monkeypatch.setattr(jobs, 'show_progress', lambda *_: None)
  (queue := programs.parent / 'queue').write_text('')
  fake(programs, 'squeue', f'print(open({str(queue)!r}).read())')
  return queue


def test_runs_without_jobs_are_submitted(programs, queue, unfinished, monkeypatch):
  workdir, configs = unfinished
  monkeypatch.setenv('SLURM_JOB_ID', '1')  # launch.sweep itself runs in a job
  monkeypatch.setenv('SLURM_CONF', '/here')
  sbatch = fake(programs, 'sbatch', 'print("70;somewhere")')
  submit(workdir, configs, ['--qos=a b'])
  ((arguments, variables),) = calls(sbatch)
  assert '--array=0-2' in arguments and '--cpus-per-task=2' in arguments
  assert '--mem=3815M' in arguments and '--time=30' in arguments  # MiB of 4 x 10^9 bytes
  assert '--qos=a b' in arguments and not any(a.startswith('--gpus') for a in arguments)
  assert (variables.get('SLURM_JOB_ID'), variables['SLURM_CONF']) == (None, '/here')
  divided = jobs.divide(workdir, configs, RESOURCES)
  assert sorted(name for path in divided for name in jobs.read_list(path)) == sorted(configs)
  text = pathlib.Path(arguments[-1]).read_text()
  assert re.findall(r'[0-9a-f]{16}(?=\.json)', text) == [path.stem for path in divided]

  (first,) = files.read_lines(workdir / 'slurm' / 'jobs.jsonl')
  assert f'--job-name={first["name"]}' in arguments
  name = first['name']
  # The middle task has ended without finishing its runs.
  queue.write_text(f'{name}_0 {name}_2 stability-0123456789abcdef_1')
  fake(programs, 'sbatch', 'print("71")')
  submit(workdir, configs)
  assert len(calls(sbatch)) == 2
  middle = list(divided.values())[1]
  again = files.read_lines(workdir / 'slurm' / 'jobs.jsonl')[1]
  assert again['name'] != name
  lists = [jobs.read_list(workdir / 'jobs' / name) for name in again['lists']]
  assert [run for names in lists for run in names] == middle

  queue.write_text(f'{name}_0 {name}_2 {again["name"]}_0 {again["name"]}_1')
  submit(workdir, configs)
  assert len(calls(sbatch)) == 2


@pytest.mark.parametrize(
    ('size', 'runs', 'resources', 'seconds'),
    [
        ('147K', 40, {'cpus': 2}, 60),
        ('147K', 40, {'gpus': 1}, 60 + 9),  # 32 runs
        ('4.8B', 1, {'gpus': 8}, 60 + 386),  # 77 GB
        ('4.8B', 9, {'gpus': 8}, 60 + 1547),  # no more than four at once
        ('4.8B', 1, {'gpus': 1, 'minutes': 60}, 60 + 386),
        ('4.8B', 1, {'gpus': 8, 'minutes': 9}, 180),
    ],
)
def test_time_to_save(
    size, runs, resources, seconds, programs, queue, tmp_path, monkeypatch, capsys
):
  config = config_lib.flatten(base.get_config().to_dict()) | sizes.size(size)
  configs = hyper.expand(config_lib.unflatten(config), hyper.sweep('seed', range(runs))).configs
  sbatch = fake(programs, 'sbatch', 'print(70)')
  resources = Resources(1, **{'cpus': 1, 'gpus': 0, 'memory_gb': None, 'minutes': None} | resources)
  slurm.train(tmp_path, configs, resources, [])
  ((arguments, _),) = calls(sbatch)
  assert f'--signal=USR1@{seconds}' in arguments
  said = '--job_minutes=9: a job may need 446 s to save its runs, and SLURM tells it 180 s before'
  assert (said in capsys.readouterr().err) == (resources.minutes == 9)


@pytest.fixture
def login_node(monkeypatch):
  """A machine with jax's plugin for GPUs, without a GPU."""
  monkeypatch.setattr(environment, '_replaced', {})
  for name in ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'XLA_FLAGS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(
      environment.importlib.util, 'find_spec', lambda name: name == 'jax_cuda13_plugin' or None
  )
  monkeypatch.setattr(environment.glob, 'glob', lambda path: [])
  environment.check()
  assert os.environ['JAX_PLATFORMS'] == 'cpu'  # of this process


@pytest.mark.parametrize('gpus', [0, 2])
def test_platform_of_a_login_node_stays_there(
    gpus, programs, queue, unfinished, login_node, monkeypatch
):
  workdir, configs = unfinished
  resources = dataclasses.replace(RESOURCES, gpus=gpus)
  sbatch = fake(programs, 'sbatch', 'print(70)')
  slurm.train(workdir, configs, resources, [])
  ((arguments, variables),) = calls(sbatch)
  assert 'JAX_PLATFORMS' not in variables
  expected = ['cuda'] if gpus else []
  text = pathlib.Path(arguments[-1]).read_text()
  assert re.findall('^export JAX_PLATFORMS=(.*)', text, re.MULTILINE) == expected
  for line in manifest.lines(workdir, configs, resources):
    assert [line['env'][name] for name in ('JAX_PLATFORMS',) if name in line['env']] == expected


def test_inherited_variables(tmp_path, monkeypatch):
  """Paths are those of this folder, wherever the jobs start."""
  monkeypatch.setattr(environment, '_replaced', {})
  monkeypatch.chdir(tmp_path)
  for name, value, expected in (
      ('PYTHONPATH', 'mine:/abs::mine', f'{ROOT}:{tmp_path}/mine:/abs'),
      ('JAX_COMPILATION_CACHE_DIR', 'cache', f'{tmp_path}/cache'),
      ('JAX_COMPILATION_CACHE_DIR', 'gs://bucket/cache', 'gs://bucket/cache'),
      ('XDG_CACHE_HOME', '/cache', '/cache'),
      ('XLA_CLIENT_MEM_FRACTION', '.9', '.9'),
      ('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9', '.9'),
      ('XLA_PYTHON_CLIENT_PREALLOCATE', 'false', 'false'),
      ('XLA_PYTHON_CLIENT_ALLOCATOR', 'platform', 'platform'),
      ('XLA_PYTHON_CLIENT_COLLECTIVE_MEM_SIZE_MB', '64', '64'),
  ):
    monkeypatch.setenv(name, value)
    assert jobs.environment(RESOURCES)[name] == expected


@pytest.mark.parametrize('name', ['JAX_PLATFORMS', 'JAX_PLATFORM_NAME'])
def test_platform_of_the_user_is_that_of_jobs(name, monkeypatch):
  monkeypatch.setattr(environment, '_replaced', {})
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setenv(name, 'rocm')
  variables = jobs.environment(dataclasses.replace(RESOURCES, gpus=1))
  assert {n: variables[n] for n in jobs.PLATFORMS if n in variables} == {name: 'rocm'}


def test_kill_during_submission(programs, queue, unfinished):
  """The array is in the queue, but its launcher died before sbatch returned."""
  workdir, configs = unfinished
  sbatch = fake(programs, 'sbatch', 'os.kill(os.getppid(), 9)')
  program = (
      'import sys; from pathlib import Path; from launch.backends import slurm; from launch.common'
      ' import jobs; from stability.storage import sweeps as w; workdir = Path(sys.argv[1]);'
      f'resources = jobs.{RESOURCES};'
      'slurm.train(workdir, w.read_sweep(workdir).runs, resources, [])'
  )
  killed = subprocess.run(
      [sys.executable, '-c', program, str(workdir)],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      check=False,
  )
  assert killed.returncode == -9
  ((arguments, _),) = calls(sbatch)
  (name,) = (a.removeprefix('--job-name=') for a in arguments if a.startswith('--job-name='))
  queue.write_text(f'{name}_0 {name}_1 {name}_2')
  fake(programs, 'sbatch', 'print(71)')
  submit(workdir, configs)
  assert len(calls(sbatch)) == 1
  queue.write_text('')  # they have ended without finishing their runs
  submit(workdir, configs)
  assert len(calls(sbatch)) == 2
  assert len(files.read_lines(workdir / 'slurm' / 'jobs.jsonl')) == 1


def test_failed_run_of_a_job(programs, queue, tmp_path, capsys):
  """Its failure stays until it is submitted again, which it is once its job has ended."""
  sbatch = fake(programs, 'sbatch', 'print(70)')
  workdir = tmp_path / 'sweep'
  more = ('--config.data.source=synthetic', '--jobs=1')
  arguments = ('--backend=slurm', f'--workdir={workdir}', *more)
  assert said(capsys, *arguments)[0] == 1 and len(calls(sbatch)) == 1
  (job,) = files.read_lines(workdir / 'slurm' / 'jobs.jsonl')
  first, *others = sweeps.read_sweep(workdir).runs
  run = run_files.run_dir(workdir, first)
  run_files.write_failure(run, 'Traceback\nValueError: no')
  for name in others:
    run_files.write_result(run_files.run_dir(workdir, name), run_files.Result('done'))
  queue.write_text(f'{job["name"]}_0')
  code, out, err = said(capsys, *arguments)
  assert code == 1 and f'failed: {first}; once the jobs' in err
  assert f'failed: {first}: ValueError: no' in out and len(calls(sbatch)) == 1
  assert run_files.read_result(run).status == 'failed'
  queue.write_text('')
  code, _, err = said(capsys, *arguments)
  assert code == 1 and 'once the jobs' not in err and len(calls(sbatch)) == 2
  assert run_files.read_result(run) is None


def test_sbatch_and_squeue_fail(programs, queue, unfinished):
  fake(programs, 'sbatch', 'sys.exit("error: invalid partition")')
  with pytest.raises(BadInput, match='sbatch failed: error: invalid partition'):
    submit(*unfinished)
  files.write_lines(unfinished[0] / 'slurm' / 'jobs.jsonl', [{'name': 'x', 'lists': ['a']}])
  fake(programs, 'squeue', 'sys.exit(1)')
  with pytest.raises(BadInput, match='squeue failed'):
    submit(*unfinished)


def test_show_progress(unfinished, tmp_path, capsys, monkeypatch):
  workdir, configs = unfinished
  monkeypatch.setattr(jobs, 'POLL_SECONDS', 0.01)
  monkeypatch.setattr(jobs, 'LATE_SECONDS', 0.0)
  (tmp_path / 'a.log').write_text('ModuleNotFoundError: no jax\n')
  there = iter([True, True, False])
  jobs.show_progress(workdir, configs, lambda: next(there), tmp_path)
  assert 'ModuleNotFoundError: no jax' in capsys.readouterr().err
  for name in configs:
    run_files.write_failure(run_files.run_dir(workdir, name), 'Traceback\nValueError: no')
  jobs.show_progress(workdir, configs, lambda: True, tmp_path)
  said = capsys.readouterr().err
  assert 'ValueError: no' in said and '6/6 runs finished' in said and 'jax' not in said


def test_results_that_appear_after_the_last_job(unfinished, tmp_path, capsys, monkeypatch):
  """As on NFS, which shows them late."""
  workdir, configs = unfinished
  names = iter(configs)

  def sleep(seconds):
    run_files.write_failure(run_files.run_dir(workdir, next(names)), 'ValueError: no')

  monkeypatch.setattr(jobs.time, 'sleep', sleep)
  jobs.show_progress(workdir, configs, lambda: False, tmp_path)
  said = capsys.readouterr().err
  assert '6/6 runs finished' in said and 'no job is left' not in said


def test_manifest(unfinished):
  workdir, configs = unfinished

  def write(waiting):
    resources = Resources(jobs=2, cpus=None, gpus=0, memory_gb=None, minutes=None)
    manifest.write(workdir, waiting, resources)
    return (workdir / 'manifest.jsonl').read_text()

  text = write(configs)
  assert write(configs) == text
  first, second = map(json.loads, text.splitlines())
  assert first['command'][:4] == list(WORK)
  assert first['resources'] == {'cpus': None, 'gpus': 0, 'memory_gb': None, 'minutes': None}
  names = [
      name
      for line in (first, second)
      for name in jobs.read_list(pathlib.Path(line['command'][-1].removeprefix('--runs=')))
  ]
  assert sorted(names) == sorted(configs)
  left = dict(list(configs.items())[:1])
  (only,) = map(json.loads, write(left).splitlines())
  assert jobs.read_list(pathlib.Path(only['command'][-1].removeprefix('--runs='))) == list(left)


def said(capsys, *arguments):
  code = app.execute(sweep.main, sweep.FLAGS, ['sweep', QUICKSTART, *arguments])
  out, err = capsys.readouterr()
  return code, out, err


def test_dry_run(capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  code, out, _ = said(
      capsys, '--dry_run', '--backend=slurm', '--jobs=4', '--job_gpus=1', '--slurm_account=me'
  )
  assert code == 0
  assert '--array=0-3' in out and '--gpus-per-node=1' in out and '--account=me' in out
  assert 'srun --export=ALL --ntasks=1' in out and '--workdir=DIR' in out and '--workers' not in out
  _, out, _ = said(capsys, '--dry_run', '--backend=slurm', '--workdir=new')
  assert f'--chdir={tmp_path}/new/slurm' in out and f'--workdir={tmp_path}/new' in out
  code, out, _ = said(capsys, '--dry_run', '--backend=manifest', '--jobs=4')
  assert code == 0 and len([line for line in out.splitlines() if line.startswith('{')]) == 4
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('arguments', 'what'),
    [
        (['--backend=condor'], '--backend=condor'),
        (['--slurm_partition=a'], '--slurm_partition: must be given with --backend=slurm'),
        (['--backend=ray', '--slurm_options=--qos=a'], '--slurm_options: must be given with'),
        (['--backend=slurm', '--ray_address=a:1'], '--ray_address: must be given with'),
        (['--backend=slurm', '--workers=2'], '--workers: must be given with --backend=local'),
        (['--jobs=2'], '--jobs: must be given with --backend=slurm or ray or manifest'),
        (['--backend=slurm', '--jobs=0'], '--jobs'),
        (['--backend=slurm', '--job_minutes=2'], '--job_minutes=2: must be at least 3'),
        (['--backend=slurm', '--job_memory_gb=nan'], '--job_memory_gb=nan: must be'),
        (['--backend=slurm', '--job_memory_gb=1e300'], 'above 0, at most 1,000,000'),
        (['--backend=slurm', '--slurm_options=qos'], 'must be an option of sbatch'),
        (['--backend=slurm', '--slurm_options=--qos=a\n#SBATCH --x'], 'must be an option'),
        (['--backend=slurm', '--slurm_options=--qos=a\x1b'], 'must be an option'),
        (['--backend=slurm', '--slurm_options=--array=1-9'], '--array is set by the backend'),
        (['--backend=slurm', '--slurm_options=--clusters=b'], '--clusters is set by the backend'),
        (['--backend=slurm', '--slurm_partition='], "--slurm_partition='': must be a name"),
    ],
)
def test_bad_flags(capsys, tmp_path, arguments, what):
  code, out, err = said(capsys, f'--workdir={tmp_path / "new"}', *arguments)
  assert (code, out) == (2, '') and what in err and err.count('\n') == 1
  assert not (tmp_path / 'new').exists()


def test_missing_cluster(capsys, tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  monkeypatch.setitem(sys.modules, 'ray', None)  # as if it were not installed
  for backend, what in (('slurm', 'there is no sbatch here'), ('ray', 'pip install')):
    code, _, err = said(capsys, f'--workdir={tmp_path / "new"}', f'--backend={backend}')
    assert code == 2 and what in err
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    ('cpus', 'gpus', 'reserved', 'workers'),
    [(None, 0, 1, ['--workers=1']), (3, 0, 3, ['--workers=3']), (None, 2, 1, []), (3, 2, 3, [])],
)
def test_ray_task_has_a_worker_per_reserved_core(
    unfinished, monkeypatch, cpus, gpus, reserved, workers
):
  workdir, configs = unfinished
  cluster = mock.MagicMock()
  cluster.wait.side_effect = lambda tasks, **_: (tasks, [])
  monkeypatch.setitem(sys.modules, 'ray', cluster)
  monkeypatch.setattr(ray.preemption, 'install', lambda: None)
  monkeypatch.setattr(jobs, 'show_progress', lambda *_: None)
  ray.train(workdir, configs, Resources(1, cpus, gpus, None, None), 'local')
  options = cluster.remote().options
  assert options.call_args.kwargs['num_cpus'] == reserved
  ((command, _),) = [call.args for call in options().remote.call_args_list]
  assert [word for word in command if word.startswith('--workers')] == workers


def trained(monkeypatch, capsys, workdir, *arguments):
  """The runs that launch.work would train, or its exit code and error if the code is 2."""
  given = []
  monkeypatch.setattr(local, 'train', lambda _, waiting, *__, **___: given.extend(waiting))
  code = app.execute(work.main, work.FLAGS, ['work', f'--workdir={workdir}', *arguments])
  return (code, capsys.readouterr().err) if code == 2 else given


def test_shares(
    unfinished, monkeypatch, capsys
):
  workdir, configs = unfinished
  expected = cost.shares(configs, 3)
  flags = [f'--share={index}/3' for index in range(3)]
  assert [trained(monkeypatch, capsys, workdir, flag) for flag in flags] == expected
  parent = expected[2][0]
  for name, origin in (('b_fork', parent), ('a_fork', 'b_fork')):
    files.write_json(run_files.run_dir(workdir, name) / 'config.json', configs[parent])
    about = {'run': origin, 'step': 0, 'changes': {}}
    files.write_json(workdir / 'forks' / f'{name}.json', about)
  *others, last = [trained(monkeypatch, capsys, workdir, flag) for flag in flags]
  assert others == expected[:2]
  assert sorted(last) == sorted([*expected[2], 'a_fork', 'b_fork'])
  assert trained(monkeypatch, capsys, workdir, '--share=99/100') == []


def test_work_trains_unfinished_runs(unfinished, monkeypatch, capsys, tmp_path):
  workdir, configs = unfinished
  first, second, *_ = configs
  files.write_json(tmp_path / 'list.json', [second, first])
  listed = f'--runs={tmp_path / "list.json"}'
  assert trained(monkeypatch, capsys, workdir, listed) == [second, first]
  run_files.write_result(run_files.run_dir(workdir, first), run_files.Result('done'))
  assert trained(monkeypatch, capsys, workdir, listed) == [second]
  assert set(trained(monkeypatch, capsys, workdir)) == configs.keys() - {first}


def test_work_owns_finished_runs(unfinished, monkeypatch):
  """They may still be forked."""
  workdir, configs = unfinished
  given = []
  monkeypatch.setattr(local, 'train', lambda *_, owned: given.extend(owned))
  (first, *_), _, _ = shares = cost.shares(configs, 3)
  run_files.write_result(run_files.run_dir(workdir, first), run_files.Result('done'))
  app.execute(work.main, work.FLAGS, ['work', f'--workdir={workdir}', '--share=0/3'])
  assert given == shares[0]


def test_work_trains_forks_that_are_left(unfinished, monkeypatch, capsys):
  """The list of a job has forks whose origin is finished; see start.prepare."""
  workdir, configs = unfinished
  parent, *others = configs
  run_files.write_result(run_files.run_dir(workdir, parent), run_files.Result('done'))
  for name, origin in (('fork1', parent), ('fork2', 'fork1')):
    files.write_json(run_files.run_dir(workdir, name) / 'config.json', configs[parent])
    about = {'run': origin, 'step': 0, 'changes': {}}
    files.write_json(workdir / 'forks' / f'{name}.json', about)
  files.write_json(workdir / 'list.json', ['fork1'])  # fork2 is newer, as after a preemption
  listed = trained(monkeypatch, capsys, workdir, f'--runs={workdir / "list.json"}')
  assert listed == ['fork1', 'fork2']
  left = sweeps.runs_to_train(workdir, configs | sweeps.fork_configs(workdir))
  assert left.keys() == {*others, 'fork1', 'fork2'}
  lists = jobs.divide(workdir, left, RESOURCES)
  jobs.write_lists(lists)
  found = [trained(monkeypatch, capsys, workdir, f'--runs={path}') for path in lists]
  assert set(itertools.chain.from_iterable(found)) == left.keys()
  for names, path in zip(found, lists, strict=True):
    assert set(lists[path]) <= set(names)
  path.write_text('["fork3"]')
  code, error = trained(monkeypatch, capsys, workdir, f'--runs={path}')
  assert code == 2 and "'fork3' is not a run of the sweep" in error


def test_work_warns_of_other_versions(unfinished, monkeypatch, capsys):
  monkeypatch.setattr(local, 'train', lambda *_, **__: None)
  assert app.execute(work.main, work.FLAGS, ['work', f'--workdir={unfinished[0]}']) == 1
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'begun with other versions' in said
  assert f'stability code unknown -> {versions.current()["stability code"]}' in said


@pytest.mark.parametrize(
    ('text', 'arguments', 'what'),
    [
        ('["no_such"]', ['--runs=list'], "'no_such' is not a run of the sweep"),
        ('{"a": 1}', ['--runs=list'], 'must be a JSON list of run names'),
        ('[1]', ['--runs=list'], 'must be a JSON list of run names'),
        ('[', ['--runs=list'], 'cannot be read'),
        (100_000 * '[', ['--runs=list'], 'cannot be read'),
        ('\xff', ['--runs=absent'], 'cannot be read'),
        ('[]', ['--share=2/2'], '--share=2/2: must be I/N'),
        ('[]', ['--share=0/0'], '--share=0/0: must be I/N'),
        ('[]', ['--share=-1/2'], '--share=-1/2: must be I/N'),
        ('[]', ['--share=a'], '--share=a: must be I/N'),
        ('[]', ['--share=0/2', '--runs=list'], 'must not be given together'),
    ],
)
def test_work_bad_input(unfinished, monkeypatch, capsys, tmp_path, text, arguments, what):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'list').write_text(text)
  code, err = trained(monkeypatch, capsys, unfinished[0], *arguments)
  assert code == 2 and what in err and err.count('\n') == 1
  code, err = trained(monkeypatch, capsys, tmp_path / 'no_sweep')
  assert code == 2 and 'holds no sweep' in err
