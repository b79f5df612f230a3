"""The tokenizer of a token folder: encodes more text as its tokens, and decodes tokens to text."""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from stability.data import tokens as tokens_lib
from stability.data.sources import Document
from stability.data.tokenize import encoders
from stability.errors import BadInput


class StoredTokenizer:
  """A tokenizer of bytes, a byte-level BPE or a tokenizer.json."""

  def __init__(self, folder: Path, meta: dict[str, Any]):
    """Loads the tokenizer of a token folder.

    Args:
      folder: the token folder.
      meta: its meta.json.

    Raises:
      BadInput: the tokens are not text, their tokenizer is of another kind, or no token ends a
        document.
    """
    self.kind = meta['tokenizer']
    self.end_of_document: int = meta['end_of_document']
    self._strings: list[bytes] | None = None
    if self.kind not in ('bytes', 'bpe', 'tokenizer.json'):
      raise BadInput(
          f'{folder}: its tokenizer is {self.kind}; must be bytes, bpe or tokenizer.json, whose'
          ' tokens can be turned into text again'
      )
    if self.end_of_document is None:
      raise BadInput(f'{folder}: its end_of_document is null; must be the token after a document')
    if self.kind == 'bytes':
      self._encoder: encoders.Encoder = encoders.ByteEncoder()
      return
    file = folder / 'tokenizer.json'
    try:
      self._tokenizer = tokenizers.Tokenizer.from_buffer(file.read_bytes())
    except Exception as error:  # the class that the library raises
      raise BadInput(f'{file}: cannot be read: {error}') from error
    end = None
    if self.kind == 'bpe':  # see bpe.py on Latin-1
      size = self._tokenizer.get_vocab_size()
      self._strings = [self._tokenizer.id_to_token(i).encode('latin-1') for i in range(size)]
    else:
      end = self._tokenizer.id_to_token(self.end_of_document)
    self._encoder = encoders.JsonEncoder(file.read_bytes(), end, str(file))

  def encode(self, text: bytes) -> np.ndarray:
    """The tokens of a text, without the end of a document: [tokens]."""
    return self._encoder.encode([text])[0]

  def pack(self, texts: list[bytes]) -> tuple[np.ndarray, list[int]]:
    """Documents one after another, each followed by the end token; and their lengths."""
    return encoders.pack(self._encoder, texts)

  def decode(self, tokens: np.ndarray) -> bytes:
    """The text of tokens [tokens]."""
    if self.kind == 'bytes':
      return np.asarray(tokens, np.uint8).tobytes()
    if self._strings is not None:
      return b''.join(self._strings[token] for token in tokens.tolist())
    return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False).encode()


def documents(folder: Path) -> list[Document]:
  """The training documents of a token folder as text; BadInput if it does not list them."""
  opened = tokens_lib.open_tokens(folder)
  listed = opened.meta['documents'].get('train')
  if not isinstance(listed, list):
    raise BadInput(f'{folder}: does not list its training documents; give their text instead')
  tokenizer = StoredTokenizer(folder, opened.meta)
  found, start = [], 0
  for name, length in listed:
    found.append((name, tokenizer.decode(np.asarray(opened.train[start : start + length]))))
    start += length + 1
  return found
