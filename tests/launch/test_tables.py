"""Tables of results, and that those in configs/README.md are up to date."""

import json

import pytest
from helpers.processes import ROOT

from launch import tables
from launch.common import app

ABOUT = {
    'title': 'A sweep',
    'command': 'python -m launch.sweep',
    'machine': 'two cores',
    'commit': 'abc',
    'date': '1 January 2026',
    'seeds': 1,
}
COLUMNS = (
    'model.qk_norm,parameters,lr_sensitivity,low,high,best_loss,best_learning_rate,learning_rates,'
    'seeds,missing'
)
SENSITIVITY = f"""{COLUMNS}
none,9216,0.41892,0.3,0.51,2.2371,0.03,7,3,0
layernorm,147456,0.239,,,1.925,0.01,7,1,0
"""
CLAIMS = """figure,claim,verdict,effect,low,high,threshold,measure,n,reason,variant
1,It rises.,holds,1.5234,1.4,1.66,>= 1.1,ratio,6,,
2,It falls.,undecided,,,,<= 1,ratio,0,no runs,
"""


def run(*arguments):
  return app.execute(tables.main, tables.FLAGS, ['tables', *arguments])


@pytest.fixture
def place(tmp_path):
  folder = tmp_path / 'results' / 'one'
  folder.mkdir(parents=True)
  (folder / 'about.json').write_text(json.dumps(ABOUT))
  (folder / 'lr_sensitivity.csv').write_text(SENSITIVITY)
  (folder / 'claims.csv').write_text(CLAIMS)
  (tmp_path / 'README.md').write_text(f'before\n\n{tables.BEGIN}\nstale\n{tables.END}\nafter\n')
  return tmp_path


def written(place):
  assert run(f'--results={place}/results', f'--output={place}/README.md') == 0
  return (place / 'README.md').read_text()


def test_repository_tables_are_current():
  text = (ROOT / 'configs' / 'README.md').read_text()
  between = text.split(tables.BEGIN)[1].split(tables.END)[0]
  assert between == f'\n\n{tables.render(ROOT / "configs" / "results")}\n'


def test_tables(place):
  text = written(place)
  assert text.startswith('before') and text.endswith('after\n') and 'stale' not in text
  assert '### A sweep' in text and '1 seed, two cores, 1 January 2026, commit abc.' in text
  assert '| 9.2K | none | 0.419 (0.3 to 0.51) | 2.24 | 0.03 |' in text
  assert '| 147K | layernorm | 0.239 | 1.93 | 0.01 |' in text
  assert '| 1 | It rises. | 1.52 (1.4 to 1.66) | >= 1.1 | holds |' in text
  assert 'It falls.' not in text  # it does not apply
  assert '1 claim: 1 holds.' in text
  assert written(place) == text


def test_one_table_alone(place):
  (place / 'results/one/claims.csv').unlink()
  assert 'LR sensitivity' in written(place)


@pytest.mark.parametrize(
    ('file', 'content', 'said'),
    [
        ('results/one/about.json', '{"title": "x"}', 'command is missing'),
        ('results/one/about.json', '{', 'about.json'),
        ('README.md', 'no markers', 'must have the lines'),
    ],
)
def test_bad_input(place, capsys, file, content, said):
  (place / file).write_text(content)
  before = (place / 'README.md').read_text()
  assert run(f'--results={place}/results', f'--output={place}/README.md') == 2
  error = capsys.readouterr().err
  assert said in error and error.count('\n') == 1
  assert (place / 'README.md').read_text() == before
