"""Names of targets, what their compilers are told, and what is refused."""

import os
import subprocess
import sys

import pytest

from stability.devices import targets
from stability.errors import BadInput


@pytest.mark.parametrize(
    'name, full, topology',
    [('h100', 'h100:1', '1'), ('a100:8', 'a100:8', '8'), ('v5e', 'v5e:2x2', '2x2'),
     ('v5p:2x2x4', 'v5p:2x2x4', '2x2x4')],
)  # fmt: skip
def test_names(name, full, topology):
  found = targets.parse(name)
  assert (found.name, found.topology) == (full, topology)


@pytest.mark.parametrize(
    'name, said',
    [
        ('b300', 'must be one of h100, '),
        ('', 'must be one of'),
        ('h100:0', 'must be a topology'),
        ('h100:2x4', 'must be a number of devices'),
        ('v5e:2xx', 'must be a topology such as 4x4'),
        ('v5e:-1', 'must be a topology'),
    ],
)
def test_refused(name, said):
  with pytest.raises(BadInput, match=said) as error:
    targets.parse(name)
  assert f'--target={name}:' in str(error.value)


def test_missing_compiler(monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(BadInput, match=r'GPU is not installed: .*\.\[aot-gpu\]'):
    targets.check('gpu')
  with pytest.raises(BadInput, match=r'TPU is not installed: .*\.\[aot-tpu\]'):
    targets.check('tpu')


def test_usable_memory():
  """Of a GPU, jax takes three quarters, or the share that the environment states."""
  h100, v5e = (targets.TARGETS[name] for name in ('h100', 'v5e'))
  assert h100.usable_bytes({}) == 0.75 * h100.memory_bytes
  assert h100.usable_bytes({'XLA_PYTHON_CLIENT_MEM_FRACTION': '.9'}) == 0.9 * h100.memory_bytes
  assert v5e.usable_bytes({'XLA_PYTHON_CLIENT_MEM_FRACTION': '.9'}) == v5e.memory_bytes
  for bad in ('half', '0', 'nan'):
    with pytest.raises(BadInput, match=f'XLA_CLIENT_MEM_FRACTION={bad}: must be a number above 0'):
      h100.usable_bytes({'XLA_CLIENT_MEM_FRACTION': bad})


@pytest.mark.slow
def test_gpus_are_on_one_host():
  try:
    devices = targets.devices(targets.parse('h100:8'))
  except BadInput as error:
    pytest.skip(f'no compiler for h100: {error}')
  assert len(devices) == 8 and {device.process_index for device in devices} == {0}


_HOLD = """
import sys
from stability.devices import targets
print(len(targets.devices(targets.parse('v5e:2x2'))), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_compile_for_tpus_at_once():
  try:
    targets.check('tpu')
  except BadInput as error:
    pytest.skip(f'no compiler for v5e: {error}')
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', _HOLD]
  with subprocess.Popen(command, env=environment, **pipes) as first:
    held = first.stdout.readline()
    second = subprocess.run(
        command, env=environment, input='', check=False, capture_output=True, text=True
    )
    first.stdin.close()
  assert (held, second.stdout) == ('4\n', '4\n'), second.stderr


def test_reason():
  assert targets.reason(RuntimeError('\nINTERNAL: no\nmore')) == 'INTERNAL: no'
  assert targets.reason(RuntimeError()) == 'RuntimeError'


def test_rates():
  h100, v5e = (targets.TARGETS[name] for name in ('h100', 'v5e'))
  assert h100.flops_per_second('bfloat16', 'highest') == 989e12
  assert h100.flops_per_second('float32', 'highest') == 67e12
  assert h100.flops_per_second('float32', 'hardware') == 495e12
  assert v5e.flops_per_second('float32', 'highest') == pytest.approx(197e12 / 6)


@pytest.mark.parametrize(
    'kind, name',
    [
        ('NVIDIA H100 80GB HBM3', 'h100:1'),
        ('NVIDIA A100-SXM4-80GB', 'a100:1'),
        ('Tesla T4', None),
        ('TPU v5 lite', None),
    ],
)
def test_of_gpu(kind, name):
  found = targets.of_gpu(kind)
  assert (found and found.name) == name
