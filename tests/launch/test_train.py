"""launch.train: a run that several processes share."""

import pytest

from launch import train
from launch.common import app, start
from launch.workers import multihost


@pytest.mark.parametrize('on_alarm', ['ask', 'policy'])
@pytest.mark.parametrize('number', [0, 1])
def test_shared_run_cannot_act_on_alarms(tmp_path, monkeypatch, capsys, on_alarm, number):
  """Each process says so before anything is written or compiled."""
  for module, name in ((multihost, 'contribute_devices'), (start, 'start')):
    monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail('started'))
  arguments = ['--config=configs/base.py', f'--workdir={tmp_path / "x"}']
  shared = ['--coordinator_address=a:1', '--num_processes=2', f'--process_id={number}']
  override = f'--config.control.on_alarm={on_alarm}'
  code = app.execute(train.main, train.FLAGS, ['train', *arguments, *shared, override])
  err = capsys.readouterr().err
  assert code == 2 and not (tmp_path / 'x').exists()
  assert err == (
      f'error: config.control.on_alarm={on_alarm}: must be none if several processes share a'
      ' run\n'
  )


def test_shared_run_may_record_alarms(tmp_path, monkeypatch):
  monkeypatch.setattr(start, 'start', lambda *a, **k: 0)
  arguments = ['--config=configs/base.py', f'--workdir={tmp_path / "x"}', '--process_id=0']
  shared = ['--coordinator_address=a:1', '--num_processes=2']
  assert app.execute(train.main, train.FLAGS, ['train', *arguments, *shared]) == 0
