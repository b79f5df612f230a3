"""The timeline of runs that were acted on."""

import pytest
from helpers import made_up

from stability.analysis import timeline
from stability.report import page
from stability.storage import files, run_files


def alarm(step, taken, rule='loss_spike'):
  return {'step': step, 'rule': rule, 'seen': f'seen at {step}', 'actions': taken}


def record(action, step, **other):
  return {'action': action, 'step': step, 'by': 'ann', 'why': 'so'} | other


@pytest.fixture
def runs(tmp_path):
  """The folders of the two runs of a sweep, and of a fork of the first."""
  names = made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), rates=(1e-2, 1e-1))[:2]
  found = [run_files.run_dir(tmp_path, name) for name in names]
  fork = run_files.run_dir(tmp_path, f'{names[0]}+fork1')
  files.write_json(fork / 'config.json', run_files.read_config(found[0]))
  about = {'run': names[0], 'step': 50, 'changes': {}}
  files.write_json(tmp_path / 'forks' / f'{fork.name}.json', about)
  return [*found, fork]


def rows(workdir):
  """(run, step, what) of each row."""
  return [tuple(row) for row in timeline.load(workdir)[['run', 'step', 'what']].to_numpy()]


def test_alarms_and_actions_in_order(tmp_path, runs):
  run = runs[0]
  files.write_lines(
      run / 'alarms.jsonl', [alarm(60, 0), alarm(80, 0), alarm(40, 1, 'log_z_drift')]
  )
  files.write_lines(
      run / 'actions.jsonl',
      [
          record('stop', 70, refused='no'),
          record('rewind', 90, to=0, skip=90, changes={'optimizer.learning_rate': 0.01}, cut='x'),
          record('checkpoint', 50),
      ],
  )
  name = run.name
  assert rows(tmp_path) == [
      (name, 60, 'alarm: loss_spike'),
      (name, 70, 'stop, refused: no'),
      (name, 80, 'alarm: loss_spike'),
      (name, 90, 'rewind 0 skip=90 optimizer.learning_rate=0.01'),
      (name, 40, 'alarm: log_z_drift'),
      (name, 50, 'checkpoint'),
  ]
  table = timeline.load(tmp_path)
  assert list(table['by']) == ['', 'ann', '', 'ann', '', 'ann']
  assert list(table['why'])[:2] == ['seen at 60', 'so']


def test_run_without_actions_is_left_out(tmp_path, runs):
  files.write_lines(runs[0] / 'alarms.jsonl', [alarm(60, 0)])
  assert timeline.load(tmp_path).empty
  assert list(timeline.load(tmp_path)) == list(timeline.COLUMNS)


def test_forks_come_last_and_page_shows_all(tmp_path, runs):
  for run in runs:
    files.write_lines(run / 'actions.jsonl', [record('skip', 30, steps=5, why='<b>bad</b>')])
  assert [name for name, *_ in rows(tmp_path)] == [run.name for run in runs]
  text = page.write_report(tmp_path).read_text()
  assert text.count('skip 5') >= 3 and runs[2].name in text
  assert '<b>bad' not in text and '&lt;b&gt;bad' in text
