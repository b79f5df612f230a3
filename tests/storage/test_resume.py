"""Which options a sweep in a workdir may be continued with."""

import pytest
from helpers import made_up

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.errors import BadInput
from stability.storage import resume, sweeps

OTHER = {
    'log.every_steps': 7,
    'checkpoint.every_steps': 11,
    'checkpoint.keep': 3,
    'checkpoint.parameters': 'none',
    'data.path': 'moved.txt',
    'init.checkpoint': 'moved/runs/seed=0',
    'probe.every_steps': 14,
    'probe.sharpness_every_steps': 40,
    'parallel.layout': 'single',
    'parallel.members': 2,
    'parallel.microbatches': 2,
    'parallel.remat': 'block',
}
INTERVALS = [
    field
    for field in OTHER
    if field.split('.')[0] in ('log', 'checkpoint', 'probe') and field != 'checkpoint.parameters'
]


def runs(points=({},), **fields):
  flat = config_lib.flatten(base.get_config().to_dict()) | fields
  return hyper.expand(config_lib.unflatten(flat), points)


def test_every_option_that_may_change():
  assert set(OTHER) == {*resume.FREE, *resume.ROUNDING}
  assert not set(resume.FREE) & set(resume.ROUNDING)


@pytest.mark.parametrize('field', OTHER)
def test_may_change(tmp_path, field):
  made_up.write_runs(tmp_path, runs())
  changed = runs(**{field: OTHER[field]})
  assert sweeps.check_workdir(tmp_path, changed) == changed


@pytest.mark.parametrize(
    ('field', 'value'),
    [('schedule.steps', 90), ('data.seed', 1), ('model.dtype', 'bfloat16'), ('control.tries', 2)],
)
def test_may_not_change(tmp_path, field, value):
  made_up.write_runs(tmp_path, runs())
  with pytest.raises(BadInput, match=f'config.{field}=.*, this one {value!r}$'):
    sweeps.check_workdir(tmp_path, runs(**{field: value}))


@pytest.mark.parametrize('field', INTERVALS)
@pytest.mark.parametrize('on_alarm', ['ask', 'policy'])
def test_alarms_that_act_depend_on_intervals(tmp_path, field, on_alarm):
  made_up.write_runs(tmp_path, runs(**{'control.on_alarm': on_alarm}))
  changed = runs(**{'control.on_alarm': on_alarm, field: OTHER[field]})
  with pytest.raises(BadInput, match=f'config.{field}=.* config.control.on_alarm={on_alarm} dep'):
    sweeps.check_workdir(tmp_path, changed)


@pytest.mark.parametrize('field', OTHER)
def test_long_names(tmp_path, monkeypatch, field):
  """Long names have a hash of all options; runs keep the names that they began with."""
  monkeypatch.setattr(hyper, 'MAX_NAME', 20)
  points = hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2])
  before = runs(points)
  made_up.write_runs(tmp_path, before)
  changed = runs(points, **{field: OTHER[field]})
  assert not before.configs.keys() & changed.configs.keys()
  found = sweeps.check_workdir(tmp_path, changed)
  assert list(found.configs) == list(before.configs)
  assert list(found.configs.values()) == list(changed.configs.values())


def test_swept_options_distinguish_runs(tmp_path):
  made_up.write_runs(tmp_path, runs(hyper.sweep('parallel.microbatches', [None, 2])))
  with pytest.raises(BadInput, match='its run microbatches=None,seed=0 is not in this one'):
    sweeps.check_workdir(tmp_path, runs(hyper.sweep('parallel.microbatches', [2, 4])))
