"""stability.storage.schema: sweeps and configs that another version of the package has written."""

import json

import pytest
from helpers import made_up

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.config import fields
from stability.errors import BadInput
from stability.storage import run_files, sweeps

LACKING = ('model.norm_position', 'control.tries', 'parallel.remat')


def runs() -> hyper.Runs:
  points = hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2])
  return hyper.expand(base.get_config().to_dict(), points)


def rewrite(path, change) -> None:
  """Writes a JSON file again as `change` makes its content."""
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def remove(config, names) -> None:
  for name in names:
    section, field = name.split('.')
    del config[section][field]


@pytest.fixture
def old(tmp_path):
  """The workdir of a version that did not have the fields of LACKING."""
  made_up.write_runs(tmp_path, runs())
  rewrite(
      tmp_path / 'sweep.json',
      lambda sweep: [remove(config, LACKING) for config in sweep['runs'].values()],
  )
  for path in tmp_path.glob('runs/*/config.json'):
    rewrite(path, lambda config: remove(config, LACKING))
  return tmp_path


def test_old_workdir_is_read(old):
  configs = runs().configs
  for _ in range(2):  # the second time, sweep.json is known to be sound
    assert sweeps.read_sweep(old).runs == configs
  for name, config in configs.items():
    read = run_files.read_config(old / 'runs' / name)
    assert config_lib.static_fields(read) == config_lib.static_fields(config)
    assert read == config


def test_old_workdir_is_resumed(old):
  sweeps.check_workdir(old, runs())
  others = {
      name: config_lib.unflatten(config_lib.flatten(config) | {'model.norm_position': 'peri'})
      for name, config in runs().configs.items()
  }
  with pytest.raises(BadInput, match=r"config.model.norm_position='pre', this one 'peri'"):
    sweeps.check_workdir(old, hyper.Runs(runs().fields, others))


def test_new_option_leaves_a_workdir_resumable(old):
  """A run lacks the option, which stands for its absent value and not for its default."""
  fields.register(fields.number('model.mu', 0.5, 'A number.', absent=0.0))
  try:
    with pytest.raises(BadInput, match=r'config.model.mu=0.0, this one 0.5'):
      sweeps.check_workdir(old, runs())
    config = base.get_config()
    config.model.mu = 0.0
    points = hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2])
    sweeps.check_workdir(old, hyper.expand(config.to_dict(), points))
  finally:
    fields.unregister_all()


def test_unknown_fields_are_kept(old):
  def add(config):
    config['later'] = {'option': 1}
    config['model']['option'] = 2

  rewrite(old / 'sweep.json', lambda sweep: [add(c) for c in sweep['runs'].values()])
  for config in sweeps.read_sweep(old).runs.values():
    assert (config['later'], config['model']['option']) == ({'option': 1}, 2)
    assert config['model']['norm_position'] == 'pre'


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(data=3), 'sections and fields are mixed up'),
        (dict(log={}), 'sections and fields are mixed up'),
        (dict(data={'path': {'inside': 1}}), 'sections and fields are mixed up'),
        (dict(log={'every_steps': 1.0}), 'config.log.every_steps=1.0: must be an integer from 1'),
        (dict(schedule={}), 'config.schedule.steps: missing'),
    ],
)
def test_damaged_config(old, change, said):
  path = next(old.glob('runs/*/config.json'))
  rewrite(path, lambda config: config.update(change))
  with pytest.raises(BadInput) as error:
    run_files.read_config(path.parent)
  assert str(error.value).startswith(f'{path} is damaged: {said}')
