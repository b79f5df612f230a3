"""Scores of the alarms on synthetic runs with known steps of instability and of alarms."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from helpers import made_up

from configs import base
from stability import hyper
from stability.analysis import alarm_scores
from stability.control.alarms import Alarm
from stability.control.rules import RULES, Rule
from stability.storage import files, run_files

STEPS = 200
BEST, BROKEN = 2.0, 4.0  # final losses; from an initial one of 6 the margin is 0.2


def write(workdir, cases):
  """Writes a sweep with a run per case: {rate: (first unstable step, first step with an alarm)}."""
  runs = hyper.expand(
      base.get_config().to_dict(), hyper.sweep('optimizer.learning_rate', list(cases))
  )
  made_up.write_runs(workdir, runs)
  folders = []
  for name, (breaks, alarm) in zip(runs.configs, cases.values(), strict=True):
    run = run_files.run_dir(workdir, name)
    lines = []
    for step in range(10, STEPS + 1, 10):
      line = {'step': step, 'loss': BROKEN if breaks and step >= breaks else BEST}
      if step % 20 == 0:
        logit = 1000.0 if alarm and step >= alarm else 10.0
        line |= {'block_0/attention_logit_max': logit, 'log_z': 1.0}
      lines.append(line)
    files.write_lines(run / 'metrics.jsonl', lines)
    final = BROKEN if breaks else BEST
    result = run_files.Result('done', initial_loss=6.0, final_loss=final, steps=STEPS)
    run_files.write_result(run, result)
    folders.append(run)
  return folders


(LOGIT_RULE,) = (rule for rule in RULES if rule.name == 'attention_logit')


CASES = {
    1e-3: (0, 0),  # the best run: stable, no alarm
    3e-3: (0, 100),  # stable, a false alarm
    1e-2: (0, 0),
    3e-2: (0, 0),
    1e-1: (80, 40),  # alarm after half the steps to the onset
    3e-1: (80, 80),  # alarm at the onset
    1.0: (80, 0),  # missed
}


def test_labels(tmp_path):
  write(tmp_path, CASES)
  labels = alarm_scores.label_runs(tmp_path, [LOGIT_RULE])
  assert list(labels['unstable']) == [False] * 4 + [True] * 3
  # The loss jumps by 2 nats, so the moving average over five steps exceeds the margin at once.
  assert list(labels['onset'][4:]) == [80.0] * 3
  assert list(labels['attention_logit'].fillna(0)) == [0, 100, 0, 0, 40, 80, 0]
  assert labels['any'].equals(labels['attention_logit'])


def test_scores(tmp_path):
  write(tmp_path, CASES)
  table = alarm_scores.score(alarm_scores.label_runs(tmp_path, [LOGIT_RULE])).set_index('rule')
  assert list(table.index) == ['attention_logit', 'any']
  for rule in table.index:
    row = table.loc[rule]
    assert (row['runs'], row['unstable'], row['fired']) == (7, 3, 3)
    assert row['recall'] == pytest.approx(2 / 3)
    assert row['false_alarm_rate'] == pytest.approx(1 / 4)
    assert row['lead'] == pytest.approx(1.0)  # the median of 0.5, 1 and never


def test_runs_to_which_a_rule_cannot_be_applied(tmp_path):
  """They count for the other rules alone; of a rule that no run allows, nothing is known."""
  *_, missed = write(tmp_path, CASES)
  labels = alarm_scores.label_runs(tmp_path, [LOGIT_RULE])
  table = alarm_scores.score(labels, {missed.name: {'attention_logit': 'it'}}).set_index('rule')
  assert list(table['runs']) == [6, 7] and list(table['unstable']) == [2, 3]
  assert list(table['recall']) == [1, pytest.approx(2 / 3)]
  nowhere = {name: {'attention_logit': 'it'} for name in labels.index}
  row = alarm_scores.score(labels, nowhere).iloc[0]
  assert row['runs'] == 0 and row[['recall', 'false_alarm_rate', 'lead']].isna().all()


def test_lead_is_infinite_if_most_alarms_are_missed(tmp_path):
  write(tmp_path, CASES | {3e-1: (80, 0)})
  table = alarm_scores.score(alarm_scores.label_runs(tmp_path, [LOGIT_RULE])).set_index('rule')
  assert math.isinf(table.loc['any', 'lead'])
  assert table.loc['any', 'recall'] == pytest.approx(1 / 3)


def test_any_is_the_first_alarm_of_all_rules(tmp_path):
  early = Rule(early_bird, 'step', 50, 0.5, '', ())
  write(tmp_path, {1e-3: (0, 0), 1e-1: (80, 40), 1.0: (80, 0)})
  labels = alarm_scores.label_runs(tmp_path, [LOGIT_RULE, early])
  assert list(labels['early_bird']) == [60, 60, 60]
  assert list(labels['any']) == [60, 40, 60]


def early_bird(history):
  return history.row['step']


def test_runs_that_do_not_count(tmp_path):
  folders = write(tmp_path, CASES)
  (folders[5] / 'actions.jsonl').write_text('')
  (folders[1] / 'result.json').unlink()
  labels = alarm_scores.label_runs(tmp_path, [LOGIT_RULE])
  assert list(labels.index) == [folders[n].name for n in (0, 2, 3, 4, 6)]
  assert alarm_scores.score(labels)['false_alarm_rate'].to_list() == [0, 0]


def test_scores_without_runs_are_nan():
  columns = {'unstable': [False], 'onset': [np.nan], 'attention_logit': [np.nan], 'any': [np.nan]}
  (row, _) = alarm_scores.score(pd.DataFrame(columns)).to_dict('records')
  assert row['false_alarm_rate'] == 0
  assert all(math.isnan(row[name]) for name in ('recall', 'lead'))


def test_torn_line_and_null_loss(tmp_path):
  (run,) = write(tmp_path, {1e-3: (0, 100)})
  with (run / 'metrics.jsonl').open('a') as file:
    file.write(json.dumps({'step': 210, 'loss': None}))
  found = alarm_scores.label_runs(tmp_path, [LOGIT_RULE])
  assert found.loc[run.name, 'any'] == 100


def test_alarms_by_rise():
  rises = {'slow': 0.0, 'a': 0.01, 'b': 0.0101, 'c': 0.05, 'd': 0.0501, 'e': math.inf}
  outcomes = pd.DataFrame({'rise': rises})
  outcomes['unstable'] = (outcomes['rise'] > 0.05).astype('boolean')
  alarm = [Alarm(1, 'x', 1.0, 1.0, '', 0.5)]
  found = {name: alarm if name in ('slow', 'b', 'e') else [] for name in rises}
  table = alarm_scores.by_rise(outcomes, found)
  assert table['low'].tolist() == [0, *table['high'][:-1]]
  assert table['high'].tolist() == [0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.2, math.inf]
  assert table['runs'].tolist() == [1, 1, 1, 0, 0, 1, 1, 0, 0, 1]
  assert table['unstable'].tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 1]
  assert table['fired'].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 1]


def test_rises_of_outcomes(tmp_path):
  """The best run has the lowest rate; the unstable ones lose half of what it learned."""
  write(tmp_path, CASES)
  assert alarm_scores.outcomes(tmp_path)['rise'].tolist() == [0, 0, 0, 0, 0.5, 0.5, 0.5]


def test_reliability_by_tenths():
  outcomes = pd.DataFrame({'unstable': [True, False], 'onset': [1.0, np.nan]}, ['a', 'b'])

  def alarms(*probabilities):
    return [Alarm(1, f'x{i}', 1.0, 1.0, '', p) for i, p in enumerate(probabilities)]

  table = alarm_scores.reliability(outcomes, {'a': alarms(0.92, 1.0, 0.31), 'b': alarms(0.98)})
  assert table['low'].tolist() == [0.3, 0.9] and table['high'].tolist() == [0.4, 1.0]
  assert table['alarms'].tolist() == [1, 3]
  assert table['probability'].tolist() == pytest.approx([0.31, (0.92 + 1 + 0.98) / 3])
  assert table['unstable'].tolist() == pytest.approx([1, 2 / 3])
  assert alarm_scores.reliability(outcomes, {'a': [], 'b': []}).empty


def test_reliability_is_that_of_alarms_before_the_onset():
  """After it, a run is unstable. A stable run may have an onset, too: it trains slowly."""
  onsets = {'late': 80, 'unseen': np.nan, 'slow': 10, 'calm': np.nan}
  runs = {name: (name in ('late', 'unseen'), onset) for name, onset in onsets.items()}
  outcomes = pd.DataFrame.from_dict(runs, orient='index', columns=['unstable', 'onset'])
  outcomes['unstable'] = outcomes['unstable'].astype('boolean')
  steps = (('x', 120, 0.55), ('y', 80, 0.55), ('x', 100, 0.55), ('z', 81, 0.95), ('y', 90, 0.35))
  alarms = {name: [Alarm(step, rule, 1.0, 1.0, '', p) for rule, step, p in steps] for name in runs}
  table = alarm_scores.reliability(outcomes, alarms)
  # late: y at 80. The others: x at 100, y at 80 and z at 81, the first of each rule.
  assert table['low'].tolist() == [0.5, 0.9] and table['alarms'].tolist() == [7, 3]
  assert table['unstable'].tolist() == pytest.approx([3 / 7, 1 / 3])
