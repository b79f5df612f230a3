"""launch.report on workdirs: where it writes, also when a workdir is read-only."""

import errno
import os
import pathlib

import pytest
from helpers import made_up

from launch import report
from launch.common import app
from stability.storage import results_csv

PAGES = {'index.html', 'results.csv', 'lr_sensitivity.csv', 'claims.csv'}


def run_report(*arguments):
  return app.execute(report.main, report.FLAGS, ['report', *arguments])


def content(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def workdir(tmp_path):
  """A read-only workdir: writes to it fail as on a read-only mount, which holds for root too."""
  made_up.write_sweep(tmp_path / 'sweep', widths=(16,), seeds=(0,), rates=(1e-2, 1e-1))
  with pytest.MonkeyPatch.context() as patch:
    allowed = pathlib.Path.open

    def refuse(path, mode='r', *arguments, **options):
      if path.is_relative_to(tmp_path / 'sweep') and set(mode) & set('wax+'):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
      return allowed(path, mode, *arguments, **options)

    patch.setattr(pathlib.Path, 'open', refuse)
    yield tmp_path / 'sweep'


def test_output(workdir, tmp_path, capsys):
  before = content(workdir)
  output = tmp_path / 'output'
  assert run_report(f'--workdir={workdir}', f'--output={output}') == 0
  assert content(workdir) == before
  assert {path.name for path in output.iterdir()} > PAGES
  assert not (output / 'report').exists()
  rows = (output / 'results.csv').read_text().splitlines()
  assert len(rows) == 1 + len(results_csv.read_results(workdir))
  assert str(output / 'index.html') in capsys.readouterr().out.replace('\n', '')


def test_read_only_without_output(workdir, capsys):
  before = content(workdir)
  assert run_report(f'--workdir={workdir}') == 2
  out, err = capsys.readouterr()
  assert (out, err) == (
      '',
      f'error: --workdir={workdir}: cannot be written: Read-only file system; name a folder for the'
      ' report with --output\n',
  )
  assert content(workdir) == before


def test_read_only_output(workdir, capsys):
  """Its line names the output; --output is no remedy."""
  assert run_report(f'--workdir={workdir}', f'--output={workdir / "there"}') == 1
  assert f'{workdir / "there"}' in capsys.readouterr().err


def test_several_workdirs(workdir, tmp_path):
  made_up.write_sweep(tmp_path / 'more', widths=(16,), seeds=(0,), rates=(1e-2,))
  before = content(workdir) | content(tmp_path / 'more')
  assert run_report(f'--workdir={workdir},{tmp_path / "more"}', f'--output={tmp_path / "out"}') == 0
  assert content(workdir) | content(tmp_path / 'more') == before
  for name in ('sweep', 'more'):
    assert {path.name for path in (tmp_path / 'out' / name).iterdir()} > PAGES


def test_workdirs_of_one_name(workdir, tmp_path, capsys):
  made_up.write_sweep(tmp_path / 'a' / 'sweep', widths=(16,), seeds=(0,), rates=(1e-2,))
  both = f'--workdir={workdir},{tmp_path / "a" / "sweep"}'
  assert run_report(both, f'--output={tmp_path / "out"}') == 2
  assert 'several folders are named sweep' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()
