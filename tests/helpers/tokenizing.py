"""launch.tokenize run in this process, and the token folders that it makes."""

import json
import pathlib

import numpy as np

from launch import tokenize
from launch.common import app
from stability.data import tokens


def line(text: str) -> str:
  return json.dumps({'text': text, 'timestamp': '2019-04-25T12:57:54Z', 'url': 'https://a.org/b'})


def run(*arguments: str) -> int:
  return app.execute(tokenize.main, tokenize.FLAGS, ['tokenize', *map(str, arguments)])


def made(output: pathlib.Path, given: object, *arguments: str) -> pathlib.Path:
  assert run(f'--input={given}', f'--output={output}', *arguments) == 0
  return output


def documents(folder: pathlib.Path, split: str) -> list[np.ndarray]:
  """The tokens of each document without its end token, which must be there."""
  opened = tokens.open_tokens(folder)
  array, end = np.asarray(getattr(opened, split)), opened.meta['end_of_document']
  assert array[-1] == end
  found = np.split(array, np.flatnonzero(array == end) + 1)[:-1]
  return [document[:-1] for document in found]


def as_text(folder: pathlib.Path, split: str) -> list[str]:
  """The documents of a folder of byte tokens."""
  return [document.tobytes().decode() for document in documents(folder, split)]


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
