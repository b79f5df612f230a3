"""Files of limits of the rules."""

import json
import re

import pytest

import stability
from stability.control import limits
from stability.control.limits import Limits
from stability.control.rules import RULES
from stability.errors import BadInput

MADE_FROM = {'workdir': '/runs/mine', 'runs': 42, 'unstable': 14, 'digests': ['0123456789abcdef']}
GOOD = {'limits': {'attention_logit': {'limit': 50.0, 'odds': 3.0}}, 'made_from': MADE_FROM}


def test_round_trip(tmp_path):
  path = tmp_path / 'limits.json'
  written = Limits(GOOD['limits'], MADE_FROM)
  limits.write(path, written)
  assert limits.read(path) == written
  for before, after in zip(RULES, written.apply(), strict=True):
    if before.name == 'attention_logit':
      assert (after.limit, after.odds, after.message) == (50.0, 3.0, before.message)
    else:
      assert after == before


def test_monitor_with_limits(tmp_path):
  path = tmp_path / 'limits.json'
  limits.write(path, Limits(GOOD['limits'], MADE_FROM))
  row = {'step': 1, 'block_0/attention_logit_max': 100.0}
  assert stability.Monitor().observe(row) == []
  (alarm,) = stability.Monitor(limits=path).observe(row)
  assert (alarm.limit, alarm.probability) == (50.0, pytest.approx(6 / 7))


def test_path_in_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  limits.write(tmp_path / 'limits.json', Limits(GOOD['limits'], MADE_FROM))
  assert limits.read('~/limits.json').limits == GOOD['limits']
  with pytest.raises(BadInput, match=r'^gs://x/y\.json: must be a path'):
    limits.read('gs://x/y.json')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'cannot be read'),
        ('[]', 'cannot be read: is not a JSON object'),
        ({}, 'limits must be an object'),
        (GOOD | {'made_from': 3}, 'made_from must be an object'),
        (GOOD | {'made_from': {}}, 'made_from.digests must be a list of strings'),
        (GOOD | {'limits': {'x': {'limit': 1, 'odds': 1}}}, 'limits: x: is no rule; rules are'),
        (GOOD | {'limits': {'log_z_drift': 3}}, 'log_z_drift: must have limit and odds'),
        (GOOD | {'limits': {'log_z_drift': {'limit': 1}}}, 'log_z_drift: must have limit and odds'),
        (
            GOOD | {'limits': {'log_z_drift': {'limit': -1, 'odds': 1}}},
            'log_z_drift: limit must be a number, 0 or more',
        ),
        (
            GOOD | {'limits': {'log_z_drift': {'limit': 1, 'odds': True}}},
            'log_z_drift: odds must be a number, 0 or more',
        ),
    ],
)
def test_damaged_file_is_refused_in_one_line(tmp_path, content, words):
  path = tmp_path / 'limits.json'
  if content is not None:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
  with pytest.raises(BadInput, match=re.escape(words)) as error:
    limits.read(path)
  assert str(error.value).startswith(str(path)) and '\n' not in str(error.value)
