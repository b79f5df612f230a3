"""Runs that start from the parameters of other runs."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers import training
from helpers.training import Killed, kill, numbers

from stability import config as config_lib
from stability.errors import BadInput
from stability.retrieval.model import Model
from stability.storage import checkpoints, files, parameters, parents, run_files
from stability.storage import safetensors as safetensors_lib
from stability.trainer import parents as parents_lib

pytestmark = pytest.mark.slow

TOKENIZER = {'tokenizer': 'synthetic', 'vocabulary_size': 64}


@pytest.fixture(scope='module')
def parent(tmp_path_factory, data):
  """A finished run, with checkpoints of steps 6, 12 and 18."""
  (run,) = training.write_sweep(tmp_path_factory.mktemp('parent'), data)
  training.Training()(run)
  return run


def recorded(config):
  return parents_lib.Checker(TOKENIZER).record(config, {})


@pytest.fixture
def children(sweep):
  """A function that writes a sweep of runs with parents, as the launcher does -> their folders."""

  def write(checkpoint, points=({},), **fields):
    runs = sweep(points=points, **fields, **{'init.checkpoint': str(checkpoint)})
    for run in runs:
      parents.write(run, recorded(run_files.read_config(run)))
    return runs

  return write


def loss(run, which='initial_loss'):
  return getattr(run_files.read_result(run), which)


def test_starts_where_the_parent_ended(parent, children, train):
  (run,) = children(parent)
  train(run)
  assert loss(run) == loss(parent, 'final_loss')
  assert loss(run, 'final_loss') < loss(run)
  record = parents.read(run)['checkpoint']
  assert record['given'] == str(parent) and record['config'] == run_files.read_config(parent)
  assert record['sha256'] == safetensors_lib.digest(parent / parameters.FILE)
  assert record['data']['tokenizer'] == 'synthetic' and record['step'] == 24


def test_checkpoint_and_optimizer(parent, children, train):
  """The first update continues that of the parent in its moments, but not in its schedule."""
  fresh, continued = children(
      f'{parent}@18', points=[{'init.optimizer': kind} for kind in ('new', 'checkpoint')]
  )
  train(fresh, continued)
  arrays = checkpoints.load(parent, 18)
  kept = [checkpoints.load(run, 6) for run in (fresh, continued)]
  counts = [int(next(a for n, a in found.items() if n.endswith('/count'))) for found in kept]
  assert counts == [6, 24] and int(arrays['step']) == 18
  assert loss(fresh) == loss(continued) < loss(parent)
  assert loss(fresh, 'final_loss') != loss(continued, 'final_loss')


AVERAGES = {  # decay -> (parameters, average, step) -> the evaluated ones, by name
    'ema': lambda decay: lambda p, a, name, step: a[f'average/{name}'] / (1 - decay**step),
    'schedule_free': lambda decay: lambda p, a, name, step: (
        (p - (1 - decay) * a[f'average/z/{name}']) / decay
    ),
}


@pytest.mark.parametrize('kind', AVERAGES)
def test_evaluated_parameters_of_a_checkpoint(tmp_path, data, children, train, kind):
  """A child starts from these; one that goes on with the moments, from the trained ones."""
  options = {'evaluation.parameters': kind, 'evaluation.decay': 0.8}
  (of_average,) = training.write_sweep(tmp_path / 'parent', data, **options)
  train(of_average)
  arrays = checkpoints.load(of_average, 18)
  trained = {n.removeprefix('params/'): a for n, a in arrays.items() if n.startswith('params/')}
  read = AVERAGES[kind](0.8)
  evaluated = {name: read(p, arrays, name, 18) for name, p in trained.items()}
  config, of_file = run_files.read_config(of_average), {}
  about = parameters.about('x', 18, config, TOKENIZER | {'sha256': {}})
  for name, found in (('trained', trained), ('evaluated', evaluated)):
    file = tmp_path / f'{name}.safetensors'
    parameters.write_file(file, found, about, 'float32')
    (run,) = children(file, **options)
    train(run)
    of_file[name] = loss(run)
  assert abs(of_file['trained'] - of_file['evaluated']) > 1e-3
  fresh, continued = children(
      f'{of_average}@18', [{'init.optimizer': o} for o in ('new', 'checkpoint')], **options
  )
  train(fresh, continued)
  assert loss(fresh) == pytest.approx(of_file['evaluated'], rel=1e-6)
  windows = np.arange(50).reshape(2, 25) % 64  # for launch.evaluate and launch.retrieve
  model = Model.of_parent(parents.read(fresh)['checkpoint'])
  same = Model.from_arrays(config, 64, evaluated, '')
  np.testing.assert_allclose(model.log_p(windows), same.log_p(windows), rtol=1e-4, atol=1e-5)
  goes_on = kind == 'schedule_free'  # z, y and the average are one state
  expected = of_file['evaluated' if goes_on else 'trained']
  assert loss(continued) == pytest.approx(expected, rel=1e-6)
  if goes_on:
    with pytest.raises(BadInput, match=r'has config\.evaluation\.decay=0\.8, this run has 0\.9'):
      children(
          f'{of_average}@18',
          **options | {'init.optimizer': 'checkpoint', 'evaluation.decay': 0.9},
      )


def test_alpha_and_beta3_of_ademamix_go_on_from_where_they_were(tmp_path, data, children, train):
  """Their count keeps its share of the run, also in a longer one; that of the moments counts on."""
  ademamix = {'optimizer.name': 'ademamix'}
  (of_mix,) = training.write_sweep(tmp_path / 'parent', data, **ademamix)
  train(of_mix)
  (run,) = children(
      f'{of_mix}@18', **ademamix, **{'init.optimizer': 'checkpoint', 'schedule.steps': 48}
  )
  train(run)
  arrays = checkpoints.load(run, 6)
  counts = {name.split('/')[-1]: int(a) for name, a in arrays.items() if '/count' in name}
  assert counts == {'count': 18 + 6, 'count_m2': 2 * 18 + 6}


@pytest.mark.parametrize('adapter', ['none', 'dora'])
def test_sharded_layout(parent, children, train, adapter):
  """Sums over devices round differently: the losses agree to 1e-5."""
  fields = {'data.batch_size': 6, 'adapter.kind': adapter}
  (alone,) = children(parent, **fields)
  (spread,) = children(parent, **fields, **{'parallel.layout': 'sharded'})
  train(alone)
  train(spread)
  assert loss(spread) == pytest.approx(loss(alone), rel=1e-5)
  assert loss(spread, 'final_loss') == pytest.approx(loss(alone, 'final_loss'), rel=1e-5)
  assert loss(spread, 'final_loss') < loss(spread)


def test_resume_does_not_need_the_parent(parent, children, train, tmp_path):
  """Bit for bit, and also from step 0 while the parent is there."""
  moved = tmp_path / 'moved'
  shutil.copytree(parent.parents[1], moved)
  copy = moved / 'runs' / parent.name
  whole, killed = children(copy)[0], children(copy)[0]
  train(whole)
  for step in (4, 12):
    train.at(killed, step, kill)
    with pytest.raises(Killed):
      train(killed)
  shutil.rmtree(moved)
  train(killed)
  assert numbers(killed) == numbers(whole)


def test_changed_parent_is_refused(parent, children, train, tmp_path):
  shutil.copytree(parent.parents[1], tmp_path / 'moved')
  copy = tmp_path / 'moved' / 'runs' / parent.name
  (run,) = children(copy)
  arrays, metadata = safetensors_lib.read(copy / parameters.FILE)
  safetensors_lib.write(copy / parameters.FILE, arrays | {'head': arrays['head'] + 1}, metadata)
  train(run, may_fail=True)
  assert 'has other parameters than when the run was prepared' in run_files.read_result(run).error


def config_with(parent, **fields):
  flat = config_lib.flatten(run_files.read_config(parent)) | {'init.checkpoint': str(parent)}
  return config_lib.unflatten(flat | {f.replace('__', '.'): v for f, v in fields.items()})


@pytest.mark.parametrize(
    ('fields', 'tokenizer', 'said'),
    [
        (dict(init__checkpoint='/no/runs/seed=0'), {}, 'there is no such run; train it first'),
        (dict(init__checkpoint='/'), {}, 'is not the folder of a run'),
        (dict(init__checkpoint=__file__), {}, 'is not a file of safetensors'),
        (
            dict(model__width=32),
            {},
            r'does not fit: its block_0/attention/key has the shape \(16, 16\), must have'
            r' \(32, 32\) \(config.model.width=16 instead of 32\)',
        ),
        (
            dict(model__depth=2),
            {},
            r'its block_1/attention/key has the shape None, .* \(config.model.depth=1 instead of 2',
        ),
        (dict(model__head_dim=8), {}, 'has config.model.head_dim=16, this run has 8'),
        (
            dict(parameterization__name='mup'),
            {},
            "has config.parameterization.name='standard', this run has 'mup'",
        ),
        ({}, {'vocabulary_size': 65}, 'has vocabulary_size=64, the text of config.data has 65'),
        ({}, {'tokenizer': 'bytes'}, "has tokenizer='synthetic', the text of config.data has 'by"),
    ],
)
def test_refused(parent, fields, tokenizer, said):
  config = config_with(parent, **fields)
  with pytest.raises(BadInput, match=f'config.init.checkpoint=.*{said}') as error:
    parents_lib.Checker(TOKENIZER | tokenizer).record(config, {})
  assert '\n' not in str(error.value)


def test_another_function_of_the_same_parameters(parent):
  """It is allowed, and said once for all runs that share it."""
  checker = parents_lib.Checker(TOKENIZER)
  for rate in (0.1, 0.2):
    options = {'model__output_soft_cap': 30.0, 'model__dtype': 'bfloat16'}
    checker.record(config_with(parent, optimizer__learning_rate=rate, **options), {})
  assert list(checker.warnings) == [
      f'config.init.checkpoint={str(parent)!r}: was trained with'
      ' config.model.output_soft_cap=0.0 instead of 30.0'
  ]


def test_refused_checkpoints(parent):
  with pytest.raises(BadInput, match='has no checkpoint of step 7; those that are kept: 6, 12, 18'):
    recorded(config_with(parent, init__checkpoint=f'{parent}@7'))
  muon = config_with(
      parent,
      init__checkpoint=f'{parent}@6',
      init__optimizer='checkpoint',
      optimizer__name='lion',
  )
  with pytest.raises(BadInput, match="this run has 'lion'"):
    recorded(muon)


def test_refused_runs(parent, tmp_path):
  """Those that have not ended, have failed, have no finite loss or kept nothing."""
  shutil.copytree(parent.parents[1], tmp_path / 'copy')
  run = tmp_path / 'copy' / 'runs' / parent.name
  config = config_with(parent, init__checkpoint=str(run))
  result = files.read_json(run / 'result.json')
  (run / parameters.FILE).unlink()
  with pytest.raises(BadInput, match='has no parameters'):
    recorded(config)
  for change, said in (
      ({'status': 'failed', 'final_loss': None}, 'has failed'),
      ({'status': 'diverged', 'final_loss': None}, 'its final loss is not finite'),
  ):
    files.write_json(run / 'result.json', result | change)
    with pytest.raises(BadInput, match=said):
      recorded(config)
  (run / 'result.json').unlink()
  with pytest.raises(BadInput, match='has not ended; name one of its checkpoints'):
    recorded(config)


def test_other_vocabulary(parent):
  record = recorded(config_with(parent))
  parents_lib.check_tokenizer(record, {'sha256': {'train': '1'}})
  with pytest.raises(BadInput, match=re.escape(f'config.init.checkpoint={str(parent)!r}: has an')):
    parents_lib.check_tokenizer(record, {'sha256': {'train': '1', 'tokenizer': '2'}})


def test_record_of_an_earlier_start(parent, tmp_path):
  """It is kept, even if the parent is gone; the same parameters elsewhere replace it."""
  record = recorded(config_with(parent))
  checker = parents_lib.Checker(TOKENIZER)
  gone = {'checkpoint': record['checkpoint'] | {'given': '/gone', 'sha256': '0'}}
  assert checker.record(config_with(parent, init__checkpoint='/gone'), gone) == gone
  moved = {'checkpoint': record['checkpoint'] | {'given': '/gone'}}
  assert checker.record(config_with(parent), moved) == record
  with pytest.raises(BadInput, match='has other parameters than those that the run was begun with'):
    checker.record(config_with(parent), gone | {'checkpoint': gone['checkpoint'] | {'given': '/'}})


def test_a_file_alone(parent, tmp_path):
  """It holds all that is needed of its run."""
  file = tmp_path / 'some.safetensors'
  shutil.copyfile(parent / parameters.FILE, file)
  (record,) = recorded(config_with(parent, init__checkpoint=str(file))).values()
  assert record['run'] == parent.name and record['config'] == run_files.read_config(parent)
  arrays, metadata = safetensors_lib.read(file)
  safetensors_lib.write(file, arrays, metadata | {'data': json.dumps({})})
  with pytest.raises(BadInput, match='does not tell of which run it is'):
    recorded(config_with(parent, init__checkpoint=str(file)))


def test_parents_share_executables(parent):
  """Neither parents nor their labels are in the static config."""
  fields = [
      config_lib.static_fields(config_with(parent, **change))
      for change in ({}, {'init__checkpoint': 'other@3'}, {'init__parent': 'best'})
  ]
  assert fields[0] == fields[1] == fields[2]
