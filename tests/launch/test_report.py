"""launch.report on workdirs: where it writes, also when a workdir is read-only."""

import errno
import os
import pathlib

import pandas as pd
import pytest
from helpers import made_up
from helpers.html_page import Page

from launch import report
from launch.common import app
from stability.storage import results_csv, sweeps

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


@pytest.fixture
def pair(workdir, tmp_path):
  """The flag for two sweeps, of which the second has twice the steps."""
  other = tmp_path / 'sweep' / '..' / 'more'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(made_up, 'STEPS', 600)
    made_up.write_sweep(other.resolve(), widths=(16,), seeds=(0,), rates=(1e-2, 1e-1))
  found = sweeps.read_sweep(other.resolve())
  for config in found.runs.values():
    config['schedule']['steps'] *= 2
  sweeps.write_sweep(other.resolve(), found)
  return f'--workdir={workdir},{other}'


def test_comparison(pair, workdir, tmp_path, capsys):
  """One page, on which what differs is named; nothing is written to the sweeps."""
  before = content(workdir) | content(tmp_path / 'more')
  output = tmp_path / 'out'
  assert run_report(pair, f'--output={output}', '--figures=loss_by_learning_rate') == 0
  assert content(workdir) | content(tmp_path / 'more') == before
  assert {path.name for path in output.iterdir()} == {
      *('index.html', 'results.csv', 'lr_sensitivity.csv', 'differences.csv'),
      *('loss_by_learning_rate.svg', 'loss_by_learning_rate.png'),
  }
  shown = Page(output / 'index.html')
  steps = sweeps.read_sweep(workdir).runs.popitem()[1]['schedule']['steps']
  differing = f'These sweeps differ in: schedule.steps {steps} / {2 * steps}.'
  said = ' '.join(capsys.readouterr().out.split())
  for words in (differing, 'sweep=more, qk_norm=none, minus sweep, over 2 pairs of runs: best'):
    assert words in shown.text and words in said
  assert 'Differences between the sweeps' in shown.text and 'Sweep of more' in shown.text
  table = pd.read_csv(output / 'lr_sensitivity.csv')
  assert table['sweep'].tolist() == ['sweep', 'sweep', 'more', 'more']
  rows = pd.read_csv(output / 'results.csv')
  assert rows['run'].is_unique and rows['sweep'].value_counts().to_dict() == {'sweep': 4, 'more': 4}
  assert set(rows) > {'status', 'seed', 'learning_rate', 'final_loss', 'model.qk_norm'}


def test_sweeps_that_cannot_be_paired(workdir, tmp_path):
  made_up.write_sweep(tmp_path / 'large', widths=(32,), seeds=(0,), rates=(1e-2, 1e-1))
  output = tmp_path / 'out'
  flags = [f'--workdir={workdir},{tmp_path / "large"}', f'--output={output}']
  assert run_report(*flags, '--figures=loss_by_learning_rate') == 0
  text = Page(output / 'index.html').text
  assert 'Nothing of large can be paired with sweep: they have no size in common.' in text
  assert 'Differences between the sweeps' not in text
  assert not (output / 'differences.csv').exists()


def test_workdirs_of_one_name(workdir, tmp_path):
  """They are told apart by their folders."""
  made_up.write_sweep(tmp_path / 'a' / 'sweep', widths=(16,), seeds=(0,), rates=(1e-2,))
  names = report._names([workdir, tmp_path / 'a' / 'sweep'])
  assert list(names) == [f'{tmp_path.name}/sweep', 'a/sweep']


@pytest.mark.parametrize(
    ('flags', 'said'),
    [
        (['--workdir={0},{1}'], '--output: missing, must be a folder for the report on several'),
        (['--workdir={0},{0}', '--output={2}/out'], 'sweep: is given twice'),
        (['--workdir={0},{2}/link', '--output={2}/out'], 'link: is given twice, also as {0}'),
        (['--workdir={0},{2}/no', '--output={2}/out'], 'no: holds no sweep (no sweep.json)'),
        (['--workdir={0},{3}', '--output={2}/out'], '{3}: none of its runs has finished'),
        (['--workdir={0},{1}', '--output={1}'], '--output={1}: is the folder of a sweep'),
        (['--workdir={0},{1}', '--output={1}/report'], 'report: is inside of the sweep {1}'),
        (['--workdir={0}', '--output={0}'], '--output={0}: is the folder of a sweep'),
        (['--workdir={0}', '--output={1}'], '--output={1}: is the folder of a sweep'),
        (['--workdir={0}', '--output={0}/runs'], 'runs: is inside of the sweep {0}'),
        (['--workdir={0},{1}', '--output={2}/linked'], 'linked/index.html: must not be a link'),
        (['--workdir={0}', '--figures=losses'], '--figures=losses: must be one of loss_by_learn'),
        (['--workdir={0}', '--figures=lr_sensitivity'], '--figures=lr_sensitivity: This needs'),
        (['--workdir={0}', '--figures='], '--figures: must be names of figures'),
        (['--workdir={0}', '--figure_format=eps'], '=eps: must be one of pdf, svg, png'),
        (['--workdir={0}', '--figure_width_in=0.5'], '=0.5: must be from 2 to 20 inches'),
        (['--workdir={0}', '--figure_width_in=nan'], '=nan: must be from 2 to 20 inches'),
        (['--workdir={0}', '--interval=95'], '--interval=95: must be between 0 and 1'),
        (['--workdir={0}', '--interval=nan'], '--interval=nan: must be between 0 and 1'),
        (['--workdir={0}', '--labels={2}/no.json'], '--labels={2}/no.json: cannot be read'),
        (['--workdir={0}', '--labels={2}/list.json'], 'list.json: cannot be read: is not a JSON'),
        (['--workdir={0}', '--labels={2}/3.json'], "3.json: 'none': must be a string, the label"),
        (['--workdir={0}', '--labels={2}/equal.json'], "labels: 'x' stands for several arms"),
    ],
)
def test_bad_input(workdir, tmp_path, capsys, flags, said):
  others = [tmp_path / 'more', tmp_path / 'empty']
  for other, left_out in zip(others, ((), (0, 1)), strict=True):
    options = {'widths': (16,), 'seeds': (0,), 'rates': (1e-2,)}
    made_up.write_sweep(other, leave_out=left_out, **options)
  (tmp_path / 'link').symlink_to(workdir)
  (tmp_path / 'linked').mkdir()
  (tmp_path / 'linked' / 'index.html').symlink_to(tmp_path / 'victim')
  for name, text in (
      ('list', '["none"]'),
      ('3', '{"none": 3}'),
      ('equal', '{"qk_norm=none": "x", "qk_norm=layernorm": "x"}'),
  ):
    (tmp_path / f'{name}.json').write_text(text)
  before = content(tmp_path)
  places = [workdir, others[0], tmp_path, others[1]]
  assert run_report(*(flag.format(*places) for flag in flags)) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith('error: ') and err.count('\n') == 1
  assert said.format(*places) in err
  assert content(tmp_path) == before


@pytest.mark.slow
def test_for_a_paper(workdir, tmp_path):
  """Files of the chosen figures in the width of a column, with labels; the page keeps its own."""
  made_up.write_sweep(tmp_path / 'seeds', widths=(16,), rates=(1e-2, 3e-2, 1e-1))
  (tmp_path / 'labels.json').write_text(
      '{"model.qk_norm": "QK norm", "none": "off & on", "learning rate": "Peak LR"}'
  )
  output = tmp_path / 'out'
  assert run_report(
      *(f'--workdir={tmp_path / "seeds"}', f'--output={output}', '--figure_format=pdf'),
      *('--figures=loss_by_learning_rate', '--figure_width_in=3.25', '--interval=0.5', '--latex'),
      f'--labels={tmp_path / "labels.json"}',
  ) == 0  # fmt: skip
  names = {path.name for path in output.iterdir() if path.suffix in ('.svg', '.pdf', '.png')}
  assert names == {f'loss_by_learning_rate.{kind}' for kind in ('svg', 'pdf', 'png')}
  svg = (output / 'loss_by_learning_rate.svg').read_text()
  assert 'width="234pt"' in svg and '>QK norm=off &amp; on<' in svg and '>Peak LR<' in svg
  assert b'/MediaBox [ 0 0 234 ' in (output / 'loss_by_learning_rate.pdf').read_bytes()
  shown = Page(output / 'index.html')
  widths = [attributes['width'] for tag, attributes in shown.elements if tag == 'svg']
  assert widths == ['576pt']
  assert '50 % interval' in shown.text and 'QK norm=off & on' in shown.text
  tex = (output / 'lr_sensitivity.tex').read_text()
  assert 'QK norm & LR sensitivity & 50 \\% interval' in tex and r'& off \& on &' in tex
  table = pd.read_csv(output / 'lr_sensitivity.csv')
  assert 'model.qk_norm' in table  # names of files and columns are not replaced
  assert run_report(f'--workdir={tmp_path / "seeds"}', f'--output={tmp_path / "usual"}') == 0
  usual = pd.read_csv(tmp_path / 'usual' / 'lr_sensitivity.csv')
  assert (usual['high'] - usual['low'] > table['high'] - table['low']).all()
