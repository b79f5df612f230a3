"""What a resume finds is what was written, or it is refused."""

import json

import pytest
from helpers.tokenizing import contents, line, made, run

from stability.data.tokenize import packing


@pytest.fixture
def rows(tmp_path):
  for split, count in ('train', 60), ('validation', 9):
    texts = (line(f'{split} {i} of several documents') for i in range(count))
    (tmp_path / f'{split}.jsonl').write_text('\n'.join(texts))
  return tmp_path / '*.jsonl'


@pytest.fixture
def unfinished(rows, tmp_path, monkeypatch):
  """A folder with several full shards of training text, left before its end."""

  def fail(*_):
    raise OSError('full')

  with monkeypatch.context() as patched:
    patched.setattr(packing, 'COMMIT_SECONDS', 0)
    patched.setattr(packing.Packer, '_finish', fail)
    options = [f'--output={tmp_path / "out"}', '--shard_tokens=500']
    assert run(f'--input={rows}', *options) == 1
  assert (tmp_path / 'out' / 'train-00002.bin').exists()
  return lambda: run(f'--input={rows}', *options)


def refused(resume, capsys, message):
  capsys.readouterr()
  assert resume() == 2
  error = capsys.readouterr().err
  assert message in error and error.endswith('; choose a new folder\n') and error.count('\n') == 1


def test_an_unchanged_folder_is_finished(unfinished, rows, tmp_path):
  assert unfinished() == 0
  whole = made(tmp_path / 'whole', rows, '--shard_tokens=500')
  assert contents(tmp_path / 'out') == contents(whole)


@pytest.mark.parametrize('name', ['train', 'train-00001', 'validation'])
def test_full_shards(unfinished, name, tmp_path, capsys):
  shard = tmp_path / 'out' / f'{name}.bin'
  content = shard.read_bytes()
  shard.write_bytes(content[:-3])
  refused(unfinished, capsys, f'{name}.bin: changed since it was written')
  shard.unlink()
  refused(unfinished, capsys, f'{name}.bin: removed since it was written')
  shard.write_bytes(content)
  assert unfinished() == 0


@pytest.mark.parametrize(
    'file, key, value',
    [
        ('progress.json', 'place', 'x'),
        ('progress.json', 'place', [2, 0, None]),
        ('progress.json', 'place', [0, 0.5, None]),
        ('progress.json', 'train', []),
        ('progress.json', 'train', {'tokens': 700, 'sha256': {'train': ''}}),
        ('progress.json', 'train', {'tokens': -1, 'sha256': {}}),
        ('progress.json', 'documents', {'train': 'x'}),
        ('tokenize.json', 'parts', None),
        ('tokenize.json', 'parts', [[]]),
        ('tokenize.json', 'revisions', []),
    ],
)
def test_json_of_another_shape(unfinished, file, key, value, tmp_path, capsys):
  path = tmp_path / 'out' / file
  path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
  refused(unfinished, capsys, f'{file}: damaged')


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('train.bin', None, 'train.bin: no such file'),
        ('validation.bin', b'a', 'validation.bin: holds 1 bytes'),
        ('meta.json', b'', 'meta.json: cannot be read'),
    ],
)
def test_a_complete_folder(rows, name, content, message, tmp_path, capsys):
  file = made(tmp_path / 'out', rows) / name
  file.unlink() if content is None else file.write_bytes(content)
  refused(lambda: run(f'--input={rows}', f'--output={tmp_path / "out"}'), capsys, message)
