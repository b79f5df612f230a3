"""No document holds the token that ends documents."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from helpers.tokenizing import documents, made, run
from tokenizers import models, pre_tokenizers

from stability.data import tokens
from stability.data.tokenize import encoders

END = 1
SPECIAL = ['<pad>', '</s>', '<unk>']
LETTERS = [*SPECIAL, *'\u2581abcdefghijklmnopqrstuvwxyz<>/']
NUMBERS = {token: i for i, token in enumerate(LETTERS)}


def saved(model, pre_tokenizer, special=True) -> bytes:
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = pre_tokenizer
  (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(SPECIAL)
  return tokenizer.to_str().encode()


UNIGRAM = models.Unigram([(token, -5.0 * (len(token) == 1)) for token in LETTERS], 2)
SPACE = pre_tokenizers.Sequence([pre_tokenizers.Split(' ', 'isolated')])
TOKENIZERS = {
    't5': saved(UNIGRAM, pre_tokenizers.Metaspace()),
    'bpe': saved(models.BPE(NUMBERS | {' ': len(NUMBERS)}, [], ignore_merges=True), SPACE),
    'no_special_token': saved(models.BPE(NUMBERS | {' ': len(NUMBERS)}, []), SPACE, special=False),
}


@pytest.mark.parametrize('kind', TOKENIZERS)
def test_a_spelled_end_token_is_broken_up(kind):
  encoder = encoders.JsonEncoder(TOKENIZERS[kind], None, '')
  for text in ('a </s> b', '</s></s>', 'x<</s>/s>', 'a </s>', 'plain'):
    (found,) = encoder.encode([text.encode()])
    assert END not in found
    spelled = ''.join(LETTERS[token] if token < len(LETTERS) else ' ' for token in found)
    assert spelled.replace('\u2581', '').replace(' ', '') == text.replace(' ', '')
  packed, lengths = encoders.pack(encoder, [b'a </s> b', b'c'])
  assert list(np.flatnonzero(packed == END)) == [lengths[0], lengths[0] + lengths[1] + 1]


def test_documents_of_a_folder(tmp_path):
  (tmp_path / 'tokenizer.json').write_bytes(TOKENIZERS['t5'])
  for split in tokens.SPLITS:
    rows = [json.dumps({'text': f'{split} </s> {letter}'}) for letter in 'abc']
    (tmp_path / f'{split}.jsonl').write_text('\n'.join(rows))
  out = made(tmp_path / 'out', tmp_path / '*.jsonl', f'--tokenizer={tmp_path / "tokenizer.json"}')
  assert [len(documents(out, split)) for split in tokens.SPLITS] == [3, 3]


def test_a_document_that_needs_the_end_token(tmp_path, capsys):
  unknown = models.WordLevel({'a': 0, '</s>': 1}, unk_token='</s>')
  (tmp_path / 'tokenizer.json').write_bytes(saved(unknown, SPACE))
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(['a b b'] * 9), model_writer=model, vocab_size=9, model_type='bpe',
      hard_vocab_limit=False, user_defined_symbols=['b'], minloglevel=2,
  )  # fmt: skip
  (tmp_path / 'b.model').write_bytes(model.getvalue())
  (tmp_path / 'validation.jsonl').write_text('{"text": "a"}\n')
  (tmp_path / 'train.jsonl').write_text('{"text": "a"}\n{"text": ""}\n{"text": "b"}\n')
  for name, end in ('tokenizer.json', '</s>'), ('b.model', 'b'):
    options = [f'--output={tmp_path / "out"}', f'--tokenizer={tmp_path / name}']
    assert run(f'--input={tmp_path / "*.jsonl"}', *options, f'--end_of_document={end}') == 2
    error = capsys.readouterr().err
    assert f'{tmp_path / "train.jsonl"}, document 3: cannot be encoded without' in error
    assert error.count('\n') == 1
    assert not (tmp_path / 'out').exists()
