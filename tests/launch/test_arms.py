"""launch.sweep --arms: which arms are trained, in a new workdir and in one that holds others."""

import pytest

from launch import sweep
from launch.backends.registry import Backend
from launch.common import app
from stability.storage import run_files, sweeps

EXPERIMENT = """
from configs import base
from stability import hyper

ARMS = {'AdamW': {}, 'slow': {'optimizer.beta2': 0.999}, 'decay': {'optimizer.weight_decay': DECAY}}

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.source = 'synthetic'
  c.model.width = 16
  c.model.depth = 1
  return c

def get_sweep(scale='cpu'):
  points = [{'arm': name, **options} for name, options in ARMS.items()]
  return hyper.product([points, hyper.sweep('optimizer.learning_rate', RATES)])
"""
RESULT = run_files.Result(status='done', initial_loss=5.0, final_loss=2.0, steps=1, tokens=1)


@pytest.fixture
def execute(tmp_path, monkeypatch):
  """A function that runs launch.sweep with flags; returns its code and the arms it trains."""

  def executed(*arguments, rates=(1e-2,), decay=1e-2, fails=()):
    file, trained = tmp_path / 'mine.py', []
    file.write_text(EXPERIMENT.replace('RATES', str([*rates])).replace('DECAY', str(decay)))

    def train(workdir, configs):
      for name, config in configs.items():
        if config['arm'] not in fails:
          run_files.write_result(run_files.run_dir(workdir, name), RESULT)
        trained.append((config['arm'], config['optimizer']['learning_rate']))

    monkeypatch.setattr(sweep.registry, 'find', lambda _: Backend(train))
    given = [f'--config={file}', f'--workdir={tmp_path / "dir"}', *arguments]
    code = app.execute(sweep.main, sweep.FLAGS, ['sweep', *given])
    return code, trained

  return executed


def test_arms_are_added(execute, tmp_path):
  assert execute('--arms=slow') == (0, [('AdamW', 0.01), ('slow', 0.01)])
  assert len(sweeps.read_sweep(tmp_path / 'dir').runs) == 2
  assert execute('--arms=decay') == (0, [('decay', 0.01)])
  runs = sweeps.read_sweep(tmp_path / 'dir').runs
  assert [config['arm'] for config in runs.values()] == ['AdamW', 'slow', 'decay']


def test_other_arms_wait(execute, tmp_path, capsys):
  assert execute(fails=('AdamW', 'slow', 'decay'))[0] == 1
  assert '3 runs have not finished; the same command resumes' in capsys.readouterr().out
  begun = sweeps.read_sweep(tmp_path / 'dir')
  assert execute('--arms=slow', '--dry_run') == (0, [])
  assert f'{tmp_path / "dir"}: 0 of 2 runs have ended' in capsys.readouterr().out
  assert execute('--arms=slow') == (0, [('AdamW', 0.01), ('slow', 0.01)])
  output = capsys.readouterr().out
  assert '1 runs of arms not in --arms have not finished' in output and 'resumes' not in output
  assert sweeps.read_sweep(tmp_path / 'dir') == begun
  assert execute() == (0, [('decay', 0.01)])


def test_another_sweep_is_refused(execute, capsys):
  """Also where only arms that are not to be trained are different."""
  execute(rates=(1e-3, 1e-2))
  assert execute('--arms=slow', rates=(1e-3, 1e-2), decay=2e-2) == (2, [])
  assert 'has config.optimizer.weight_decay=0.01, this one 0.02' in capsys.readouterr().err
  assert execute('--arms=slow') == (2, [])
  assert 'holds another sweep: its run arm=AdamW,learning_rate=0.001' in capsys.readouterr().err
  assert execute('--arms=slow', '--config.optimizer.eps=1e-7', rates=(1e-3, 1e-2)) == (2, [])
  assert 'has config.optimizer.eps=1e-08, this one 1e-07' in capsys.readouterr().err
