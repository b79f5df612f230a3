"""What a run that fails leaves in its result."""

import types

import pytest

from stability.errors import BadInput
from stability.storage import run_files
from stability.trainer import failures


@pytest.mark.parametrize(
    ('error', 'starts'),
    [(BadInput('config.x=1: must be 2'), 'config.x=1: must be 2'), (ValueError('no'), 'Traceback')],
)
def test_bad_input_has_no_traceback(tmp_path, monkeypatch, error, starts):
  written = {}
  monkeypatch.setattr(run_files, 'write_failure', written.__setitem__)
  try:
    raise error
  except type(error):
    failures.record_failure(tmp_path, types.SimpleNamespace(is_primary=True))
  assert written[tmp_path].startswith(starts)
