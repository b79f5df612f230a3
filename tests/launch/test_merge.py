"""launch.merge: the plain model, or the adapter, of a fine-tuned run; no training."""

import json

import jax
import numpy as np
import pytest

from launch import merge
from launch.common import app
from stability.step import train_step
from stability.storage import parameters, parents, run_files, safetensors
from stability.trainer.state_arrays import names

DATA = {'tokenizer': 'bytes', 'vocabulary_size': 64, 'sha256': {}}


@pytest.fixture
def fine_tuned(tmp_path, tiny):
  """A function that writes the files of a run with an adapter -> its folder and its arrays."""

  def write(kind):
    run = tiny({'adapter.kind': kind, 'adapter.rank': 2, 'model.width': 16})
    folder = tmp_path / 'runs' / kind
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(run.config))
    shape = jax.eval_shape(train_step.programs(run.static, 64).init, run.hparams)
    rng = np.random.default_rng(0)
    shapes = names(shape['params']) | names(shape['frozen'])
    arrays = {name: np.float32(rng.normal(size=s.shape)) for name, s in shapes.items()}
    about = parameters.about(kind, 20, run.config, DATA)
    parameters.write(folder, arrays, about, 'float32')
    run_files.write_result(folder, run_files.Result('done', 2.0, 1.0))
    return folder, arrays

  return write


def merged(*arguments):
  return app.execute(merge.main, merge.FLAGS, ['merge', *map(str, arguments)])


def test_merged_and_alone(fine_tuned, tmp_path):
  run, arrays = fine_tuned('lora')
  plain, alone = tmp_path / 'plain.safetensors', tmp_path / 'alone.safetensors'
  assert merged(f'--run={run}', f'--output={plain}') == 0
  found, metadata = safetensors.read(plain)
  name = 'block_0/mlp/down'
  a, b = (arrays[f'{name}_adapter/{side}'] for side in 'ab')
  np.testing.assert_allclose(found[name], arrays[name] + 8 / 2 * a @ b, rtol=1e-5, atol=1e-5)
  assert set(found) == {name for name in arrays if '_adapter' not in name}
  assert json.loads(metadata['config'])['adapter']['kind'] == 'none'
  assert merged(f'--run={run}', f'--output={alone}', '--part=adapter') == 0
  kept, metadata = safetensors.read(alone)
  assert set(kept) == set(arrays) - set(found) and np.array_equal(kept[f'{name}_adapter/a'], a)
  assert json.loads(metadata['config'])['adapter']['kind'] == 'lora'


def test_merged_run_that_began_with_an_adapter(fine_tuned, tmp_path):
  """Others can start from it: it needs nothing of what it was made with."""
  run, _ = fine_tuned('lora')
  file, plain = run / parameters.FILE, tmp_path / 'plain.safetensors'
  arrays, metadata = safetensors.read(file)
  config = json.loads(metadata['config'])
  config['init'] |= {'adapter': 'before.safetensors'}
  safetensors.write(file, arrays, metadata | {'config': json.dumps(config)})
  assert merged(f'--run={run}', f'--output={plain}') == 0
  assert parents.describe(str(plain))['config']['init']['adapter'] is None


@pytest.mark.parametrize(
    ('kind', 'arguments', 'said'),
    [
        ('houlsby', [], 'cannot be merged into the weights; measure the run as it is, or go on'),
        ('prompt', [], 'config.adapter.kind=prompt: cannot be merged into the weights'),
        ('norms', ['--part=adapter'], 'has no adapter'),
        ('lora', ['--part=some'], '--part'),
    ],
)
def test_refused(fine_tuned, tmp_path, capsys, kind, arguments, said):
  run, _ = fine_tuned(kind)
  output = tmp_path / 'some.safetensors'
  assert merged(f'--run={run}', f'--output={output}', *arguments) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and said in error and not output.exists()


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], '--run: missing'),
        (['--run=nowhere'], '--output: missing'),
        (['--run=nowhere', '--output=new'], '--run=nowhere: there is no such run'),
        (['--run=nowhere', '--output=no/new'], 'must be a new file in a folder that exists'),
        (['--run=nowhere', '--output=.'], '--output=.: must be a new file'),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, arguments, said):
  monkeypatch.chdir(tmp_path)
  assert merged(*arguments) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and said in error
