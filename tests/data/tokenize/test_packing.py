"""What a pass leaves behind if the input is at fault."""

import pytest
from helpers.tokenizing import as_text, line, run

from stability.data import tokens
from stability.data.tokenize import packing


@pytest.fixture
def rows(tmp_path):
  texts = [line(f'text {i} of several documents') for i in range(60)]
  return tmp_path / 'rows.jsonl', [*texts, '{"text": 7}']


@pytest.fixture
def call(rows, tmp_path, capsys):
  """A function that runs the program on some rows -> exit code, errors."""
  file, _ = rows

  def program(lines, *options):
    file.write_text('\n'.join(lines))
    capsys.readouterr()
    code = run(f'--input={file}', f'--output={tmp_path / "out"}', '--shard_tokens=100', *options)
    return code, capsys.readouterr().err

  return program


@pytest.mark.parametrize('is_new', [True, False])
@pytest.mark.parametrize(
    'count, options, message',
    [
        (61, [], "field 'text' must be text"),
        (61, ['--max_bad_rows_share=0.001'], '1 of 61 rows have no text; allow more\n'),
        (60, ['--tokenizer=bpe'], '--vocabulary_size=32000: must be at most'),
        (1, [], 'change --validation_fraction\n'),
    ],
)
def test_a_mistake_can_be_corrected(count, options, message, is_new, rows, call, tmp_path):
  """Nothing is left of a pass that has committed nothing; the folder stays if it was there."""
  if not is_new:
    (tmp_path / 'out').mkdir()
  code, error = call(rows[1][:count], *options)
  assert code == 2 and message in error
  assert (tmp_path / 'out').exists() != is_new and not list((tmp_path / 'out').glob('*'))
  assert call(rows[1][:60], '--validation_fraction=0.2')[0] == 0
  assert sum(len(as_text(tmp_path / 'out', split)) for split in tokens.SPLITS) == 60


def test_committed_work_is_kept(rows, call, tmp_path, monkeypatch):
  monkeypatch.setattr(packing, 'COMMIT_SECONDS', 0)
  code, error = call(rows[1], '--max_bad_rows_share=0.001')
  assert code == 2 and error.endswith('; allow more, and choose a new --output\n')
  names = {path.name for path in (tmp_path / 'out').iterdir()}
  assert {'tokenize.json', 'progress.json', 'train.bin', 'train-00001.bin'} <= names
