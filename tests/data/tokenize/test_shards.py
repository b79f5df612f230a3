"""Token files that the disk refuses to write."""

import errno
import os

import numpy as np
import pytest

from stability.data.tokenize import shards
from stability.errors import CannotWrite

BYTES = np.dtype('uint8')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='only Linux has a full device')
def test_a_full_disk(tmp_path):
  """The error names the file, whether it comes as tokens are written or as a file is closed."""
  writer = shards.ShardWriter(tmp_path, 'train', BYTES, 10, None)
  writer.append(np.zeros(12, BYTES))
  (tmp_path / 'train-00002.bin').symlink_to('/dev/full')
  with pytest.raises(CannotWrite, match=r'train-00002\.bin: cannot be written: No space left'):
    writer.append(np.zeros(18, BYTES))
  with pytest.raises(CannotWrite, match=r'train-00002\.bin: cannot be written: No space left'):
    writer.close()


def test_a_disk_that_breaks(tmp_path, monkeypatch):
  def fail(file):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  writer = shards.ShardWriter(tmp_path, 'train', BYTES, 10, None)
  writer.append(np.zeros(7, BYTES))
  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(CannotWrite, match=r'train\.bin: cannot be written: Input/output error'):
    writer.commit()
