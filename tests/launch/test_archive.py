"""launch.archive, on made-up sweeps."""

import json
import pathlib
import tarfile

import pytest
from helpers import made_up

from launch import archive
from launch.common import app
from stability.analysis import results
from stability.analysis.prediction import targets
from stability.report import page
from stability.storage import run_files


@pytest.fixture
def workdir(tmp_path) -> pathlib.Path:
  folder = tmp_path / 'sweep'
  names = made_up.write_sweep(folder, widths=(16,), seeds=(0,), rates=(1e-3, 1e-2, 1e-1))
  run = run_files.run_dir(folder, names[0])
  for name in ('checkpoints/10', 'requests'):
    (run / name).mkdir(parents=True)
    (run / name / 'x.json').write_text('{}')
  for name in ('events.out.tfevents.1', 'lease.1.json', '.metrics.jsonl.12345678'):
    (run / name).write_text('{}')
  (folder / 'data/abc').mkdir(parents=True)
  (folder / 'data/abc/meta.json').write_text('{}')
  return folder


def run(workdir, output) -> int:
  return app.execute(
      archive.main, archive.FLAGS, ['archive', f'--workdir={workdir}', f'--output={output}']
  )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  paths = [path for path in folder.rglob('*') if path.is_file()]
  return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.slow
def test_report_of_the_extracted_archive(workdir, tmp_path):
  targets.keep(workdir, [targets.Target(7e9)])
  file = tmp_path / 'made/sweep.tar.gz'
  assert run(workdir, file) == 0
  with tarfile.open(file) as opened:
    opened.extractall(tmp_path / 'out', filter='data')
  extracted = tmp_path / 'out/sweep'
  left_out = ('/checkpoints/', '/requests/', '/events.', '/lease.', '/.metrics', 'data/')
  expected = {
      name: content
      for name, content in contents(workdir).items()
      if not any(part in name for part in left_out)
  }
  assert contents(extracted) == expected and {'sweep.json', 'targets.json'} < expected.keys()
  assert any(name.endswith('/metrics.jsonl') for name in expected)
  page.write_report(workdir, tmp_path / 'a')
  page.write_report(extracted, tmp_path / 'b')
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
  assert (tmp_path / 'a/index.html').exists()


@pytest.mark.slow
def test_report_is_archived_and_bytes_are_the_same(workdir, tmp_path):
  page.write_report(workdir)
  inside = workdir / 'report/copy.tar.gz'
  assert run(workdir, inside) == 0
  first = inside.read_bytes()
  for path in workdir.rglob('*.json*'):
    path.touch()
  assert run(workdir, inside) == 0 and inside.read_bytes() == first
  with tarfile.open(inside) as opened:
    names = opened.getnames()
  assert 'sweep/report/index.html' in names and 'sweep/report/copy.tar.gz' not in names
  assert names[0] == 'sweep/sweep.json'
  last = max(i for i, name in enumerate(names) if name.endswith('/result.json'))
  assert last < min(i for i, name in enumerate(names) if name.endswith('/metrics.jsonl'))


def test_running_sweep(workdir, tmp_path):
  metrics = sorted(workdir.glob('runs/*/metrics.jsonl'))[0]
  (metrics.parent / 'result.json').unlink()
  metrics.write_bytes(metrics.read_bytes()[:-5])  # a row is being written
  assert run(workdir, tmp_path / 'a.tgz') == 0
  with tarfile.open(tmp_path / 'a.tgz') as opened:
    opened.extractall(tmp_path / 'out', filter='data')
  loaded = results.load_workdir(tmp_path / 'out/sweep')
  assert loaded.runs['status'].value_counts()['missing'] == 1


@pytest.mark.parametrize(
    'output, message',
    [
        ('a.zip', '--output={}: must end with .tar.gz or .tgz'),
        ('folder.tar.gz', '--output={}: is a folder'),
    ],
)
def test_bad_output(output, message, workdir, tmp_path, capsys):
  (tmp_path / 'folder.tar.gz').mkdir()
  assert run(workdir, tmp_path / output) == 2
  assert message.format(tmp_path / output) in capsys.readouterr().err


def test_bad_workdir(workdir, tmp_path, capsys):
  assert run(tmp_path / 'none', tmp_path / 'a.tar.gz') == 2
  assert 'holds no sweep' in capsys.readouterr().err
  config = sorted(workdir.glob('runs/*/config.json'))[0]
  (tmp_path / 'secret').write_text(json.dumps({}))
  config.unlink()
  config.symlink_to(tmp_path / 'secret')
  assert run(workdir, tmp_path / 'a.tar.gz') == 2
  assert f'{config}: must not be a link' in capsys.readouterr().err
  assert not list(tmp_path.glob('*a.tar.gz*'))
