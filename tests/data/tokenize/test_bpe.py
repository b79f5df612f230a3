"""Learning a BPE, and the token files made with it."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import tokenizers

from stability.data import ngrams, prepare, sources, splits, tokens
from stability.data.tokenize import bpe, encoders
from stability.errors import BadInput

ROOT = pathlib.Path(bpe.__file__).parents[2]
WORDS = ['the', 'of', 'learning', 'rate', 'attention', 'logits', 'grow', 'until', 'it', 'breaks']


@pytest.fixture(scope='module')
def documents() -> list[sources.Document]:
  """English of a few words, every byte except NUL, and UTF-8."""
  rng = np.random.default_rng(0)
  written = [
      (f'{i:02}.txt', '\n  '.join(' '.join(rng.choice(WORDS, 6)) for _ in range(20)).encode())
      for i in range(40)
  ]
  return [*written, ('bytes', bytes(range(1, 256)) * 2), ('utf-8', 'grün ∑ größer '.encode() * 4)]


@pytest.fixture(scope='module')
def corpus(documents, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('corpus')
  for name, text in documents:
    (folder / name).write_bytes(text)
  return folder


def learn(documents: list[sources.Document], vocabulary_size: int) -> tokenizers.Tokenizer:
  return bpe.learn([text for _, text in documents], vocabulary_size, '--option')


def config(path, vocabulary_size: int = 400) -> types.SimpleNamespace:
  return types.SimpleNamespace(
      source='text',
      path=str(path),
      tokenizer='bpe',
      vocabulary_size=vocabulary_size,
      labels='none',
  )


@pytest.fixture(scope='module')
def prepared(corpus, tmp_path_factory) -> pathlib.Path:
  return prepare.prepare(config(corpus), tmp_path_factory.mktemp('data'), 16)


def test_bytes_come_before_merges(documents):
  vocabulary = learn(documents, 300).get_vocab()
  assert sorted(vocabulary.values()) == list(range(300))
  assert all(vocabulary[chr(byte)] == byte for byte in range(256))
  assert all(len(token) > 1 for token, number in vocabulary.items() if number >= 256)


def decoded(tokenizer: tokenizers.Tokenizer, array: np.ndarray) -> list[bytes]:
  """The documents of an array, each of which must be ended."""
  ends = np.flatnonzero(array == encoders.END_OF_BYTES)
  assert ends[-1] == len(array) - 1
  starts = [0, *(ends[:-1] + 1)]
  return [
      tokenizer.decode(array[start:end].tolist()).encode('latin-1')
      for start, end in zip(starts, ends, strict=True)
  ]


def test_round_trip(documents, prepared):
  """Documents of any bytes are decoded with the tokenizer.json of their folder."""
  tokenizer = tokenizers.Tokenizer.from_file(str(prepared / 'tokenizer.json'))
  opened = tokens.open_tokens(prepared)
  expected = splits.train_validation_split(sorted(documents))
  for split in tokens.SPLITS:
    texts = getattr(expected, split)
    array = getattr(opened, split)
    assert decoded(tokenizer, array) == [text for _, text in texts]
    assert len(array) < 0.6 * sum(len(text) for _, text in texts)
    lengths = np.diff(np.flatnonzero(array == 0), prepend=-1) - 1
    named = [[name, length] for (name, _), length in zip(texts, lengths, strict=True)]
    assert opened.meta['documents'][split] == named


def test_meta(prepared):
  opened = tokens.open_tokens(prepared)
  meta = opened.meta
  assert (meta['tokenizer'], meta['vocabulary_size'], meta['end_of_document']) == ('bpe', 400, 0)
  assert (meta['dtype'], opened.train.dtype) == ('uint16', np.uint16)
  assert meta['bigram_loss'] == ngrams.bigram_loss(opened.train, opened.validation, 400)
  tokens.verify(prepared)


def test_validation_text_is_not_learned_from(documents, prepared):
  split = splits.train_validation_split(sorted(documents))
  written = (prepared / 'tokenizer.json').read_text()
  assert written == learn(split.train, 400).to_str(pretty=True)
  assert written != learn([*split.train, *split.validation], 400).to_str(pretty=True)


def test_learning_is_deterministic(corpus, prepared, tmp_path):
  """The library uses threads and randomly ordered hash maps."""
  code = (
      'import sys, pathlib, types; from stability.data import prepare;'
      "c = types.SimpleNamespace(source='text', path=sys.argv[1], labels='none', tokenizer='bpe',"
      ' vocabulary_size=400); prepare.prepare(c, pathlib.Path(sys.argv[2]), 16)'
  )
  environment = os.environ | {'TOKENIZERS_PARALLELISM': 'true'}
  command = [sys.executable, '-c', code, str(corpus), str(tmp_path)]
  subprocess.run(command, check=True, cwd=ROOT, env=environment)
  for file in ('train.bin', 'validation.bin', 'tokenizer.json', 'meta.json'):
    mine, other = (prepared / file).read_bytes(), (tmp_path / prepared.name / file).read_bytes()
    assert hashlib.sha256(mine).digest() == hashlib.sha256(other).digest(), file


def test_vocabulary_is_learned_once(corpus, prepared, monkeypatch):
  monkeypatch.setattr(bpe, 'learn', None)  # must not be called
  assert prepare.prepare(config(corpus), prepared.parent, 16) == prepared


def test_folder_depends_on_tokenizer_and_vocabulary(corpus, prepared, tmp_path):
  other = prepare.prepare(config(corpus, 300), tmp_path, 16)
  data = types.SimpleNamespace(
      source='text', path=str(corpus), tokenizer='bytes', labels='none'
  )
  as_bytes = prepare.prepare(data, tmp_path, 16)
  assert len({prepared.name, other.name, as_bytes.name}) == 3
  assert json.loads((other / 'meta.json').read_text())['vocabulary_size'] == 300


def test_vocabulary_too_large(corpus, tmp_path):
  with pytest.raises(
      BadInput, match=r'vocabulary_size=9000: must be at most \d+, the largest'
  ) as error:
    prepare.prepare(config(corpus, 9_000), tmp_path / 'data', 16)
  most = int(str(error.value).split('at most ')[1].split(',')[0])
  assert not (tmp_path / 'data').exists()
  assert prepare.prepare(config(corpus, most), tmp_path / 'data', 16).exists()


def test_text_shorter_than_a_sequence(corpus, prepared, tmp_path):
  length = len(tokens.open_tokens(prepared).validation)
  for directory in (tmp_path / 'data', prepared.parent):  # new, existing
    with pytest.raises(BadInput, match=f'holds {length} tokens of validation text'):
      prepare.prepare(config(corpus), directory, length)
  assert not (tmp_path / 'data').exists()


def test_message_for_long_text(documents, monkeypatch, capsys):
  learn(documents, 300)
  assert capsys.readouterr().err == ''
  monkeypatch.setattr(bpe, '_LONG_TEXT', 1_000)
  learn(documents, 300)
  assert 'learning a vocabulary of 300 from 0 MB' in capsys.readouterr().err
