"""Fixtures of the tests that run programs."""

import pytest


@pytest.fixture(scope='module')
def place(request, tmp_path_factory):
  """A folder with the module's EXPERIMENT as experiment.py and its own compilation cache."""
  folder = tmp_path_factory.mktemp('place')
  (folder / 'experiment.py').write_text(request.module.EXPERIMENT)
  return folder
