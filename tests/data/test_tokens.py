import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

from stability.data import batches, checksums, ngrams, prepare, sources, splits, synthetic, tokens
from stability.data.tokenize import shards
from stability.errors import BadInput


def text(path, tokenizer: str = 'bytes', vocabulary_size: int = 4_096) -> types.SimpleNamespace:
  return types.SimpleNamespace(
      source='text',
      path=None if path is None else str(path),
      tokenizer=tokenizer,
      vocabulary_size=vocabulary_size,
      labels='none',
  )


@pytest.fixture
def corpus(tmp_path) -> pathlib.Path:
  folder = tmp_path / 'corpus'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(60):
    (folder / f'{i:02}.txt').write_bytes(rng.integers(97, 123, 100, np.uint8).tobytes() + b'\n')
  return folder


@pytest.fixture
def prepared(corpus, tmp_path) -> pathlib.Path:
  return prepare.prepare(text(corpus), tmp_path / 'data', 16)


def test_folders_of_killed_processes_are_removed(prepared, monkeypatch):
  arrays = {'train': np.arange(9, dtype=np.uint8), 'validation': np.arange(9, dtype=np.uint8)}
  with monkeypatch.context() as patch:
    patch.setattr('shutil.rmtree', lambda *arguments, **options: None)
    patch.setattr(os, 'rename', lambda old, new: None)
    tokens.write(prepared.with_name('0' * 16), {}, arrays)
  directory, others = prepared.parent, ['.notes', f'.{"0" * 16}.{"z" * 32}', 'verified.json']
  (left,) = set(directory.glob('.*'))
  for name in others[:2]:
    (directory / name).mkdir()
  tokens.remove_temporaries(directory)
  assert not left.exists()
  assert {path.name for path in directory.iterdir()} == {prepared.name, *others}
  tokens.remove_temporaries(directory / 'missing')


def edit_meta(folder: pathlib.Path, **changes) -> None:
  meta = json.loads((folder / 'meta.json').read_text())
  (folder / 'meta.json').write_text(json.dumps(meta | changes))


def test_documents_are_ended(corpus, prepared):
  opened = tokens.open_tokens(prepared)
  expected = splits.train_validation_split(sources.read_documents(str(corpus))[0])
  for split, documents in (('train', expected.train), ('validation', expected.validation)):
    array = getattr(opened, split)
    assert array.tobytes().split(b'\0') == [text for _, text in documents] + [b'']
    assert opened.meta[f'{split}_tokens'] == len(array)
    assert opened.meta['documents'][split] == [[name, len(text)] for name, text in documents]
  assert not set(opened.train.tobytes().split(b'\0')) & set(
      opened.validation.tobytes().split(b'\0')[:-1]
  )


def test_meta(prepared):
  opened = tokens.open_tokens(prepared)
  meta = opened.meta
  assert (meta['tokenizer'], meta['vocabulary_size'], meta['end_of_document']) == ('bytes', 256, 0)
  assert (meta['dtype'], opened.train.dtype) == ('uint8', np.uint8)
  assert meta['entropy_rate'] is None
  assert meta['bigram_loss'] == ngrams.bigram_loss(opened.train, opened.validation, 256)
  assert meta['unigram_loss'] == ngrams.unigram_loss(opened.train, opened.validation, 256)
  assert meta['bigram_tokens'] == len(opened.train) - 1


def test_what_is_read_is_told_and_recorded(corpus, tmp_path):
  (corpus / '.hidden').touch()
  told = []
  folder = prepare.prepare(text(corpus), tmp_path / 'data', 16, told.append)
  assert told == [f'text: 60 files; left out: 1 hidden (.hidden) in {corpus}']
  files = {'read': 60, 'left_out': {'hidden': 1}}
  meta = tokens.open_tokens(folder).meta
  assert meta['files'] == {str(corpus): files} and meta['cut_documents'] == []


def test_names_of_splits_are_told(corpus, tmp_path):
  """Unlike launch.tokenize, data.path reads all files of a folder of text."""
  for i, name in enumerate(('a.train.txt', 'a.valid.txt', 'a.test.txt')):
    (corpus / f'0{i}.txt').rename(corpus / name)
  told = []
  folder = prepare.prepare(text(corpus), tmp_path / 'data', 16, told.append)
  assert told[1:] == [
      'text: 2 files named as validation or test text (a.test.txt, a.valid.txt): read like the'
      ' others; launch.tokenize keeps splits'
  ]
  assert tokens.open_tokens(folder).meta['files'] == {str(corpus): {'read': 60, 'left_out': {}}}


def few_documents(folder: pathlib.Path) -> pathlib.Path:
  folder.mkdir()
  for i in range(9):
    lines = (f'line {i * line % 997} of document {i}\n' for line in range(40))
    (folder / f'{i}.txt').write_text(''.join(lines))
  return folder


def test_few_documents_are_not_cut(tmp_path):
  told = []
  config = text(few_documents(tmp_path / 'nine'))
  folder = prepare.prepare(config, tmp_path / 'data', 16, told.append)
  meta = tokens.open_tokens(folder).meta
  named = [name for split in tokens.SPLITS for name, _ in meta['documents'][split]]
  assert sorted(named) == [f'{i}.txt' for i in range(9)] and meta['cut_documents'] == []
  assert len(meta['documents']['validation']) == 1
  assert told[1:] == ['validation text: 1 of 9 documents, 11 % of the text']


def test_cut_of_a_document_is_told_and_recorded(tmp_path):
  (tmp_path / 'book.txt').write_text(''.join(f'{i * i % 997} lines\n' for i in range(500)))
  told = []
  folder = prepare.prepare(text(tmp_path / 'book.txt'), tmp_path / 'data', 16, told.append)
  line = 'text: book.txt is cut: part of it is training text, part is validation text'
  assert told[1:] == [line]
  assert tokens.open_tokens(folder).meta['cut_documents'] == ['book.txt']


@pytest.mark.parametrize('tokenizer', ['bytes', 'bpe'])
def test_data_from_before_documents_were_held_out_whole(tokenizer, tmp_path, monkeypatch):
  """A sweep continues on the split with which it was begun."""
  config = text(few_documents(tmp_path / 'nine'), tokenizer, vocabulary_size=270)
  with monkeypatch.context() as patch:
    patch.setattr(splits, 'train_validation_split', splits.split_of_pieces)
    earlier = prepare.prepare(config, tmp_path / 'data', 16)
  assert prepare.prepare(config, tmp_path / 'data', 16) == earlier
  assert prepare.prepare(config, tmp_path / 'other', 16).name != earlier.name


def test_resume_of_text_that_pieces_cannot_split(tmp_path):
  (tmp_path / 'two').mkdir()
  for name in 'ab':
    (tmp_path / 'two' / name).write_text(f'the same line of {name}\n' * 100)
  folder = prepare.prepare(text(tmp_path / 'two'), tmp_path / 'data', 16)
  assert prepare.prepare(text(tmp_path / 'two'), tmp_path / 'data', 16) == folder


def test_token_files_of_nanogpt(tmp_path):
  for name in ('train.bin', 'val.bin'):
    (tmp_path / name).write_bytes(b'abcd')
  with pytest.raises(BadInput, match=r'but not meta\.json, validation\.bin; .*--from=nanogpt'):
    prepare.prepare(text(tmp_path), tmp_path / 'data', 16)


def test_folder_is_named_after_its_tokens(corpus, prepared, tmp_path):
  assert len(prepared.name) == 16 and int(prepared.name, 16) >= 0
  renamed = corpus.rename(tmp_path / 'renamed')
  assert prepare.prepare(text(renamed), tmp_path / 'data', 16) == prepared
  with (renamed / '00.txt').open('ab') as file:
    file.write(b'more')
  assert prepare.prepare(text(renamed), tmp_path / 'data', 16) != prepared


def test_folder_is_reused(corpus, prepared, monkeypatch):
  monkeypatch.setattr(tokens, 'write', None)  # must not be called
  assert prepare.prepare(text(corpus), prepared.parent, 16) == prepared


@pytest.mark.parametrize('file', ['train.bin', 'validation.bin'])
def test_damaged_files(corpus, prepared, file):
  content = bytearray((prepared / file).read_bytes())
  content[5] ^= 1
  (prepared / file).write_bytes(content)
  with pytest.raises(BadInput, match=f'{file}: damaged'):
    prepare.prepare(text(corpus), prepared.parent, 16)
  with pytest.raises(BadInput, match=f'{file}: damaged'):
    prepare.prepare(text(prepared), prepared.parent, 16)


def test_failed_write_leaves_nothing(corpus, tmp_path, monkeypatch):
  synced = []

  def fail_on_the_second(descriptor):
    synced.append(descriptor)
    if len(synced) == 2:
      raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail_on_the_second)
  with pytest.raises(OSError, match='No space left'):
    prepare.prepare(text(corpus), tmp_path / 'data', 16)
  assert list((tmp_path / 'data').iterdir()) == []


def test_second_of_two_writers(prepared):
  opened = tokens.open_tokens(prepared)
  splits = {'train': opened.train, 'validation': opened.validation}
  inode = prepared.stat().st_ino
  tokens.write(prepared, opened.meta, splits, None)
  assert prepared.stat().st_ino == inode
  names = {path.name for path in prepared.parent.iterdir()}
  assert names == {prepared.name, 'verified.json'}


def test_token_folder_is_used_in_place(prepared, tmp_path):
  assert prepare.prepare(text(prepared), tmp_path / 'elsewhere', 16) == prepared
  assert [path.name for path in (tmp_path / 'elsewhere').iterdir()] == ['verified.json']


def test_unchanged_files_are_verified_once(prepared, tmp_path, monkeypatch):
  read, scan = [], checksums.scan

  def noted(file, dtype):
    read.append(file.name)
    return scan(file, dtype)

  monkeypatch.setattr(checksums, 'scan', noted)
  workdir = tmp_path / 'workdir'
  prepare.prepare(text(prepared), workdir, 16)
  assert read == ['train.bin', 'validation.bin']
  prepare.prepare(text(prepared), workdir, 16)
  assert read == ['train.bin', 'validation.bin']
  prepare.prepare(text(prepared), tmp_path / 'another', 16)
  assert len(read) == 4
  os.utime(prepared / 'train.bin', ns=(1, 1))  # touched, content unchanged
  prepare.prepare(text(prepared), workdir, 16)
  assert read[4:] == ['train.bin']
  shorter = json.loads((prepared / 'meta.json').read_text())['sha256'] | {'validation': 'other'}
  edit_meta(prepared, sha256=shorter)
  with pytest.raises(BadInput, match=r'validation\.bin: damaged'):
    prepare.prepare(text(prepared), workdir, 16)
  (workdir / 'verified.json').write_text('torn')
  with pytest.raises(BadInput, match=r'validation\.bin: damaged'):
    prepare.prepare(text(prepared), workdir, 16)


def test_sharded_array():
  rng = np.random.default_rng(0)
  whole = rng.integers(0, 256, 50, np.uint8)
  joined = shards.ShardedArray(np.split(whole, [20, 40, 41]))
  assert (len(joined), joined.nbytes, joined.dtype) == (50, 50, np.uint8)
  assert np.array_equal(np.asarray(joined), whole)
  for start in range(0, 52, 3):
    for stop in range(0, 52, 3):
      assert np.array_equal(joined[start:stop], whole[start:stop])
  assert np.array_equal(joined[-7:], whole[-7:])
  offsets = rng.integers(0, 50, (4, 9))
  assert np.array_equal(joined[offsets], whole[offsets])
  starts = np.array([0, 19, 33])
  assert np.array_equal(batches.gather(joined, starts, 16), batches.gather(whole, starts, 16))


@pytest.mark.parametrize('name', ['meta.json', 'train.bin', 'validation.bin'])
def test_incomplete_token_folder(prepared, tmp_path, name):
  (prepared / name).unlink()
  with pytest.raises(BadInput, match=f'data.path.*but not {name}'):
    prepare.prepare(text(prepared), tmp_path / 'elsewhere', 16)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'dtype': 'int8'}, 'dtype must be one of uint8, uint16, uint32'),
        ({'train_tokens': 3}, 'train.bin: holds .* meta.json says 3 tokens'),
        ({'vocabulary_size': 122}, 'train.bin: holds token 122.*vocabulary_size=122'),
        ({'vocabulary_size': '256'}, 'missing or of the wrong type: vocabulary_size'),
        ({'sha256': None}, 'missing or of the wrong type: sha256'),
        ({'sha256': {}}, 'train.bin: damaged'),
        ({'vocabulary_size': True}, 'missing or of the wrong type: vocabulary_size'),
        ({'vocabulary_size': 10**400}, r'vocabulary_size must be from 1 to 2\^31 - 1'),
        ({'vocabulary_size': 0}, r'vocabulary_size must be from 1 to 2\^31 - 1'),
        ({'end_of_document': 256}, 'end_of_document=256: must be below vocabulary_size=256'),
        ({'end_of_document': -1}, 'end_of_document=-1: must be'),
        ({'bigram_loss': float('nan')}, 'missing or of the wrong type: bigram_loss'),
        ({'bigram_loss': float('inf')}, 'missing or of the wrong type: bigram_loss'),
    ],
)
def test_inconsistent_token_folder(prepared, tmp_path, changes, message):
  edit_meta(prepared, **changes)
  with pytest.raises(BadInput, match=message):
    prepare.prepare(text(prepared), tmp_path, 16)


@pytest.mark.parametrize('content', ['{"torn', '[]', '{}', '5', '[' * 5_000 + ']' * 5_000])
def test_malformed_meta(prepared, content):
  (prepared / 'meta.json').write_text(content)
  with pytest.raises(BadInput, match=r'meta\.json: '):
    tokens.open_tokens(prepared)


@pytest.mark.parametrize('levels', [100, 900, 100_000])
def test_meta_nested_too_deeply(prepared, levels):
  nested = '{"more": ' + '{"a":' * levels + '1' + '}' * levels + ','
  file = prepared / 'meta.json'
  file.write_text(file.read_text().replace('{', nested, 1))
  with pytest.raises(BadInput, match=r'meta\.json: cannot be read'):
    tokens.open_tokens(prepared)


@pytest.mark.parametrize('content', ['[', '[]', '{}', '3', '{"%s": 3}', '{"%s": {"train.bin": 3}}'])
def test_damaged_record_is_rewritten(prepared, tmp_path, content):
  record = tmp_path / 'verified.json'
  tokens.verify(prepared, record)
  whole = record.read_text()
  record.write_text(content.replace('%s', str(prepared)))
  tokens.verify(prepared, record)
  assert record.read_text() == whole


def test_empty_token_file(prepared):
  (prepared / 'validation.bin').write_bytes(b'')
  edit_meta(prepared, validation_tokens=0)
  with pytest.raises(BadInput, match=r'validation\.bin: holds 0 bytes.*at least one'):
    tokens.open_tokens(prepared)


def test_path_too_long(tmp_path):
  with pytest.raises(BadInput, match=r'data\.path'):
    prepare.prepare(text(tmp_path / ('n' * 300)), tmp_path, 16)


@pytest.mark.parametrize(
    'vocabulary_size, dtype',
    [(256, 'uint8'), (257, 'uint16'), (65_536, 'uint16'), (65_537, 'uint32')],
)
def test_byte_order_and_dtype(prepared, vocabulary_size, dtype):
  assert tokens.smallest_dtype(vocabulary_size) == dtype
  highest = vocabulary_size - 1
  width = np.dtype(dtype).itemsize
  (prepared / 'train.bin').write_bytes(b''.join(v.to_bytes(width, 'little') for v in (1, highest)))
  (prepared / 'validation.bin').write_bytes((2).to_bytes(width, 'little'))
  edit_meta(prepared, dtype=dtype, train_tokens=2, validation_tokens=1)
  opened = tokens.open_tokens(prepared)
  assert opened.train.tolist() == [1, highest] and opened.validation.tolist() == [2]


def test_text_shorter_than_a_sequence(corpus, prepared, tmp_path):
  opened = tokens.open_tokens(prepared)
  shortest = len(opened.validation)
  prepare.prepare(text(corpus), tmp_path / 'enough', shortest - 1)
  message = f'data.path holds {shortest} tokens of validation text.* needs at least {shortest + 1}'
  for source in (corpus, prepared):
    with pytest.raises(BadInput, match=message):
      prepare.prepare(text(source), tmp_path / 'short', shortest)
    with pytest.raises(BadInput, match='tokens of train text'):
      prepare.prepare(text(source), tmp_path / 'short', len(opened.train))
  assert not (tmp_path / 'short').exists()


def test_vocabulary_size_without_preparing(corpus, prepared):
  synthetic_text = types.SimpleNamespace(source='synthetic', path=None, labels='none')
  for config in (text(corpus), text(prepared), text(None), synthetic_text):
    assert prepare.vocabulary_size(config) == (64 if config is synthetic_text else 256)
  assert prepare.vocabulary_size(text(corpus, 'bpe', 300)) == 300
  edit_meta(prepared, vocabulary_size=32_101)
  assert prepare.vocabulary_size(text(prepared)) == 32_101


def test_synthetic_text(tmp_path):
  data = types.SimpleNamespace(source='synthetic', path=None, labels='none')
  folder = prepare.prepare(data, tmp_path, 16)
  opened = tokens.open_tokens(folder)
  meta = opened.meta
  assert (meta['tokenizer'], meta['vocabulary_size']) == ('synthetic', 64)
  assert meta['end_of_document'] is None
  assert meta['entropy_rate'] == synthetic.entropy_rate(synthetic.transition_matrix())
  error = 3 / np.sqrt(len(opened.validation))  # 3 standard deviations of about 1 nat per token
  assert -error < meta['bigram_loss'] - meta['entropy_rate'] < error + 0.01
  assert meta['unigram_loss'] > meta['bigram_loss'] + 1
  assert not np.array_equal(opened.train[: len(opened.validation)], opened.validation)


def dense_losses(train, validation, vocabulary_size) -> tuple[float, float]:
  pairs = np.zeros((vocabulary_size, vocabulary_size))
  np.add.at(pairs, (train[:-1], train[1:]), 1)
  unigram = (pairs.sum(0) + 1) / (pairs.sum() + vocabulary_size)
  bigram = (pairs + unigram) / (pairs.sum(1, keepdims=True) + 1)
  np.testing.assert_allclose(bigram.sum(1), 1)
  before, after = validation[:-1], validation[1:]
  return -np.log(bigram[before, after]).mean(), -np.log(unigram[after]).mean()


@pytest.mark.parametrize('chunk', [1, 7, 2**22])
@pytest.mark.parametrize('vocabulary_size', [3, 40])
def test_ngram_losses_equal_a_dense_table(chunk, vocabulary_size, monkeypatch):
  monkeypatch.setattr(ngrams, '_CHUNK', chunk)
  rng = np.random.default_rng(0)
  train = rng.integers(0, vocabulary_size - 1, 300).astype(np.uint8)  # the last token is absent
  validation = rng.integers(0, vocabulary_size, 150).astype(np.uint8)
  data = train, validation, vocabulary_size
  bigram, unigram = dense_losses(*data)
  assert ngrams.bigram_loss(*data) == pytest.approx(bigram, rel=1e-12)
  assert ngrams.unigram_loss(*data) == pytest.approx(unigram, rel=1e-12)


def test_ngram_losses_of_a_large_vocabulary():
  rng = np.random.default_rng(0)
  train, validation = rng.integers(0, 32_101, (2, 20_000)).astype(np.uint16)
  validation[:2] = train[-2:] = 32_100
  loss = ngrams.bigram_loss(train, validation, 32_101)
  assert 0.95 * np.log(32_101) < loss < 1.1 * np.log(32_101)


def test_long_text_is_subsampled_evenly(monkeypatch):
  monkeypatch.setattr(ngrams, '_CHUNK', 10)
  monkeypatch.setattr(ngrams, '_MAX_TOKENS', 45)
  chunks = list(ngrams._chunks(np.arange(1001)))
  assert [(len(chunk), chunk[0]) for chunk in chunks] == [(11, 0), (11, 250), (11, 500), (11, 750)]


def test_data_modules_import_no_jax():
  code = (
      'import sys; from stability.data import batches, host_batcher, prepare, sources, synthetic;'
      ' sys.exit("jax" in sys.modules)'
  )
  root = pathlib.Path(tokens.__file__).parents[2]
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)
