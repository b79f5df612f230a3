"""launch.finalists prints the list by the rule of configs/leaderboard.py."""

import pytest
from helpers import made_up

from configs import leaderboard, leaderboard_finals, leaderboard_pairs
from launch import finalists, report
from launch.common import app
from stability.storage import files

ARMS = [
    {'arm': 'AdamW'},
    {'arm': 'no qk-norm', 'model.qk_norm': 'none'},
    {'arm': "Kahan's", 'optimizer.eps': 1e-9},
]


def run(*arguments):
  return app.execute(finalists.main, finalists.FLAGS, ['finalists', *arguments])


def test_list(tmp_path, capsys):
  made_up.write_sweep(tmp_path, widths=(16, 64), interventions=ARMS, seeds=(0,))
  sweep = files.read_json(tmp_path / 'sweep.json')
  places = {'no qk-norm': 'attention', "Kahan's": 'optimizer'}
  files.write_json(tmp_path / 'sweep.json', sweep | {'report': {'places': places}})
  assert run(f'--workdir={tmp_path}') == 0
  found: dict = {}
  exec(capsys.readouterr().out, found)
  # That of Kahan's is the baseline's curve, bit for bit: inert.
  assert found['FINALISTS'] == ('no qk-norm',)
  assert found['BEST'] == {'attention': 'no qk-norm'}


def test_arms_at_an_edge_and_without_runs(tmp_path, capsys):
  made_up.write_sweep(
      tmp_path, widths=(16,), interventions=ARMS, seeds=(0,), rates=(1e-2, 1e-1, 1.0),
      results={8: {'status': 'failed', 'final_loss': None}},
  )  # fmt: skip
  assert run(f'--workdir={tmp_path}') == 0
  out, err = capsys.readouterr()
  assert out == 'FINALISTS = (\n)\nBEST = {\n}\n'
  assert 'no qk-norm: its loss is lowest at the lowest of its rates' in err
  assert "Kahan's: 1 of its runs do not count" in err


def test_unfinished_screening(tmp_path, capsys):
  made_up.write_sweep(
      tmp_path, widths=(16,), interventions=ARMS, seeds=(0,), rates=(1e-2, 1e-1), leave_out=(1, 4)
  )
  assert run(f'--workdir={tmp_path}') == 2
  assert '2 of its 6 runs have not ended' in capsys.readouterr().err


def test_sweep_without_arms(tmp_path, capsys):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), rates=(1e-2, 1e-1))
  assert run(f'--workdir={tmp_path}') == 2
  assert 'the points of its sweep have no arm' in capsys.readouterr().err


@pytest.mark.parametrize(
    'content, error',
    [
        ('arm,width\nMuon,16\n', 'has no column seconds; it needs arm, width, seconds, bytes'),
        ('arm,width,seconds,bytes\nMuon,wide,1,1\n', 'cannot be read: '),
    ],
)
def test_bad_costs(tmp_path, capsys, content, error):
  (tmp_path / 'costs.csv').write_text(content)
  made_up.write_sweep(tmp_path / 'sweep', widths=(16,), seeds=(0,), rates=(1e-2, 1e-1))
  arguments = [f'--workdir={tmp_path / "sweep"}', f'--costs={tmp_path / "costs.csv"}']
  assert app.execute(report.main, report.FLAGS, ['report', *arguments]) == 2
  assert error in capsys.readouterr().err


def test_committed_lists_are_arms():
  names = {point['arm'] for point in leaderboard.points('cpu')}
  assert set(leaderboard_finals.FINALISTS) | set(leaderboard_pairs.BEST.values()) <= names
