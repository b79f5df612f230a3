"""Sweeps of tiny runs, and their training in this process."""

import pytest
from helpers import training

from stability import hyper
from stability.control import records


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A folder of token files."""
  return training.prepare(tmp_path_factory.mktemp('data'))


@pytest.fixture
def sweep(tmp_path, data):
  """A function that writes a sweep over learning rates or other points -> its runs' folders."""

  def write(rates=(1e-2,), points=None, **fields):
    workdir = tmp_path / f'sweep-{len(list(tmp_path.iterdir()))}'
    points = hyper.sweep(training.RATE, rates) if points is None else points
    return training.write_sweep(workdir, data, points, **fields)

  return write


@pytest.fixture
def train():
  return training.Training()


@pytest.fixture
def replayed(sweep, train):
  """A function that trains a run again from its config and actions -> its folder."""

  def again(run, **fields):
    (copy,) = sweep(**fields)
    records.write_taken(copy, records.read_taken(run))
    train(copy)
    return copy

  return again
