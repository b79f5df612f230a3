"""launch.tokenize: every input and tokenizer, faults, and training on its output."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import types

import numpy as np
import pyarrow as pa
import pytest
import sentencepiece
import tokenizers
from helpers.tokenizing import as_text, contents, documents, line, made, run
from pyarrow import parquet
from tokenizers import models, pre_tokenizers, processors

from launch.common import display
from stability.data import prepare, tokens
from stability.data.tokenize import bpe, packing, readers
from stability.errors import BadInput

ROOT = pathlib.Path(__file__).parents[2]
WORDS = ['the', 'of', 'learning', 'rate', 'größer', 'logits', 'grow', 'until', 'it', '∑', 'breaks']
CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
---
"""


def passage(rng: random.Random) -> str:
  return ' '.join(rng.choices(WORDS, k=rng.randrange(5, 60)))


@pytest.fixture(scope='module')
def texts() -> dict[str, list[list[str]]]:
  """Documents by split and file; some are adversarial, one of validation is also in train."""
  rng = random.Random(0)
  made = {
      'train': [[passage(rng) for _ in range(40)] for _ in range(3)],
      'validation': [[passage(rng) for _ in range(12)] for _ in range(2)],
  }
  made['train'][0][3:3] = ['a </s> b <|endoftext|> c', '', 'nul \0 inside']
  made['train'][2].append(made['validation'][1][5])
  return made


@pytest.fixture(scope='module')
def expected(texts) -> dict[str, list[str]]:
  """The documents that each split must have."""
  splits = {split: [text for file in files for text in file] for split, files in texts.items()}
  held_out = set(splits['validation'])
  splits['train'] = [text for text in splits['train'] if text and text not in held_out]
  return splits


@pytest.fixture(scope='module')
def c4(texts, tmp_path_factory) -> pathlib.Path:
  """A dataset in C4's layout: c4/en/c4-train.00000-of-00003.json.gz and so on."""
  root = tmp_path_factory.mktemp('sets') / 'c4'
  (root / 'en').mkdir(parents=True)
  (root / 'README.md').write_text(CARD)
  for split, files in texts.items():
    for i, file in enumerate(files):
      path = root / 'en' / f'c4-{split}.{i:05}-of-{len(files):05}.json.gz'
      with gzip.open(path, 'wt') as stream:
        stream.writelines(line(text) + '\n' for text in file)
  return root


@pytest.fixture(scope='module')
def as_bytes(c4, tmp_path_factory) -> pathlib.Path:
  return made(tmp_path_factory.mktemp('bytes') / 'out', c4)


@pytest.mark.parametrize('split', tokens.SPLITS)
def test_documents_are_packed(as_bytes, expected, split):
  assert as_text(as_bytes, split) == [text.replace('\0', '') for text in expected[split]]
  assert tokens.open_tokens(as_bytes).meta['documents'][split] == len(expected[split])


def test_no_validation_fraction_is_needed_for_its_own_split(c4, as_bytes, tmp_path):
  out = made(tmp_path / 'out', c4, '--validation_fraction=0')
  assert contents(out)['validation.bin'] == contents(as_bytes)['validation.bin']


def test_meta(as_bytes, expected):
  meta = tokens.open_tokens(as_bytes).meta
  assert (meta['tokenizer'], meta['vocabulary_size'], meta['dtype']) == ('bytes', 256, 'uint8')
  assert meta['left_out'] == 2  # an empty one, and one that is also in validation
  assert meta['sha256'] == {
      split: hashlib.sha256((as_bytes / f'{split}.bin').read_bytes()).hexdigest()
      for split in tokens.SPLITS
  }
  assert meta['settings']['validation'] == 'its own split'
  tokens.verify(as_bytes)
  files = {path.name for path in as_bytes.iterdir()}
  assert files == {'meta.json', 'tokenize.json', 'train.bin', 'validation.bin'}


def write_parquet(root: pathlib.Path, texts) -> pathlib.Path:
  for split, files in texts.items():
    for i, file in enumerate(files):
      (root / split).mkdir(parents=True, exist_ok=True)
      table = pa.table({'url': [''] * len(file), 'text': file})
      parquet.write_table(table, root / split / f'{i:04}.parquet', row_group_size=7)
  return root


def write_lines(root: pathlib.Path, texts) -> pathlib.Path:
  root.mkdir()
  for split, files in texts.items():
    for i, file in enumerate(files):
      (root / f'{split}-{i}.jsonl').write_text(''.join(line(text) + '\n\n' for text in file))
  (root / 'test-0.jsonl').write_text(line('must not be trained on'))
  return root


@pytest.mark.parametrize('kind', ['hf', 'hf_config', 'parquet', 'hf_parquet', 'lines', 'glob'])
def test_input_formats_agree(kind, c4, texts, as_bytes, tmp_path):
  given = {
      'hf': lambda: f'hf:{c4}',
      'hf_config': lambda: f'hf:{c4}:en',
      'parquet': lambda: write_parquet(tmp_path / 'set', texts),
      'hf_parquet': lambda: f'hf:{write_parquet(tmp_path / "set", texts)}',
      'lines': lambda: write_lines(tmp_path / 'set', texts),
      'glob': lambda: f'{c4}/**/c4-*.json.gz',
  }[kind]()
  folder = made(tmp_path / 'out', given)
  assert {path.name for path in folder.iterdir()} == {path.name for path in as_bytes.iterdir()}
  for file in ('train.bin', 'validation.bin'):
    assert (folder / file).read_bytes() == (as_bytes / file).read_bytes()


def test_what_is_read_and_left_out(c4, tmp_path, capsys):
  folder = tmp_path / 'set'
  shutil.copytree(c4, folder)
  for name in ('_SUCCESS.json', 'en/dataset_info.json', 'test.jsonl', '.hidden', 'a.zip'):
    (folder / name).write_text('{}')
  (folder / 'twice.json.gz').symlink_to('en/c4-train.00000-of-00003.json.gz')
  (folder / 'loop').symlink_to(folder)
  (folder / 'zero').symlink_to('/dev/zero')
  os.mkfifo(folder / 'pipe.jsonl')
  (folder / 'gone.jsonl').symlink_to('nowhere')
  out = made(tmp_path / 'out', folder)
  printed = capsys.readouterr().out
  left_out = {
      'hidden': 1, 'neither a file nor a folder': 3, 'linked twice or in a circle': 2,
      'archives': 1, 'descriptions': 1, 'with an underscore': 1, 'test files': 1, 'without rows': 1,
  }  # fmt: skip
  assert tokens.open_tokens(out).meta['files'] == {str(folder): {'read': 5, 'left_out': left_out}}
  assert printed.startswith('input: 5 files; left out: 1 hidden (.hidden), ')
  assert '3 neither a file nor a folder (gone.jsonl, pipe.jsonl, zero)' in printed
  assert '1 without rows (README.md)' in printed and printed.endswith(f' in {folder}\n')


def test_text_and_binary_files(tmp_path, capsys):
  folder = tmp_path / 'set'
  folder.mkdir()
  for i in range(60):
    (folder / f'_{i}.txt').write_text(f'text {i} and more')
  (folder / 'picture').write_bytes(b'PNG\0')
  (folder / 'empty').touch()
  made(tmp_path / 'out', folder, '--validation_fraction=0.2')
  assert 'input: 60 files; left out: 1 empty (empty), 1 binary (picture)' in capsys.readouterr().out


def test_split_by_hash(tmp_path):
  rng = random.Random(1)
  given = [passage(rng) for _ in range(400)]
  given += given[:40]  # equal texts share a split
  (tmp_path / 'set.jsonl').write_text('\n'.join(map(line, given)))
  folder = made(tmp_path / 'out', tmp_path / 'set.jsonl', '--validation_fraction=0.1')

  def is_held_out(text):
    first = hashlib.sha256(text.encode()).digest()[:8]
    return int.from_bytes(first, 'little') / 2**64 < 0.1

  assert as_text(folder, 'validation') == [text for text in given if is_held_out(text)]
  assert as_text(folder, 'train') == [text for text in given if not is_held_out(text)]
  assert 20 < len(as_text(folder, 'validation')) < 80
  assert tokens.open_tokens(folder).meta['settings']['validation_fraction'] == 0.1


def test_text_files(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, 'PIECE_BYTES', 100)
  rng = random.Random(2)
  folder = tmp_path / 'set'
  folder.mkdir()
  short = {f'b{i}.txt': passage(rng)[:40] for i in range(20)}
  long = '\n'.join(passage(rng)[:60] for _ in range(30)) + 'ä∑' * 200  # a long last line
  for name, text in short.items():
    (folder / name).write_text(text)
  (folder / 'a.txt.gz').write_bytes(gzip.compress(long.encode()))
  out = made(tmp_path / 'out', folder, '--validation_fraction=0.3')
  splits = {split: as_text(out, split) for split in tokens.SPLITS}
  found = [text for split in splits.values() for text in split]
  assert splits['validation'] and not set(splits['validation']) & set(splits['train'])
  pieces = [piece for piece in found if piece in long]
  assert sum(map(len, pieces)) >= len(long)
  assert all(len(piece.encode()) <= 100 for piece in pieces)
  assert sum(piece.endswith('\n') for piece in pieces) > 5
  assert set(found) - set(pieces) == set(short.values())
  holders = {split for split, texts in splits.items() if set(texts) & set(pieces)}
  assert len(holders) == 1  # the long file is whole
  meta = tokens.open_tokens(out).meta
  assert meta['settings']['validation'] == 'whole files' and meta['cut_documents'] == []


def wiki(folder):
  """A folder of text whose names tell splits, with a source tree beside."""
  for name, text in {
      'wiki.train.txt': 'to train on\nboth\n',
      'wiki.valid.txt': 'to validate with\n',
      'wiki.test.txt': 'to test with\n',
      'code/train.py': 'train()\n',
      'code/test/test.py': 'test()\n',
      'code/tests.txt': 'tests of code\n',
      'code/requirements/dev.txt': 'pytest\n',
  }.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  return folder


def test_splits_of_text_files(tmp_path, capsys):
  """A test split is skipped and a validation split kept, but nothing of a source tree vanishes."""
  folder = wiki(tmp_path / 'set')
  out = made(tmp_path / 'out', folder)
  assert as_text(out, 'validation') == ['to validate with\n']
  trained = ['tests of code\n', 'pytest\n', 'test()\n', 'train()\n', 'to train on\nboth\n']
  assert sorted(as_text(out, 'train')) == sorted(trained)
  assert tokens.open_tokens(out).meta['settings']['validation'] == 'its own split'
  assert capsys.readouterr().out.splitlines() == [
      f'input: 6 files; left out: 1 test files (wiki.test.txt) in {folder}',
      'text: 1 file named as validation or test text'
      f' ({folder}/wiki.valid.txt): the validation text',
      'text: 1 file named as validation or test text (code/requirements/dev.txt): read like the'
      ' others, without training text beside',
  ]


def test_splits_of_text_files_that_are_named(tmp_path, capsys):
  """A file that is named itself is read; with its training text, a validation split is kept."""
  folder = wiki(tmp_path / 'set')
  given = [f'--input={folder}/wiki.{split}.txt' for split in ('train', 'valid', 'test')]
  assert run(*given, f'--output={tmp_path / "out"}') == 0
  assert as_text(tmp_path / 'out', 'validation') == ['to validate with\n']
  assert as_text(tmp_path / 'out', 'train') == ['to train on\nboth\n', 'to test with\n']
  said = capsys.readouterr().out
  assert said.count('text: ') == 1 and 'wiki.valid.txt): the validation text' in said


def test_few_text_files_are_held_out_whole(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(readers, 'PIECE_BYTES', 100)
  (tmp_path / 'nine').mkdir()
  for i in range(9):
    text = ''.join(f'line {line} of document {i}\n' for line in range(20 + i))
    (tmp_path / f'nine/{i}.txt').write_text(text)
  out = made(tmp_path / 'out', tmp_path / 'nine')
  whole = ''.join(as_text(out, 'validation'))
  assert whole == (tmp_path / 'nine/0.txt').read_text()
  assert 'document 0' not in ''.join(as_text(out, 'train'))
  said = capsys.readouterr().out
  assert 'cut' not in said and 'validation text: 1 of 9 documents, 9.2 % of the text\n' in said


def test_a_large_text_file_is_cut(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(readers, 'PIECE_BYTES', 100)
  rng = random.Random(3)
  (tmp_path / 'set').mkdir()
  book, note = tmp_path / 'set/book', tmp_path / 'set/note'
  book.write_text('\n'.join(passage(rng) for _ in range(100)))
  note.write_text('a note')
  out = made(tmp_path / 'out', tmp_path / 'set', '--validation_fraction=0.2')
  said = f'text: {book} is cut: part of it is training text, part is validation text\n'
  assert capsys.readouterr().out.endswith(said)
  assert tokens.open_tokens(out).meta['cut_documents'] == [str(book)]


def test_rows_beside_text_files(tmp_path):
  """A row that equals a held-out text file is not trained on."""
  for i in range(5):
    (tmp_path / f'{i}.txt').write_text(f'text {i}' * (i + 1))
  rows = ['text 0', *(f'row {i}' for i in range(200))]
  (tmp_path / 'rows.jsonl').write_text('\n'.join(map(line, rows)))
  given = [f'--input={tmp_path / name}' for name in ('*.txt', 'rows.jsonl')]
  assert run(*given, f'--output={tmp_path / "out"}', '--validation_fraction=0.05') == 0
  validation, train = (as_text(tmp_path / 'out', split) for split in ('validation', 'train'))
  assert validation[0] == 'text 0' and 2 < len(validation) < 30
  assert 'text 0' not in train and len(train) + len(validation) == 5 + 200


def test_many_files(tmp_path, monkeypatch):
  """Names are compared with each other a few times each, not each with all others."""
  compared = []

  class Name(str):
    __hash__ = str.__hash__

    def __eq__(self, other):
      compared.append(other)
      return str(self) == other

  def find(path, *options):
    parts, listing = readers_find(path, *options)
    for part in parts:
      part.name = Name(part.name)
    return parts, listing

  for split in ('train', 'valid'):
    (tmp_path / 'set' / split).mkdir(parents=True)
    for i in range(200):
      (tmp_path / f'set/{split}/{i:03}.txt').write_text(f'{split} {i}')
  readers_find = readers.find
  monkeypatch.setattr(readers, 'find', find)
  out = made(tmp_path / 'out', tmp_path / 'set')
  assert len(as_text(out, 'train')) == len(as_text(out, 'validation')) == 200
  assert len(compared) < 10 * 400


def test_max_train_tokens_limits_the_validation_files(tmp_path):
  for i in range(100):
    (tmp_path / f'{i:02}.txt').write_text(f'text number {i:02} ' * 10)
  options = ['--validation_fraction=0.1', '--max_train_tokens=1500']
  out = made(tmp_path / 'out', tmp_path / '*.txt', *options)
  assert len(as_text(out, 'validation')) == 1 and len(as_text(out, 'train')) == 10


# Tokenizers.


@pytest.fixture(scope='module')
def corpus(expected) -> list[str]:
  return expected['train'] + expected['validation']


@pytest.fixture(scope='module')
def json_file(corpus, tmp_path_factory) -> pathlib.Path:
  """A tokenizer.json that ends, truncates and pads, with a gap in its token ids."""
  letters = sorted(set(''.join(corpus)))
  vocabulary = {'<unk>': 0, '</s>': 1} | {letter: 2 + i for i, letter in enumerate(letters)}
  vocabulary['last'] = 70_000
  tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.Split('', 'isolated')
  tokenizer.post_processor = processors.TemplateProcessing(
      single='$A </s>', special_tokens=[('</s>', 1)]
  )
  tokenizer.add_special_tokens(['</s>'])
  tokenizer.enable_truncation(20)
  tokenizer.enable_padding(length=30)
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  tokenizer.save(str(path))
  return path


@pytest.fixture(scope='module')
def piece_file(corpus, tmp_path_factory) -> pathlib.Path:
  """A lossless SentencePiece model."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(corpus),
      model_writer=model,
      vocab_size=350,
      model_type='bpe',
      byte_fallback=True,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      minloglevel=2,
  )
  path = tmp_path_factory.mktemp('tokenizer') / 'spiece.model'
  path.write_bytes(model.getvalue())
  return path


def test_tokenizer_json(c4, json_file, expected, tmp_path):
  out = made(tmp_path / 'out', c4, f'--tokenizer={json_file}')
  numbers = tokenizers.Tokenizer.from_file(str(json_file)).get_vocab()
  letters = {number: token for token, number in numbers.items()}
  for split in tokens.SPLITS:
    found = [''.join(letters[i] for i in document.tolist()) for document in documents(out, split)]
    assert found == expected[split]
  meta = tokens.open_tokens(out).meta
  about = (meta['tokenizer'], meta['vocabulary_size'], meta['end_of_document'], meta['dtype'])
  assert about == ('tokenizer.json', 70_001, 1, 'uint32')
  assert (out / 'tokenizer.json').read_bytes() == json_file.read_bytes()
  assert meta['sha256']['tokenizer'] == hashlib.sha256(json_file.read_bytes()).hexdigest()


def test_sentencepiece(c4, piece_file, expected, tmp_path):
  out = made(tmp_path / 'out', c4, f'--tokenizer={piece_file}')
  processor = sentencepiece.SentencePieceProcessor(model_file=str(piece_file))
  for split in tokens.SPLITS:
    found = [processor.decode(document.tolist()) for document in documents(out, split)]
    assert found == expected[split]
  meta = tokens.open_tokens(out).meta
  about = (meta['tokenizer'], meta['vocabulary_size'], meta['end_of_document'], meta['dtype'])
  assert about == ('sentencepiece', 350, processor.eos_id(), 'uint16')
  assert meta['sha256']['tokenizer'] == hashlib.sha256(piece_file.read_bytes()).hexdigest()
  tokens.verify(out)
  (out / 'tokenizer.model').write_bytes(b'another')
  with pytest.raises(BadInput, match=r'tokenizer\.model: damaged'):
    tokens.verify(out)


@pytest.fixture(scope='module')
def as_bpe(c4, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp('bpe') / 'out'
  return made(out, c4, '--tokenizer=bpe', '--vocabulary_size=300', '--bpe_documents=50')


def test_bpe(as_bpe, expected):
  cleaned = [text.replace('\0', '') for text in expected['train'][:50]]
  learned = bpe.learn([text.encode() for text in cleaned], 300, '--vocabulary_size')
  assert (as_bpe / 'tokenizer.json').read_text() == learned.to_str(pretty=True)
  for split in tokens.SPLITS:
    found = [learned.decode(document.tolist()) for document in documents(as_bpe, split)]
    whole = [text.encode('latin-1').decode() for text in found]
    assert whole == [text.replace('\0', '') for text in expected[split]]
  meta = tokens.open_tokens(as_bpe).meta
  assert (meta['tokenizer'], meta['vocabulary_size'], meta['dtype']) == ('bpe', 300, 'uint16')


def test_bpe_is_reused(c4, as_bpe, tmp_path):
  out = made(tmp_path / 'out', c4, f'--tokenizer={as_bpe / "tokenizer.json"}')
  for file in ('train.bin', 'validation.bin', 'tokenizer.json'):
    assert (out / file).read_bytes() == (as_bpe / file).read_bytes()
  assert tokens.open_tokens(out).meta['tokenizer'] == 'bpe'


# Files.


def test_max_train_tokens(c4, as_bytes, tmp_path):
  whole = documents(as_bytes, 'train')
  enough = sum(len(document) + 1 for document in whole[:30])
  for limit, wanted in ((enough, 30), (enough + 1, 31)):
    out = made(tmp_path / f'{limit}', c4, f'--max_train_tokens={limit}')
    found = documents(out, 'train')
    assert len(found) == tokens.open_tokens(out).meta['documents']['train'] == wanted
    assert all(map(np.array_equal, found, whole))
    assert as_text(out, 'validation') == as_text(as_bytes, 'validation')


def test_shards(c4, as_bytes, tmp_path):
  whole = {split: (as_bytes / f'{split}.bin').read_bytes() for split in tokens.SPLITS}
  out = made(tmp_path / 'out', c4, f'--shard_tokens={len(whole["validation"]) // 2}')
  opened = tokens.open_tokens(out)
  for split in tokens.SPLITS:
    files = sorted(out.glob(f'{split}*.bin'), key=lambda file: file.stem)
    assert len(files) >= 2 and b''.join(file.read_bytes() for file in files) == whole[split]
    assert len({file.stat().st_size for file in files[:-1]}) == 1
    assert np.array_equal(np.asarray(getattr(opened, split)), np.frombuffer(whole[split], np.uint8))
  assert {f'{name}.bin' for name in opened.meta['sha256']} == {p.name for p in out.glob('*.bin')}
  before = tokens.open_tokens(as_bytes).meta
  for name in ('bigram_loss', 'unigram_loss', 'train_tokens', 'validation_tokens'):
    assert opened.meta[name] == before[name]
  tokens.verify(out)
  damaged = out / 'train-00001.bin'
  content = bytearray(damaged.read_bytes())
  content[7] ^= 1
  damaged.write_bytes(content)
  with pytest.raises(BadInput, match=r'train-00001\.bin: damaged'):
    tokens.verify(out)
  damaged.unlink()
  with pytest.raises(BadInput, match=r'train-00001\.bin: no such file'):
    tokens.open_tokens(out)


# Faults.


@pytest.fixture(scope='module')
def forks(tmp_path_factory):
  """A function that sends a request to helpers/forks.py, whose caches are in an empty folder."""
  home = tmp_path_factory.mktemp('home')
  path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
  environment = os.environ | {'PYTHONPATH': path, 'HOME': str(home), 'HF_HOME': str(home / 'hf')}
  environment |= {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'}
  environment.pop('HF_DATASETS_CACHE', None)
  process = subprocess.Popen(
      [sys.executable, ROOT / 'tests' / 'helpers' / 'forks.py'],
      env=environment,
      cwd=home,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
  )

  def ask(*arguments, **limits):
    print(json.dumps({'arguments': arguments} | limits), file=process.stdin, flush=True)
    answer = json.loads(process.stdout.readline())
    assert 'Traceback' not in answer['error'], answer['error']
    assert not list(home.iterdir())
    return answer['code'], answer['error']

  yield ask
  process.stdin.close()
  process.wait()


@pytest.mark.parametrize('kind', ['files', 'hf', 'bpe'])
def test_resume_after_random_kills(kind, c4, forks, tmp_path):
  given = f'hf:{c4}' if kind == 'hf' else str(c4)
  options = ['--shard_tokens=2000', '--max_train_tokens=9000']
  if kind == 'bpe':
    options += ['--tokenizer=bpe', '--vocabulary_size=300', '--bpe_documents=50']

  def arguments(output):
    return [f'--input={given}', f'--output={tmp_path / output}', *options]

  assert forks(*arguments('whole'))[0] == 0
  whole = contents(tmp_path / 'whole')
  assert 'train-00002.bin' in whole
  rng = random.Random(kind)
  killed, output = 0, 0
  while killed < (5 if kind == 'hf' else 14):  # datasets is slow
    # Killed at the n-th file operation or after some time. Even many kills let the process finish,
    # since committed work is not repeated.
    limits = {'event': rng.randrange(2, 50)} if killed % 4 < 3 else {'seconds': rng.random() / 5}
    code, error = forks(*arguments(f'{output}'), **limits)
    assert code in (0, -9), error
    killed += code == -9
    if code == 0:
      assert contents(tmp_path / f'{output}') == whole
      output += 1
  assert forks(*arguments(f'{output}'))[0] == 0
  assert contents(tmp_path / f'{output}') == whole


def test_resume_after_kill_at_every_file_operation(c4, forks, tmp_path):
  """Each kill happens in a new folder."""
  options = [f'--input={c4}', '--shard_tokens=9000', '--max_train_tokens=9000']
  assert forks(*options, f'--output={tmp_path / "whole"}')[0] == 0
  whole = contents(tmp_path / 'whole')
  for event in range(0, 1000, 2):
    output = tmp_path / f'{event}'
    if forks(*options, f'--output={output}', event=event)[0] == 0:
      break
    if (output / 'tokenize.json').exists() and not (output / 'meta.json').exists():
      with pytest.raises(BadInput, match='has not finished it'):
        prepare.vocabulary_size(types.SimpleNamespace(source='text', path=str(output)))
    assert forks(*options, f'--output={output}')[0] == 0
    assert contents(output) == whole, event
    shutil.rmtree(output)
  assert event > 30


def test_resume_after_full_disk(c4, forks, tmp_path):
  options = [f'--input={c4}', f'--output={tmp_path / "out"}']
  code, error = forks(*options, bytes=10_000)
  assert code == 1
  assert error.splitlines()[-1] == (
      f'error: {tmp_path}/out/train.bin: cannot be written: File too large; everything on disk is'
      ' kept, and the same command resumes once this is fixed'
  )
  assert 0 < json.loads((tmp_path / 'out/progress.json').read_text())['train']['tokens'] <= 10_000
  assert forks(*options)[0] == 0
  assert forks(f'--input={c4}', f'--output={tmp_path / "whole"}')[0] == 0
  for name, content in contents(tmp_path / 'whole').items():
    assert (tmp_path / 'out' / name).read_bytes() == content


@pytest.fixture
def stopped(c4, forks, tmp_path) -> pathlib.Path:
  """A folder that was left incomplete by a kill; its input is a copy of the dataset."""
  shutil.copytree(c4, tmp_path / 'c4')
  arguments = [f'--input={tmp_path / "c4"}', f'--output={tmp_path / "out"}']
  for event in range(10, 90, 3):
    assert forks(*arguments, event=event)[0] == -9
    if (tmp_path / 'out/progress.json').exists() and (tmp_path / 'out/train.bin').exists():
      return tmp_path / 'out'
  raise AssertionError('never committed')


@pytest.mark.parametrize(
    'flag, message',
    [
        ('--field=url', "field='text', now 'url'"),
        ('--tokenizer=bpe', "tokenizer='bytes', now 'bpe'"),
        ('--max_train_tokens=7', 'max_train_tokens=0, now 7'),
        ('--shard_tokens=7', 'shard_tokens=536870912, now 7'),
    ],
)
def test_resume_with_other_settings(stopped, flag, message, capsys):
  before = {name: file for name, file in contents(stopped).items() if name[0] != '.'}
  assert run(f'--input={stopped.parent / "c4"}', f'--output={stopped}', flag) == 2
  assert f'was begun with {message}; choose a new folder' in capsys.readouterr().err
  assert contents(stopped) == before


@pytest.mark.parametrize('change', ['gone', 'new', 'changed'])
def test_resume_with_other_input(stopped, change, capsys):
  folder = stopped.parent / 'c4' / 'en'
  name = folder / 'c4-train.00001-of-00003.json.gz'
  message = {'gone': 'is gone', 'new': 'is new', 'changed': 'has changed'}[change]
  if change == 'gone':
    name.unlink()
  elif change == 'new':
    name = folder / 'c4-train.00004.json.gz'
    shutil.copy(folder / 'c4-train.00000-of-00003.json.gz', name)
  else:
    os.utime(name, ns=(0, 0))
  assert run(f'--input={folder.parent}', f'--output={stopped}') == 2
  assert f'other input: {name} {message}' in capsys.readouterr().err


def test_resume_with_changed_output(stopped, capsys):
  content = bytearray((stopped / 'train.bin').read_bytes())
  content[3] ^= 1
  (stopped / 'train.bin').write_bytes(content)
  assert run(f'--input={stopped.parent / "c4"}', f'--output={stopped}') == 2
  assert 'train.bin: changed since it was written' in capsys.readouterr().err


def test_complete_folder_is_left_alone(as_bytes, c4, capsys):
  before = {path: path.stat().st_mtime_ns for path in as_bytes.iterdir()}
  assert run(f'--input={c4}', f'--output={as_bytes}') == 0
  assert 'is already complete' in capsys.readouterr().err
  assert {path: path.stat().st_mtime_ns for path in as_bytes.iterdir()} == before


@pytest.mark.parametrize('pattern', ['', '/**'])
@pytest.mark.parametrize('name', ['rows.jsonl', 'text.txt'])
def test_output_in_the_input(name, pattern, tmp_path, monkeypatch, capsys):
  """The program does not read its own files, when it begins, resumes and is complete."""
  for folder in ('set', 'whole'):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_text('\n'.join(line(f'document {i}') for i in range(60)))
  monkeypatch.setattr(readers, 'PIECE_BYTES', 100)
  options = [f'--input={tmp_path / "set"}{pattern}', '--validation_fraction=0.2']
  with monkeypatch.context() as patched:
    patched.setattr(packing, 'COMMIT_SECONDS', 0)
    patched.setattr(packing.Packer, '_finish', interrupted)
    assert run(*options, f'--output={tmp_path / "set/out"}') == 1
  assert {'progress.json', 'train.bin'} <= contents(tmp_path / 'set/out').keys()
  assert run(*options, f'--output={tmp_path / "set/out"}') == 0
  assert 'input: 1 file; left out: 1 output (out) in ' in capsys.readouterr().out
  assert run(*options, f'--output={tmp_path / "set/out"}') == 0
  assert 'is already complete' in capsys.readouterr().err
  made(tmp_path / 'out', tmp_path / 'whole', '--validation_fraction=0.2')
  for split in tokens.SPLITS:
    assert as_text(tmp_path / 'set/out', split) == as_text(tmp_path / 'out', split)


def interrupted(*_):
  raise OSError('interrupted')


def test_folder_is_locked(c4, tmp_path, capsys):
  with packing.locked(tmp_path / 'out'):
    (tmp_path / 'out' / packing.CACHE).mkdir()
    assert run(f'--input={c4}', f'--output={tmp_path / "out"}') == 2
    assert (tmp_path / 'out' / packing.CACHE).exists()  # it is the first one's
  assert not (tmp_path / 'out').exists()
  assert 'in use by another launch.tokenize' in capsys.readouterr().err


@pytest.mark.parametrize(
    'column, message',
    [
        (pa.array(['a', None]), "row 2: field 'text' must be text, not null"),
        (pa.array([1, 2]), "field 'text' must be text, not int64"),
        (
            pa.array([b'a', b'\xff']).cast(pa.string(), safe=False),
            "row 2: field 'text': bad UTF-8 at byte 0",
        ),
    ],
)
def test_unreadable_parquet(column, message, tmp_path, capsys):
  file = tmp_path / 'a.parquet'
  parquet.write_table(pa.table({'text': column}), file)
  assert run(f'--input={file}', f'--output={tmp_path / "out"}') == 2
  assert f'error: {file}: {message}' in capsys.readouterr().err
  assert run(f'--input={file}', f'--output={tmp_path / "other"}', '--field=body') == 2
  assert f"error: {file}: has no field 'body' (--field); it has 'text'" in capsys.readouterr().err


@pytest.mark.parametrize(
    'rows, message',
    [
        ([{'text': 'a'}, {'text': 'b'}, {'text': None}], 'document 3: field'),
        ([{'body': 'a'}], "document 1: has no field 'text' (--field); it has 'body'"),
        ([{'text': 7}], "document 1: field 'text' must be text, not a number"),
    ],
)
def test_unusable_dataset(rows, message, tmp_path, capsys):
  (tmp_path / 'set').mkdir()
  (tmp_path / 'set' / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  assert run(f'--input=hf:{tmp_path / "set"}', f'--output={tmp_path / "out"}') == 2
  error = capsys.readouterr().err
  assert f'error: --input=hf:{tmp_path / "set"} train, {message}' in error


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], '--input: missing'),
        (['--input=', '--output={out}'], '--input: missing'),
        (['--input={set}', '--input=hf:', '--output={out}'], '--input: missing'),
        (['--input=hf:{set}'], '--output: missing'),
        (['--input=nowhere', '--output={out}'], '--input=nowhere: no such file or folder'),
        (['--input=*.none', '--output={out}'], 'no files to read'),
        (['--input=hf:/nowhere', '--output={out}'], '--input=hf:/nowhere: '),
        (['--input=hf:{set}:fr', '--output={out}'], "BuilderConfig 'fr' not found"),
        (['--input={set}', '--output={set}'], 'holds something else; choose a new folder'),
        (['--input={set}', '--output={set}/README.md'], 'is not a folder'),
        (['--input=hf:{set}:en', '--output={set}/en/x'], 'en/x: lies in --input=hf:{set}:en; name'),
        (['--input={set}', '--output=/proc/x'], '--output=/proc/x: cannot be written: '),
        (['--input={set}', '--input={set}', '--output={out}'], 'is in the input twice'),
        (['--input={set}/en/*validation*', '--output={out}'], 'only validation files'),
        (['--input={set}', '--output={out}', '--tokenizer=gpt2'], '--tokenizer=gpt2: cannot be'),
        (['--input={set}', '--output={out}', '--tokenizer={set}/README.md'], 'not a tokenizer'),
        (['--input={set}', '--output={out}', '--vocabulary_size=300'], 'only with --tokenizer=bpe'),
        (['--input={set}', '--output={out}', '--end_of_document=a'], 'only with --tokenizer=PATH'),
        (['--input={set}', '--output={out}', '--shard_tokens=0'], 'shard_tokens'),
        (
            ['--input={set}/en/*train*', '--output={out}', '--validation_fraction=0'],
            '--validation_fraction=0: must be above 0, as the input has no validation split',
        ),
    ],
)
def test_bad_flags(
    arguments, message, c4, tmp_path, capsys
):
  before = contents(c4 / 'en')
  given = [a.format(set=c4, out=tmp_path / 'out') for a in arguments]
  assert run(*given) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert message.replace('{set}', str(c4)) in error
  assert not (tmp_path / 'out').exists()
  assert contents(c4 / 'en') == before


def test_too_little_text(tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('one document')
  assert run(f'--input={tmp_path / "a.txt"}', f'--output={tmp_path / "1"}') == 2
  assert 'holds 0 tokens of validation text, from 0 documents' in capsys.readouterr().err
  options = [f'--input={tmp_path / "a.txt"}', f'--output={tmp_path / "2"}', '--tokenizer=bpe']
  assert run(*options) == 2
  assert '--vocabulary_size=32000: must be at most' in capsys.readouterr().err


def test_bad_model_and_bad_end_token(json_file, piece_file, c4, tmp_path, capsys):
  (tmp_path / 'a.model').write_bytes(b'not a model')
  for tokenizer, flags, message in (
      (tmp_path / 'a.model', [], 'not a SentencePiece model'),
      (json_file, ['--end_of_document=<end>'], f'<end>: not a token of --tokenizer={json_file}'),
      (piece_file, ['--end_of_document=<end>'], f'<end>: not a token of --tokenizer={piece_file}'),
  ):
    options = [f'--input={c4}', f'--output={tmp_path / "out"}', f'--tokenizer={tokenizer}', *flags]
    assert run(*options) == 2
    assert message in capsys.readouterr().err


def test_progress_lines(c4, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(display, 'PLAIN_SECONDS', 0)
  monkeypatch.setattr(packing, 'BATCH_BYTES', 1_000)
  made(tmp_path / 'out', c4)
  *lines, _ = [text for text in capsys.readouterr().err.splitlines() if 'packing' in text]
  parts = [int(text.split('%')[0]) for text in lines]
  assert parts == sorted(parts) and parts[0] < 40 and parts[-1] > 80
  assert all(word in lines[-1] for word in (' documents', ' tokens/s', 'MB of text', ' left'))


# Training.


@pytest.mark.slow
def test_training_on_a_token_folder(c4, piece_file, tmp_path):
  options = (f'--tokenizer={piece_file}', '--shard_tokens=2000')
  out = made(tmp_path / 'out', c4, *options)
  fields = {
      'data.path': out,
      'data.batch_size': 2,
      'data.sequence_length': 16,
      'data.validation_batches': 1,
      'model.width': 16,
      'model.depth': 1,
      'schedule.steps': 5,
      'schedule.warmup_steps': 1,
      'log.every_steps': 1,
  }
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
  command = [sys.executable, '-m', 'launch.train', f'--config={ROOT}/configs/base.py']
  command += [f'--config.{field}={value}' for field, value in fields.items()]
  command += [f'--workdir={tmp_path / "run"}']
  done = subprocess.run(
      command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  data = json.loads((tmp_path / 'run/sweep.json').read_text())['data']
  assert data == {'path': str(out), **tokens.open_tokens(out).meta}
  assert (data['tokenizer'], data['vocabulary_size']) == ('sentencepiece', 350)
  assert data['sha256']['tokenizer'] == hashlib.sha256(piece_file.read_bytes()).hexdigest()
  result = json.loads((tmp_path / 'run/runs/seed=0/result.json').read_text())
  assert result['status'] == 'done' and result['steps'] == 5
  assert np.log(350) - 1 < result['initial_loss'] < np.log(350) + 2
