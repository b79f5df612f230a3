"""A workdir of untrained runs that have kept their parameters, and a stand-in for a model."""

import jax
import numpy as np

from configs import base
from helpers import made_up
from stability import config as config_lib
from stability import hyper
from stability.data import prepare, tokens
from stability.retrieval.model import Outputs
from stability.step import train_step
from stability.storage import parameters, run_files
from stability.storage.run_files import Result
from stability.trainer.state_arrays import to_arrays

FIELDS = {
    'data.batch_size': 4,
    'data.sequence_length': 32,
    'data.validation_batches': 4,
    'model.width': 16,
    'model.depth': 2,
}
WORDS = ('alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta', 'eta', 'theta', 'iota', 'kappa')


def sentences(seed, count):
  """Random text of a few words, as bytes."""
  chosen = np.random.default_rng(seed).choice(WORDS, count)
  return ' '.join(chosen).encode()


def write_text(folder, seeds=range(40), count=60):
  """Writes a folder of documents."""
  folder.mkdir(parents=True)
  for seed in seeds:
    (folder / f'{seed:03}.txt').write_bytes(sentences(seed, count))
  return folder


def write_workdir(workdir, text, points=({},), **fields):
  """Writes finished runs with random parameters; returns their folders."""
  flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
  flat['data.path'] = str(text)
  runs = hyper.expand(config_lib.unflatten(flat), list(points))
  config = next(iter(runs.configs.values()))
  data_config = base.get_config().data
  data_config.update(config['data'])
  folder = prepare.prepare(data_config, workdir / 'data', config['data']['sequence_length'])
  data = {'path': str(folder.relative_to(workdir)), **tokens.open_tokens(folder).meta}
  made_up.write_runs(workdir, runs, data)
  for name, config in runs.configs.items():
    run = run_files.run_dir(workdir, name)
    write_parameters(run, config, data)
    run_files.write_result(run, Result('done', 5.5, 5.4, 100, 10, 1000, 1.0))
  return [run_files.run_dir(workdir, name) for name in runs.configs]


def write_parameters(run, config, data):
  """Keeps the initial parameters of a run as its final ones."""
  static, hparams = config_lib.split(config)
  programs = train_step.programs(static, data['vocabulary_size'])
  state = jax.jit(programs.init)(train_step.arrays(hparams))
  arrays = to_arrays(train_step.kept_variables(state, static)['params'])
  about = parameters.about(run.name, 10, config, data)
  parameters.write(run, jax.tree.map(np.asarray, arrays), about, 'float32')


class StubModel:
  """Keys that are random functions of the last two tokens, and random probabilities."""

  sequence_length, width, vocabulary_size = 16, 8, 256

  def __init__(self, seed=0):
    self.fingerprint = f'model {seed}'
    self._table = np.random.default_rng(seed).normal(size=(2, 256, 8)).astype(np.float32)
    self.seen = []  # windows of log_p

  def batches(self, windows):
    for start in range(0, len(windows), 3):
      part = np.asarray(windows[start : start + 3], np.int64)
      inputs = part[:, :-1]
      before = np.pad(inputs, ((0, 0), (1, 0)))[:, :-1]
      keys = self._table[0, inputs] + self._table[1, before]
      log_p = -1 - (part[:, 1:] * 7 + inputs * 3) % 11 / 4
      yield slice(start, start + len(part)), Outputs(keys, log_p.astype(np.float32))

  def log_p(self, windows):
    self.seen.append(np.array(windows))
    return np.concatenate([outputs.log_p_NxT for _, outputs in self.batches(windows)])
