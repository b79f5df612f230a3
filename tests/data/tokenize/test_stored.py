"""The tokenizer of a token folder encodes as the folder was made, and decodes what it encodes."""

import numpy as np
import pytest

from configs import base
from stability.data import prepare, tokens
from stability.data.tokenize import encoders
from stability.data.tokenize.stored import StoredTokenizer
from stability.errors import BadInput

TEXT = ('the cat sat on the mat; the bat ate the cat \xe9\n' * 40).encode()


def folder_of(tmp_path, kind):
  (tmp_path / 'text').mkdir()
  for i in range(30):
    (tmp_path / 'text' / f'{i}.txt').write_bytes(TEXT + str(i).encode())
  data = base.get_config().data
  data.path, data.tokenizer, data.vocabulary_size = str(tmp_path / 'text'), kind, 270
  return prepare.prepare(data, tmp_path / 'data', 16)


@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
def test_round_trip(kind, tmp_path):
  folder = folder_of(tmp_path, kind)
  opened = tokens.open_tokens(folder)
  tokenizer = StoredTokenizer(folder, opened.meta)
  first = opened.meta['documents']['train'][0][1]
  stored = opened.train[:first]
  text = tokenizer.decode(stored)
  assert text.startswith(TEXT)
  assert np.array_equal(tokenizer.encode(text), stored)
  packed, lengths = tokenizer.pack([text, b'cat'])
  assert np.array_equal(packed[: first + 1], opened.train[: first + 1])
  assert lengths[0] == first and packed[-1] == opened.meta['end_of_document']
  assert tokenizer.decode(stored[:3]) + tokenizer.decode(stored[3:]) == text


def test_a_foreign_tokenizer(tmp_path):
  learned = encoders.learn([TEXT], 265, 'x')
  (tmp_path / 'tokenizer.json').write_bytes(learned.file[1])
  meta = {'tokenizer': 'tokenizer.json', 'end_of_document': ord('z')}
  tokenizer = StoredTokenizer(tmp_path, meta)
  assert tokenizer.decode(tokenizer.encode(b'the cat')) == b'the cat'


@pytest.mark.parametrize('kind', ['synthetic', 'sentencepiece'])
def test_tokens_that_are_no_text(kind, tmp_path):
  with pytest.raises(BadInput, match=f'its tokenizer is {kind}; must be bytes, bpe'):
    StoredTokenizer(tmp_path, {'tokenizer': kind, 'end_of_document': None})


@pytest.mark.parametrize('kind', ['bytes', 'tokenizer.json'])
def test_no_end_of_document(kind, tmp_path):
  (tmp_path / 'tokenizer.json').write_bytes(encoders.learn([TEXT], 265, 'x').file[1])
  with pytest.raises(BadInput, match=f'{tmp_path}: its end_of_document is null; must be the token'):
    StoredTokenizer(tmp_path, {'tokenizer': kind, 'end_of_document': None})


def test_a_damaged_tokenizer(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{')
  with pytest.raises(BadInput, match=r'tokenizer.json: cannot be read'):
    StoredTokenizer(tmp_path, {'tokenizer': 'bpe', 'end_of_document': 0})
