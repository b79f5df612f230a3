"""The file format safetensors: round trips, the format's own library, and damaged files."""

import json
import re

import ml_dtypes
import numpy as np
import pytest

from stability.errors import BadInput
from stability.storage import safetensors

ARRAYS = {
    'block_0/mlp/up': np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    'scale': np.float32([1.5, -2.0, np.inf]).astype(ml_dtypes.bfloat16),
    'carried/gain': np.float32(0.25),
}


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'new' / 'some.safetensors'
  safetensors.write(path, ARRAYS, {'who': 'ann'})
  return path


def test_round_trip(path):
  arrays, metadata = safetensors.read(path)
  assert metadata == {'who': 'ann'} and set(arrays) == set(ARRAYS)
  for name, array in arrays.items():
    assert array.dtype == ARRAYS[name].dtype and np.array_equal(array, ARRAYS[name])
  header = safetensors.read_header(path)
  assert header.shapes == {'block_0/mlp/up': (2, 3), 'scale': (3,), 'carried/gain': ()}
  assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_library_reads_and_writes_the_same(path, tmp_path):
  library = pytest.importorskip('safetensors.numpy')
  found = library.load_file(path)
  np.testing.assert_array_equal(found['block_0/mlp/up'], ARRAYS['block_0/mlp/up'])
  np.testing.assert_array_equal(found['scale'].astype(np.float32), [1.5, -2, np.inf])
  assert found['carried/gain'].shape == ()
  of_library = {'block_0/mlp/up': ARRAYS['block_0/mlp/up'], 'carried/gain': np.ones(())}
  of_library = {name: np.asarray(array, np.float32) for name, array in of_library.items()}
  library.save_file(of_library, tmp_path / 'theirs.safetensors', {'who': 'bob'})
  arrays, metadata = safetensors.read(tmp_path / 'theirs.safetensors')
  assert metadata == {'who': 'bob'}
  for name, array in of_library.items():
    np.testing.assert_array_equal(arrays[name], array)


def with_header(change):
  content = safetensors.to_bytes(ARRAYS, {})
  length = int.from_bytes(content[:8], 'little')
  header = json.loads(content[8 : 8 + length])
  change(header)
  text = json.dumps(header).encode()
  return len(text).to_bytes(8, 'little') + text + content[8 + length :]


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\xff' * 8,
        b'\x02' + bytes(7) + b'[]',
        safetensors.to_bytes(ARRAYS, {})[:-1],
        safetensors.to_bytes(ARRAYS, {}) + b'x',
        with_header(lambda h: h['scale'].update(dtype='I64')),
        with_header(lambda h: h['scale'].update(shape=[-3])),
        with_header(lambda h: h['scale'].update(shape=[4])),
        with_header(lambda h: h['scale'].update(data_offsets=[0, 6])),
        with_header(lambda h: h['scale'].pop('shape')),
        with_header(lambda h: h.update(__metadata__={'who': 1})),
    ],
)
def test_damaged(tmp_path, content):
  path = tmp_path / 'damaged'
  path.write_bytes(content)
  with pytest.raises(BadInput, match=f'^{re.escape(str(path))}: is not a file of safetensors'):
    safetensors.read(path)


def test_missing(tmp_path):
  for read in (safetensors.read, safetensors.read_header, safetensors.digest):
    with pytest.raises(BadInput, match='gone: cannot be read: No such file'):
      read(tmp_path / 'gone')
