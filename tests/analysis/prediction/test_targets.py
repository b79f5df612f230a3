"""Targets: what is understood, and what is kept with a workdir."""

import json

import pytest

from stability.analysis.prediction import targets
from stability.analysis.prediction.targets import Target
from stability.errors import BadInput


@pytest.mark.parametrize(
    ('text', 'parameters'),
    [
        ('9.2K', 9216),
        ('4.8B', 12 * 24 * 4096**2),  # a named size is meant exactly
        ('7B', 7e9),
        ('1.3b', 1.3e9),
        ('2T', 2e12),  # as labels.parameters writes it
        ('85.5M', 85.5e6),
        ('1e9', 1e9),
        ('250000', 250_000),
        (3e6, 3e6),
    ],
)
def test_parse(text, parameters):
  assert targets.parse(text) == pytest.approx(parameters)


@pytest.mark.parametrize('text', ['', 'big', 'B', '4.8X', '-1M', '0', 'inf', 'nanB', '1e19', 'K7'])
def test_parse_refuses(text):
  with pytest.raises(BadInput, match=rf'^target={text}: must be one of 9\.2K.* such as 7B'):
    targets.parse(text)


@pytest.mark.parametrize('risk', [0.0, 0.009, 0.51, float('nan'), -1.0])
def test_risk_refuses(risk):
  with pytest.raises(BadInput, match=r'^risk=.*: must be from 0\.01 to 0\.5'):
    targets.check_risk(risk)


def test_next_sizes():
  assert targets.next_sizes(147_456) == [331_776, 589_824]
  assert targets.next_sizes(1.3e9) == [12 * 24 * 4096**2]
  assert targets.next_sizes(5e9) == [2e10]


def test_targets_are_kept(tmp_path):
  assert targets.load(tmp_path) == []
  kept = [Target(7e9), Target(1e9, 0.1)]
  targets.keep(tmp_path, kept)
  assert targets.load(tmp_path) == kept
  merged = targets.merged(kept, [Target(1e9, 0.2), Target(3e9)])
  assert merged == [Target(7e9), Target(1e9, 0.2), Target(3e9)]


@pytest.mark.parametrize(
    'content',
    [
        '{',
        '[]',
        '{}',
        '{"targets": 3}',
        '{"targets": [3]}',
        '{"targets": [{"parameters": 7e9}]}',
        '{"targets": [{"parameters": 7e9, "risk": 2}]}',
        '{"targets": [{"parameters": null, "risk": 0.05}]}',
        json.dumps({'targets': [{'parameters': 'many', 'risk': 0.05}]}),
    ],
)
def test_damaged_file(content, tmp_path):
  (tmp_path / 'targets.json').write_text(content)
  with pytest.raises(BadInput, match=r'targets\.json: damaged: must hold targets'):
    targets.load(tmp_path)
