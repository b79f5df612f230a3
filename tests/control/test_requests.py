"""Requests on disk, which anybody may have written."""

import errno
import os
import pathlib

import pytest

from stability.control import requests
from stability.control.actions import Action
from stability.errors import BadInput


def test_written_request(tmp_path):
  path = requests.write_request(tmp_path, Action('skip', steps=3), 'ann', 'bad data')
  assert requests.request_files(tmp_path) == requests.unanswered(tmp_path) == [path]
  asked = requests.read_request(path)
  assert (asked['by'], asked['why']) == ('ann', 'bad data')
  assert requests.parse_request(asked) == Action('skip', steps=3)


def test_only_files_are_requests(tmp_path):
  folder = tmp_path / 'requests'
  for name in ('1.json', '2.json'):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text('{}')
  (folder / 'a.json').mkdir()
  os.mkfifo(folder / 'b.json')
  (folder / 'c.json').symlink_to(tmp_path / 'nothing')
  for name in ('.d.json', 'e.txt'):
    (folder / name).write_text('{}')
  assert [path.name for path in requests.request_files(tmp_path)] == ['1.json', '2.json']


def test_no_folder_of_requests(tmp_path):
  assert requests.request_files(tmp_path) == []
  (tmp_path / 'requests').write_text('a file')
  assert requests.request_files(tmp_path) == []


def test_file_system_that_fails(tmp_path, monkeypatch):
  """A request that it does not show is left out, and all if it does not show the folder."""
  first, second = (requests.write_request(tmp_path, Action('stop'), 'ann', '') for _ in range(2))
  stat = pathlib.Path.stat

  def fail(path, **options):
    if path == first:
      raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
    return stat(path, **options)

  monkeypatch.setattr(pathlib.Path, 'stat', fail)
  assert requests.request_files(tmp_path) == [second]

  def listdir(path):
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

  monkeypatch.setattr(os, 'listdir', listdir)
  assert requests.request_files(tmp_path) == []


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'{"action": 1', 'not a request: Expecting'),
        (b'[]', 'must be a JSON object'),
        (b'{"by": 1}', 'by must be a string'),
        (b'{"a": [[[[1]]]]}', 'too many levels'),
        (b'"' + b'x' * 70_000 + b'"', 'larger than 65,536 bytes'),
    ],
)
def test_malformed_request(tmp_path, content, message):
  path = tmp_path / 'x.json'
  path.write_bytes(content)
  with pytest.raises(BadInput, match=message):
    requests.read_request(path)


def test_request_of_allowed_depth(tmp_path):
  path = tmp_path / 'x.json'
  path.write_bytes(b'{"changes": {"a": [1]}}')
  assert requests.read_request(path) == {'changes': {'a': [1]}}
