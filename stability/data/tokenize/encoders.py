"""Documents -> tokens: bytes, a BPE learned here, a tokenizer.json or a SentencePiece model.

Text is text: a document that spells out an end-of-document mark or another special token is encoded
letter by letter, so that no document holds the mark that ends it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from stability.data.tokenize import bpe
from stability.errors import BadInput

# What tokenizers call the mark, the first that is there; tokenizer.json does not say.
_ENDS = ('</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>')


class Encoder(Protocol):
  """A tokenizer."""

  kind: str  # bytes | bpe | tokenizer.json | sentencepiece
  vocabulary_size: int
  end_of_document: int
  file: tuple[str, bytes] | None  # by which it can be had again

  def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
    """Tokens [tokens] of each, without the mark at its end."""


class Bytes:
  """A token is a byte, and 0 ends a document; bytes 0 of a text are left out."""

  kind, vocabulary_size, end_of_document, file = 'bytes', 256, 0, None

  def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(text.replace(b'\0', b''), np.uint8) for text in documents]


class Json:
  """A tokenizer.json, of bpe.py or any other."""

  def __init__(self, content: bytes, end: str | None, where: str):
    """end: the token after each document; None: found. Raises BadInput, naming `where`."""
    try:
      self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises no other
      raise BadInput(f'{where}: no tokenizer.json: {error}') from error
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._tokenizer.encode_special_tokens = True  # that is, as text
    vocabulary = self._tokenizer.get_vocab()
    self.file = ('tokenizer.json', content)
    self.vocabulary_size = max(vocabulary.values()) + 1
    self._learned = all(vocabulary.get(chr(byte)) == byte for byte in range(256))
    self.kind = 'bpe' if self._learned else 'tokenizer.json'
    if self._learned and end is None:
      self.end_of_document = bpe.END_OF_DOCUMENT
    else:
      self.end_of_document = _end(vocabulary, end, where)

  def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
    if self._learned:  # which knows a byte as the character of its number
      texts = [text.replace(b'\0', b'').decode('latin-1') for text in documents]
    else:
      texts = [text.decode() for text in documents]
    found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(encoding.ids, np.uint32) for encoding in found]


class SentencePiece:
  """A SentencePiece model."""

  kind = 'sentencepiece'

  def __init__(self, content: bytes, end: str | None, where: str):
    """end: the token after each document; None: the model's. Raises BadInput, naming `where`."""
    try:
      import sentencepiece
    except ImportError:
      raise BadInput(
          f"{where}: needs the library sentencepiece: pip install 'stability[hf]'"
      ) from None
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
      raise BadInput(f'{where}: no SentencePiece model: {error}') from error
    self.file = ('tokenizer.model', content)
    self.vocabulary_size = self._processor.get_piece_size()
    if self.vocabulary_size == 0:
      raise BadInput(f'{where}: no SentencePiece model')
    pieces = {self._processor.id_to_piece(i): i for i in range(self.vocabulary_size)}
    if end is None and self._processor.eos_id() >= 0:
      self.end_of_document = self._processor.eos_id()
    else:
      self.end_of_document = _end(pieces, end, where)

  def encode(self, documents: Sequence[bytes]) -> list[np.ndarray]:
    found = self._processor.encode([text.decode() for text in documents], out_type=int)
    return [np.array(tokens, np.uint32) for tokens in found]


def load(path: Path, end: str | None) -> Encoder:
  """The tokenizer of a file: NAME.model of SentencePiece, or else a tokenizer.json."""
  where = f'--tokenizer={path}'
  try:
    content = path.read_bytes()
  except OSError as error:
    raise BadInput(
        f'{where}: cannot be read ({error.strerror}); must be bytes, bpe, or the path of a'
        ' tokenizer.json or a SentencePiece .model'
    ) from error
  return (SentencePiece if path.suffix == '.model' else Json)(content, end, where)


def learn(documents: Iterable[bytes], vocabulary_size: int) -> Encoder:
  """A BPE learned from documents: see bpe.py."""
  texts = [('', text.replace(b'\0', b'')) for text in documents]
  learned = bpe.learn(texts, vocabulary_size, field='--vocabulary_size')
  return Json(learned.to_str(pretty=True).encode(), None, '--tokenizer=bpe')


def digest(encoder: Encoder) -> str | None:
  """SHA-256 of its file; None where it needs none."""
  return hashlib.sha256(encoder.file[1]).hexdigest() if encoder.file else None


def _end(vocabulary: dict[str, int], end: str | None, where: str) -> int:
  known = [token for token in _ENDS if token in vocabulary]
  if end is None and not known:
    raise BadInput(f'{where}: has none of {", ".join(_ENDS)}; name one with --end_of_document')
  if end is not None and end not in vocabulary:
    raise BadInput(f'--end_of_document={end}: is no token of {where}')
  return vocabulary[known[0] if end is None else end]
