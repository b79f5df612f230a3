"""The alarms of a sweep as a table."""

from helpers import made_up

from stability.analysis import alarm_log
from stability.storage import files, run_files


def alarm(step, rule='loss_spike'):
  return {'step': step, 'rule': rule, 'seen': f'{rule} at {step}', 'actions': 0}


def test_alarms_of_all_runs(tmp_path):
  names = made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), rates=(1e-2, 1e-1))
  first, second, third, _ = (run_files.run_dir(tmp_path, name) for name in names)
  files.write_lines(first / 'alarms.jsonl', [alarm(60), alarm(80, 'log_z_drift')])
  files.write_lines(third / 'alarms.jsonl', [alarm(20)])
  record = {'action': 'stop', 'step': 30, 'by': 'ann', 'why': 'so'}
  for run in (second, third):  # the second has no alarm
    files.write_lines(run / 'actions.jsonl', [record])
  assert alarm_log.load(tmp_path).to_numpy().tolist() == [
      [names[0], 60, 'loss_spike', 'loss_spike at 60', False],
      [names[0], 80, 'log_z_drift', 'log_z_drift at 80', False],
      [names[2], 20, 'loss_spike', 'loss_spike at 20', True],
  ]


def test_no_alarms(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,), rates=(1e-2,))
  found = alarm_log.load(tmp_path)
  assert found.empty and list(found) == list(alarm_log.COLUMNS)
  assert found[~found['acted_on']].empty
