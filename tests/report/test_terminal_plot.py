"""The terminal plot, compared with the expected text."""

import math

from stability.report import terminal_plot


def drawn(*arguments, **options):
  return terminal_plot.plot(*arguments, **options).split('\n')


def test_straight_line():
  lines = drawn([(step, step) for step in range(16)], {}, 16, width=16, height=2)
  assert lines[0] == f'{"15":>9}         ▁▂▃▄▅▆▇█'.rstrip()
  assert lines[1] == f'{"0":>9} ▁▂▃▄▅▆▇█████████'
  assert lines[2] == ''


def test_column_is_the_mean_of_its_points():
  lines = drawn([(0, 0.0), (1, 4.0), (6, 0.0)], {}, 8, width=4, height=1)
  assert lines[0] == f'{"2":>9} ███▁'


def test_nothing_is_drawn_after_the_last_point():
  (line, _) = drawn([(0, 1.0), (4, 2.0)], {}, 100, width=50, height=1)
  assert line == f'{"2":>9} ▁▁█'


def test_marks_are_below_their_steps():
  *_, below = drawn([(0, 1.0)], {0: '!', 5: '*', 10: '!'}, 10, width=10)
  assert below == ' ' * 10 + '!    *   !'


def test_flat_line_and_nonfinite_values():
  lines = drawn([(0, math.nan), (1, 3.0), (2, math.inf), (3, 3.0)], {}, 4, width=4, height=2)
  assert lines == [f'{"3":>9}', f'{"3":>9}  ▁▁▁', '']
  assert terminal_plot.plot([(1, math.nan)], {1: '!'}, 4) == 'nothing logged yet'
  assert terminal_plot.plot([], {}, 0) == 'nothing logged yet'
