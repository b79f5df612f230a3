"""Checkpoints: what is restored is what was saved, or an older one, never something damaged."""

import numpy as np
import pytest

from stability import checkpoint


def arrays(step: int) -> checkpoint.Arrays:
  rng = np.random.default_rng(step)
  return {
      'params/block_0/mlp/up': rng.normal(size=(5, 7)).astype(np.float32),
      'optimizer/1/count': np.array(step, np.int32),
      'diverged': np.array(False),
  }


@pytest.fixture
def run(tmp_path):
  for step in (10, 20, 100):
    checkpoint.save(tmp_path, step, arrays(step), {'initial_loss': 5.5 + step}, keep=2)
  return tmp_path


def assert_restores(run, step):
  found, restored, about = checkpoint.restore(run)
  assert (found, about) == (step, {'initial_loss': 5.5 + step})
  assert restored.keys() == arrays(step).keys()
  for name, value in arrays(step).items():
    assert restored[name].dtype == value.dtype
    np.testing.assert_array_equal(restored[name], value)


def test_the_newest_is_restored_bit_for_bit(run):
  assert_restores(run, 100)


def test_only_the_newest_are_kept(run):
  assert sorted(path.name for path in (run / 'checkpoints').iterdir()) == ['100', '20']


def test_nothing_to_restore(tmp_path):
  assert checkpoint.restore(tmp_path) is None


def data_file(run, step):
  """The largest file of a checkpoint but for the checksums: Orbax keeps the arrays in it."""
  folder = run / 'checkpoints' / str(step)
  files = [p for p in folder.rglob('*') if p.is_file() and p.name != checkpoint.CHECKSUMS]
  return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'delete', 'no checksums', 'add'])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(run, damage, caplog):
  file = data_file(run, 100)
  content = file.read_bytes()
  if damage == 'flip':
    file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
  elif damage == 'truncate':
    file.write_bytes(content[:-1])
  elif damage == 'delete':
    file.unlink()
  elif damage == 'add':
    file.with_name('another').write_bytes(b'')
  else:
    (run / 'checkpoints' / '100' / checkpoint.CHECKSUMS).unlink()
  assert_restores(run, 20)
  assert f'{run.name}: its checkpoint of step 100 is damaged and not used' in caplog.text
  assert 'checkpoints/100' in caplog.text and 'goes on from step 20' in caplog.text


def test_a_damaged_checkpoint_can_be_written_again(run):
  data_file(run, 100).unlink()
  checkpoint.save(run, 100, arrays(100), {'initial_loss': 105.5}, keep=2)
  assert_restores(run, 100)
