"""Encoders of documents: bytes, a learned BPE, a tokenizer.json or a SentencePiece model.

If a document contains the spelling of a special token, it is encoded as ordinary text. The
end-of-document token therefore occurs only at the end of a document. A document that a tokenizer
cannot encode without it is refused.
"""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from stability.data.tokenize import bpe
from stability.errors import BadInput

END_OF_BYTES = 0  # ends a document of bytes or of a learned BPE

# Common names of the end-of-document token, which tokenizer.json does not declare. The first match
# is used.
_END_NAMES = ('</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>')
_BATCH = 32  # documents encoded at once by `pack`


class EndInText(BadInput):
  """A text cannot be encoded without the end-of-document token."""

  def __init__(self, index: int):
    """`index` is the text's, among those to encode."""
    super().__init__('cannot be encoded without the end-of-document token')
    self.index = index


class Encoder(Protocol):
  """A tokenizer."""

  kind: str  # bytes | bpe | tokenizer.json | sentencepiece
  vocabulary_size: int
  end_of_document: int
  file: tuple[str, bytes] | None  # name and content of the file that defines the tokenizer

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    """The tokens of each document, without the end token: [tokens] each; or raises EndInText."""


class ByteEncoder:
  """Bytes as tokens. NUL bytes are removed, since 0 ends a document."""

  kind, vocabulary_size, end_of_document, file = 'bytes', 256, END_OF_BYTES, None

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(text.replace(b'\0', b''), np.uint8) for text in texts]


class JsonEncoder:
  """A tokenizer.json, learned by `learn` or made elsewhere."""

  def __init__(self, content: bytes, end: str | None, where: str):
    """Parses a tokenizer.json; raises BadInput if it cannot.

    Args:
      content: the content of the file.
      end: the end-of-document token; None: the first common name in the vocabulary.
      where: the option that names the file, for error messages.
    """
    try:
      self._tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the class that the library raises
      raise BadInput(f'{where}: not a tokenizer.json: {error}') from error
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._tokenizer.encode_special_tokens = True  # as ordinary text
    vocabulary = self._tokenizer.get_vocab()
    self.file = ('tokenizer.json', content)
    self.vocabulary_size = max(vocabulary.values()) + 1
    self._is_byte_level = all(vocabulary.get(chr(byte)) == byte for byte in range(256))
    self.kind = 'bpe' if self._is_byte_level else 'tokenizer.json'
    if self._is_byte_level and end is None:
      self.end_of_document = END_OF_BYTES
    else:
      self.end_of_document = _find_end(vocabulary, end, where)

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    if self._is_byte_level:  # see bpe.py on Latin-1
      strings = [text.replace(b'\0', b'').decode('latin-1') for text in texts]
    else:
      strings = [text.decode() for text in texts]
    encodings = self._tokenizer.encode_batch_fast(strings, add_special_tokens=False)
    found = [np.array(encoding.ids, np.uint32) for encoding in encodings]
    for index in _with(self.end_of_document, found):
      tokens = self._broken_up(strings[index])
      if tokens is None:
        raise EndInText(index)
      found[index] = np.array(tokens, np.uint32)
    return found

  def _broken_up(self, text: str) -> list[int] | None:
    """The tokens of a text that is cut inside each spelling of the end token.

    None if a character or none becomes that token, such as one that the vocabulary lacks.
    """
    encoding = self._tokenizer.encode(text, add_special_tokens=False)
    ends = [
        span
        for token, span in zip(encoding.ids, encoding.offsets, strict=True)
        if token == self.end_of_document
    ]
    if not ends:
      return encoding.ids
    if any(stop - start < 2 for start, stop in ends):
      return None
    cuts = [0, *(start + 1 for start, _ in ends), len(text)]
    pieces = [self._broken_up(text[start:stop]) for start, stop in itertools.pairwise(cuts)]
    return None if None in pieces else list(itertools.chain(*pieces))


class SentencePieceEncoder:
  """A SentencePiece model."""

  kind = 'sentencepiece'

  def __init__(self, content: bytes, end: str | None, where: str):
    """Parses a model file; raises BadInput if it cannot.

    Args:
      content: the content of the model file.
      end: the end-of-document token; None: the model's own.
      where: the option that names the file, for error messages.
    """
    try:
      import sentencepiece
    except ImportError:
      raise BadInput(
          f"{where}: needs the package sentencepiece: pip install -e '.[hf]'"
      ) from None
    self._processor = sentencepiece.SentencePieceProcessor()
    try:
      self._processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
      raise BadInput(f'{where}: not a SentencePiece model: {error}') from error
    self.file = ('tokenizer.model', content)
    self.vocabulary_size = self._processor.get_piece_size()
    if self.vocabulary_size == 0:
      raise BadInput(f'{where}: not a SentencePiece model')
    pieces = {self._processor.id_to_piece(i): i for i in range(self.vocabulary_size)}
    if end is None and self._processor.eos_id() >= 0:
      self.end_of_document = self._processor.eos_id()
    else:
      self.end_of_document = _find_end(pieces, end, where)

  def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
    encoded = self._processor.encode([text.decode() for text in texts], out_type=int)
    found = [np.array(tokens, np.uint32) for tokens in encoded]
    for index in _with(self.end_of_document, found):
      raise EndInText(index)
    return found


def load(path: Path, end: str | None) -> Encoder:
  """The encoder of a file: SentencePiece for NAME.model, otherwise a tokenizer.json.

  Raises BadInput if the file cannot be read. `end` is the end-of-document token; None: its default.
  """
  where = f'--tokenizer={path}'
  try:
    content = path.read_bytes()
  except OSError as error:
    raise BadInput(
        f'{where}: cannot be read ({error.strerror}); must be bytes, bpe, or the path of a'
        ' tokenizer.json or a SentencePiece .model'
    ) from error
  return (SentencePieceEncoder if path.suffix == '.model' else JsonEncoder)(content, end, where)


def learn(texts: Sequence[bytes], vocabulary_size: int, option: str) -> JsonEncoder:
  """Learns a BPE; raises BadInput, naming `option`, if the texts support only a smaller one."""
  tokenizer = bpe.learn([text.replace(b'\0', b'') for text in texts], vocabulary_size, option)
  return JsonEncoder(tokenizer.to_str(pretty=True).encode(), None, option)


def digest(encoder: Encoder) -> str | None:
  """SHA-256 of the encoder's file, if it has one."""
  return hashlib.sha256(encoder.file[1]).hexdigest() if encoder.file else None


def pack(encoder: Encoder, texts: Sequence[bytes]) -> tuple[np.ndarray, list[int]]:
  """Encodes documents and concatenates them, each followed by the end token.

  Returns:
    The tokens, [tokens], and the length of each document without its end token.
  """
  pieces, lengths = [], []
  for start in range(0, len(texts), _BATCH):
    for tokens in encoder.encode(texts[start : start + _BATCH]):
      pieces += [tokens, np.array([encoder.end_of_document], tokens.dtype)]
      lengths.append(len(tokens))
  return np.concatenate(pieces), lengths


def _with(end: int, encoded: Sequence[np.ndarray]) -> list[int]:
  """The indices of the documents that hold the end token."""
  return [index for index, tokens in enumerate(encoded) if (tokens == end).any()]


def _find_end(vocabulary: dict[str, int], end: str | None, where: str) -> int:
  """The id of the end-of-document token."""
  known = [token for token in _END_NAMES if token in vocabulary]
  if end is None and not known:
    raise BadInput(
        f'{where}: has none of {", ".join(_END_NAMES)}; name its end token with --end_of_document'
    )
  if end is not None and end not in vocabulary:
    raise BadInput(f'--end_of_document={end}: not a token of {where}')
  return vocabulary[known[0] if end is None else end]
