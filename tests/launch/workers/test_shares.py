"""The division of a machine among its workers, on machines whose devices are fakes."""

import pytest

from launch import reproduce, sweep, work
from launch.common import app, environment
from launch.workers import shares
from stability.errors import BadInput

HIDING = ('CUDA_VISIBLE_DEVICES', 'JAX_CUDA_VISIBLE_DEVICES')


@pytest.fixture
def machine(monkeypatch):
  """A function that makes this a machine with a number of GPUs, or with TPUs."""
  for name in (*HIDING, 'JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'TPU_VISIBLE_CHIPS'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(environment, 'cores', lambda: [0, 1, 2, 3])

  def make(kind, count, **variables):
    plugin, file = {'gpu': ('jax_cuda13_plugin', 'nvidia'), 'tpu': ('libtpu', 'accel')}[kind]
    find = lambda name: name == plugin or None  # noqa: E731
    monkeypatch.setattr(environment.importlib.util, 'find_spec', find)
    devices = lambda path: [file] * count if file in path else []  # noqa: E731
    monkeypatch.setattr(environment.glob, 'glob', devices)
    for name, value in variables.items():
      monkeypatch.setenv(name, value)

  return make


@pytest.mark.parametrize(
    ('gpus', 'given', 'workers', 'expected'),
    [
        (8, None, 1, [None]),
        (8, '2,3', 1, [None]),
        (8, None, 2, ['0,1,2,3', '4,5,6,7']),
        (8, None, 3, ['0,1', '2,3,4', '5,6,7']),
        (2, None, 2, ['0', '1']),
        (8, '6,1,3', 2, ['6', '1,3']),
        (8, ' GPU-8a, MIG-4f/1/0,2', 3, ['GPU-8a', 'MIG-4f/1/0', '2']),
        (4, '3,1,0,-1,2', 3, ['3', '1', '0']),  # CUDA stops at -1
    ],
)
def test_gpus_are_divided(machine, gpus, given, workers, expected):
  machine('gpu', gpus, **{} if given is None else {'CUDA_VISIBLE_DEVICES': given})
  shares.check(workers)
  found = shares.divide(workers)
  assert [share.variables.get('CUDA_VISIBLE_DEVICES') for share in found] == expected
  assert sorted(core for share in found for core in share.cores) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ('kind', 'count', 'variables', 'workers', 'said'),
    [
        ('gpu', 8, {}, 9, '--workers=9: must be at most 8, the number of GPUs'),
        ('gpu', 1, {}, 2, '--workers=2: must be at most 1,'),
        ('gpu', 8, {'CUDA_VISIBLE_DEVICES': '0,1'}, 3, '--workers=3: must be at most 2,'),
        ('gpu', 2, {'CUDA_VISIBLE_DEVICES': '0,2'}, 2, '--workers=2: must be at most 1,'),
        ('gpu', 8, {'CUDA_VISIBLE_DEVICES': '5,5'}, 2, '--workers=2: must be at most 1,'),
        ('gpu', 2, {'JAX_CUDA_VISIBLE_DEVICES': '0,1'}, 2, '^JAX_CUDA_VISIBLE_DEVICES=0,1: must'),
        ('tpu', 4, {}, 2, '--workers=2: must be 1 on tpu'),
        ('gpu', 0, {'JAX_PLATFORMS': 'rocm'}, 2, '--workers=2: must be 1 on rocm'),
    ],
)
def test_more_workers_than_shares(machine, kind, count, variables, workers, said):
  machine(kind, count, **variables)
  with pytest.raises(BadInput, match=said) as error:
    shares.check(workers)
  assert '\n' not in str(error.value)
  shares.check(1)
  shares.check(None)


def test_workers_on_cpus_share_no_device(machine, monkeypatch):
  machine('gpu', 2, JAX_PLATFORMS='cpu')
  shares.check(9)
  assert [share.variables for share in shares.divide(3)] == [{}] * 3
  assert [share.cores for share in shares.divide(5)] == [[0], [1], [2], [3], [0, 1, 2, 3]]


@pytest.mark.parametrize('program', [sweep, work, reproduce])
def test_programs_refuse_before_they_write(machine, program, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  machine('gpu', 2)
  monkeypatch.setattr(environment, 'check', lambda: None)
  flags = {sweep: ['--config=quickstart'], work: [], reproduce: ['--only=warmup']}[program]
  arguments = [program.__name__, *flags, '--workdir=new', '--workers=3']
  assert app.execute(program.main, program.FLAGS, arguments) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and '--workers=3: must be at most 2' in err
  assert not (tmp_path / 'new').exists()
