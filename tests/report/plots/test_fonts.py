"""Names in any script: a font that has their characters, or one sentence if there is none."""

import warnings

from matplotlib import font_manager
from matplotlib.figure import Figure

from stability.report.plots import fonts, style

LACKING = '\U000f0000\U000f0001'  # for private use


def test_other_fonts_follow_the_usual_one():
  first, *others = fonts.families()
  assert first == 'DejaVu Sans' and style.STYLE['font.family'] == [first, *others]
  assert {first, *others} <= {font.name for font in font_manager.fontManager.ttflist}


def test_characters_without_a_font_are_one_sentence():
  fonts._warn.cache_clear()
  figure = Figure()
  figure.suptitle(f'日本 {LACKING}')
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    for kind in ('svg', 'png', 'png'):
      style.save(figure, kind)
  (warning,) = caught
  assert 'no font on this machine' in str(warning.message)


def test_other_warnings_are_kept():
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    with fonts.missing_once():
      warnings.warn('something else', stacklevel=1)
  assert [str(warning.message) for warning in caught] == ['something else']
