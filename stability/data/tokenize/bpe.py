"""A byte-pair encoding learned from text: bytes, and the pairs whose merging shortens it most.

Tokens 0 to 255 are the bytes (0 ends a document, as no text holds it), those from 256 on the merges
in the order learned. The library works on text, so a byte stands there as the character of its
number (Latin-1): any encoding will do, and decoding gives back the same bytes.
"""

import sys
from collections.abc import Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stability.data import sources
from stability.errors import BadInput

END_OF_DOCUMENT = 0

# No merge goes across these: words and numbers with the space before, runs of signs, white space.
# Bytes from 128 on are parts of letters in UTF-8. White space leaves its last space to the word.
_WORDS = (
    ' ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^ \t-\rA-Za-z0-9\x80-\xff]+'
    '|[ \t-\r]+(?![^ \t-\r])|[ \t-\r]+'
)
_LONG_TEXT = 2_000_000  # bytes; learning from more takes a while, which is said
_AT_A_TIME = 32  # documents encoded at once


def learn(
    documents: Sequence[sources.Document],
    vocabulary_size: int,
    field: str = 'config.data.vocabulary_size',
) -> tokenizers.Tokenizer:
  """The encoding of `vocabulary_size` tokens; the same for the same text, without any network.

  Raises BadInput, naming `field`, where the text has too few pairs that occur twice.
  """
  size = sum(len(text) for _, text in documents)
  if size > _LONG_TEXT:
    print(
        f'learning a vocabulary of {vocabulary_size:,} from {size / 1e6:.0f} MB of text ...',
        file=sys.stderr,
        flush=True,
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_WORDS), 'isolated')
  tokenizer.decoder = decoders.Fuse()
  trainer = trainers.BpeTrainer(
      vocab_size=vocabulary_size,
      min_frequency=2,
      initial_alphabet=[chr(byte) for byte in range(256)],
      show_progress=False,
  )
  tokenizer.train_from_iterator(_characters(documents), trainer)
  if tokenizer.get_vocab_size() < vocabulary_size:
    raise BadInput(
        f'{field}={vocabulary_size}: must be at most'
        f' {tokenizer.get_vocab_size()}, as many as can be learned from the training text'
    )
  return tokenizer


def encode(
    tokenizer: tokenizers.Tokenizer, documents: Sequence[sources.Document]
) -> tuple[np.ndarray, list[int]]:
  """Documents packed as tokens, each ended; uint32 [tokens], and the tokens of each without end."""
  pieces, lengths = [], []
  for start in range(0, len(documents), _AT_A_TIME):
    some = documents[start : start + _AT_A_TIME]
    for encoding in tokenizer.encode_batch_fast(list(_characters(some))):
      pieces.append(np.array([*encoding.ids, END_OF_DOCUMENT], np.uint32))
      lengths.append(len(encoding))
  return np.concatenate(pieces), lengths


def _characters(documents: Sequence[sources.Document]) -> Iterator[str]:
  return (text.decode('latin-1') for _, text in documents)
