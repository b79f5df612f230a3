"""Tables of texts on consoles of any width."""

import pandas as pd
import pytest
from rich.console import Console

from launch.common import display


@pytest.mark.parametrize(
    ('width', 'shown', 'longest'),
    [
        (80, ['name', 'number of runs', 'change', 'empty', 'seconds'], 68),
        (55, ['name', 'runs', 'change', 'seconds'], 52),  # 'number of' is above 'runs'
        (40, ['name', 'runs', 'change'], 40),
        (10, ['name', 'runs', 'ge'], 27),  # 'change' is folded, too
    ],
)
def test_numbers_are_whole_at_any_width(width, shown, longest, capsys):
  text = pd.DataFrame({
      'name': ['a long name of a run'],
      'number of runs': ['12345'],
      'change': ['+1.5'],
      'empty': [''],
      'seconds': ['678901'],
  })
  console = Console(width=width)
  display.print_table(console, text, left=('name',), spare=('seconds', 'not there'))
  lines = capsys.readouterr().out.splitlines()
  header = max(n for n, line in enumerate(lines) if line.strip().startswith('─')) - 1
  assert ' '.join(lines[header].split()) == ' '.join(shown)
  numbers = {'12345', '+1.5', *(['678901'] if 'seconds' in shown else [])}
  assert numbers <= set(lines[header + 2].split())
  assert console.width == width and len(lines[header]) == longest


def test_a_table_without_rows(capsys):
  display.print_table(Console(width=80), pd.DataFrame({'name': [], 'number': []}))
  assert 'number' in capsys.readouterr().out
