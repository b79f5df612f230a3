"""Studies on small Transformers what makes large ones unstable (arXiv 2309.14322).

The interface for notebooks; each name is imported when it is first used:

  load         loads the runs of a sweep or of a CSV file, with their statistics and figures
  from_frames  does the same with data frames
  Monitor      raises alarms on the metrics of any training loop
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from stability.control.alarms import Monitor
  from stability.experiment import from_frames, load

__version__ = '0.1.0'
__all__ = ['Monitor', '__version__', 'from_frames', 'load']

_MODULES = {
    'Monitor': 'stability.control.alarms',
    'from_frames': 'stability.experiment',
    'load': 'stability.experiment',
}


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
