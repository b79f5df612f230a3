"""Byte-level byte-pair encoding (BPE) learned from text.

Tokens 0 to 255 are the bytes, where 0 ends a document and occurs in no text; tokens from 256 on are
the merges in the order in which they were learned. The `tokenizers` library works on strings, so a
byte is represented by the character of the same code point (Latin-1). Text of any encoding can thus
be tokenized, and decoding restores its bytes exactly.
"""

import sys
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stability.errors import BadInput

# Merges never cross the boundaries between these pieces of text: words and numbers, each with the
# space before it, runs of punctuation, and white space. Bytes from 128 on count as letters, as they
# are part of letters in UTF-8. The last space of a run of white space goes to the word after it.
_WORDS = (
    ' ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[^ \t-\rA-Za-z0-9\x80-\xff]+'
    '|[ \t-\r]+(?![^ \t-\r])|[ \t-\r]+'
)
_LONG_TEXT = 2_000_000  # bytes; learning from more takes so long that a message is printed


def learn(texts: Sequence[bytes], vocabulary_size: int, option: str) -> tokenizers.Tokenizer:
  """A BPE of `vocabulary_size` tokens, a deterministic function of the texts.

  Raises BadInput, naming `option`, if the texts have too few pairs that occur twice.
  """
  size = sum(map(len, texts))
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
  tokenizer.train_from_iterator((text.decode('latin-1') for text in texts), trainer)
  if tokenizer.get_vocab_size() < vocabulary_size:
    raise BadInput(
        f'{option}={vocabulary_size}: must be at most {tokenizer.get_vocab_size()}, the largest'
        ' vocabulary that the training text supports'
    )
  return tokenizer
