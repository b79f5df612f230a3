"""Pages without figures, which take most of a page's time."""

import pytest

from stability.report import page, predictions


def hide(patch):
  for name in ('loss_plots', 'curve_plots', 'probe_plots'):
    patch.setattr(page.selection, name, lambda *_, **__: [])
  patch.setattr(predictions, 'figures', lambda _: [])


@pytest.fixture
def without_figures(monkeypatch):
  hide(monkeypatch)


@pytest.fixture(scope='module')
def module_without_figures():
  with pytest.MonkeyPatch.context() as patch:
    hide(patch)
    yield
