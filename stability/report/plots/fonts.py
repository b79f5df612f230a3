"""The fonts of the figures, and what is said of characters that none of them has."""

import contextlib
import functools
import warnings
from collections.abc import Iterator

from matplotlib import font_manager

_FIRST = 'DejaVu Sans'  # comes with Matplotlib, so that every machine has it
# Fonts of Linux, macOS and Windows with Chinese, Japanese and Korean characters.
_OTHERS = (
    *('Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans CJK KR', 'Source Han Sans'),
    *('WenQuanYi Micro Hei', 'WenQuanYi Zen Hei', 'Droid Sans Fallback', 'IPAGothic'),
    *('PingFang SC', 'Hiragino Sans', 'Apple SD Gothic Neo', 'Arial Unicode MS'),
    *('Microsoft YaHei', 'Yu Gothic', 'Malgun Gothic', 'SimHei'),
)
_MISSING = 'missing from font'  # in Matplotlib's warning on a character


def families() -> list[str]:
  """The font of the figures, and those on this machine that have characters that it lacks."""
  present = {font.name for font in font_manager.fontManager.ttflist}
  return [_FIRST, *(name for name in _OTHERS if name in present)]


@contextlib.contextmanager
def missing_once() -> Iterator[None]:
  """A context that warns of characters without a font once, and not of each in each figure."""
  with warnings.catch_warnings(record=True) as caught:
    yield
  for warning in caught:
    if _MISSING in str(warning.message):
      _warn()
    else:
      warnings.warn_explicit(
          warning.message, warning.category, warning.filename, warning.lineno
      )


@functools.cache
def _warn() -> None:
  warnings.warn(
      'figures show boxes for some characters of the names, which no font on this machine has;'
      f' one of these would do: {", ".join(_OTHERS[:3])}',
      stacklevel=2,
  )
