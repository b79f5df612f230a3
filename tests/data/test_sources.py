import os
import pathlib
import sys
import sysconfig

import pytest

from stability.data import sources
from stability.errors import BadInput


def write(root: pathlib.Path, files: dict[str, bytes]) -> str:
  for name, content in files.items():
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
  return str(root)


def read(path: str) -> list[sources.Document]:
  documents, _ = sources.read_documents(path)
  return documents


def test_folder_of_text_files(tmp_path):
  path = write(tmp_path, {'b.txt': b'two', 'a/z.txt': b'one', 'c/.x/y': b'no', '.d': b'no'})
  write(tmp_path, {'binary': b'a\0b', 'empty': b'', 'only_nul_far': b'x' * 8192 + b'\0y'})
  assert read(path) == [
      ('a/z.txt', b'one'),
      ('b.txt', b'two'),
      ('only_nul_far', b'x' * 8192 + b'y'),
  ]


def test_any_encoding_is_kept(tmp_path):
  file = tmp_path / 'latin.txt'
  file.write_bytes(b'na\xefve\r\n')
  assert read(str(file)) == [('latin.txt', b'na\xefve\r\n')]


@pytest.mark.skipif(sys.platform != 'linux', reason='file names elsewhere are Unicode')
def test_file_name_that_is_not_utf8(tmp_path):
  (tmp_path / os.fsdecode(b'na\xefve')).write_bytes(b'x')
  [(name, _)] = read(str(tmp_path))
  assert name.encode() == 'na\ufffdve'.encode()


def test_what_is_left_out(tmp_path):
  path = write(tmp_path / 'set', {'a/text': b'text', '.git/x': b'x', 'x.zip': b'PK', 'b': b'a\0'})
  write(tmp_path / 'set', {'empty': b'', 'marked': b'\xef\xbb\xbf', '__init__.py': b'pass'})
  documents, found = sources.read_documents(path)
  assert [name for name, _ in documents] == ['__init__.py', 'a/text']
  assert found.to_json() == {
      'read': 2, 'left_out': {'hidden': 1, 'archives': 1, 'binary': 1, 'empty': 2}
  }  # fmt: skip
  left_out = '1 hidden (.git), 1 archives (x.zip), 1 binary (b), 2 empty (empty, marked)'
  assert str(found) == f'2 files; left out: {left_out}'


def test_byte_order_mark_is_passed_over(tmp_path):
  (tmp_path / 'text').write_bytes(b'\xef\xbb\xbftext')
  assert read(str(tmp_path / 'text')) == [('text', b'text')]


@pytest.mark.parametrize(
    'name', ['a.jsonl', 'a.json', 'a.parquet', 'a.arrow', 'a.txt.gz', 'a.jsonl.zst', 'A.JSON']
)
def test_formats_of_tokenize_are_refused(name, tmp_path):
  path = write(tmp_path / 'set', {'README.md': b'text', f'data/{name}': b'{}', 'z.json': b'{}'})
  with pytest.raises(BadInput, match=rf'{name} and 1 more: must be plain text; .*launch\.tokenize'):
    sources.read_documents(path)
  with pytest.raises(BadInput, match=rf'{name}: must be plain text; .*launch\.tokenize'):
    sources.read_documents(f'{path}/data/{name}')


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-16-be', 'utf-16-le'])
def test_utf_16_is_refused(encoding, tmp_path):
  mark = '' if encoding == 'utf-16' else '\ufeff'
  path = write(tmp_path, {'a': b'text', 'b': f'{mark}text'.encode(encoding)})
  with pytest.raises(BadInput, match='b: is UTF-16; must be converted to UTF-8'):
    sources.read_documents(path)


def test_device_is_refused():
  with pytest.raises(BadInput, match='neither a file nor a folder'):
    sources.read_documents('/dev/zero')


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('missing', None, 'no such file or folder'),
        ('empty', b'', 'holds no text'),
        ('binary', b'\x7fELF\0', 'holds no text'),
        ('n' * 300, None, 'cannot be read|no such file'),  # the latter since Python 3.14
        ('line\nbreak', None, 'no such file or folder'),
    ],
)
def test_path_without_text(tmp_path, name, content, message):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(BadInput, match=f'config.data.path=.*{message}') as error:
    read(str(tmp_path / name))
  assert '\n' not in str(error.value)


def test_folder_without_text(tmp_path):
  with pytest.raises(BadInput, match=r'data\.path.*holds no text'):
    read(write(tmp_path, {'.hidden': b'x', 'binary': b'\0'}))


def test_unreadable_file(tmp_path, monkeypatch):
  def refuse(self, *args):
    raise PermissionError(13, 'Permission denied', str(self))

  path = write(tmp_path, {'text': b'text'})
  monkeypatch.setattr(pathlib.Path, 'open', refuse)
  with pytest.raises(BadInput, match=r'data\.path.*cannot be read.*Permission denied.*text'):
    read(path)


def test_unreadable_folder(tmp_path, monkeypatch):
  scandir = os.scandir

  def refuse(folder):
    if str(folder).endswith('closed'):
      raise PermissionError(13, 'Permission denied', str(folder))
    return scandir(folder)

  path = write(tmp_path, {'text': b'text', 'closed/text': b'text'})
  monkeypatch.setattr(os, 'scandir', refuse)
  with pytest.raises(BadInput, match=r'data\.path.*cannot be read.*Permission denied.*closed'):
    read(path)


def test_embedded_text_exclusions(tmp_path, monkeypatch):
  kept = ['abc.py', 'json/decoder.py', 'testing/x.py', 'lib2to3/main.py']
  left_out = [
      'test/a.py', 'unittest/test/a.py', 'lib2to3/tests/a.py', 'idlelib/idle_test/a.py',
      'site-packages/p/a.py', 'dist-packages/a.py', 'encodings/cp437.py', 'pydoc_data/topics.py',
      'json/__pycache__/a.pyc', 'LICENSE.txt', '_sysconfigdata__linux.py', 'html/entities.py',
      'config-3.11-linux/python-config.py', 'stringprep.py',
  ]  # fmt: skip
  write(tmp_path, {name: b'pass' for name in kept + left_out})
  monkeypatch.setattr(sysconfig, 'get_path', {'stdlib': str(tmp_path)}.get)
  assert [name for name, _ in read(None)] == sorted(kept)


def test_embedded_text_missing(tmp_path, monkeypatch):
  monkeypatch.setattr(sysconfig, 'get_path', {'stdlib': str(tmp_path / 'gone')}.get)
  with pytest.raises(BadInput, match=r'data\.path.*embedded text.*no such'):
    read(None)


def test_embedded_text():
  documents = read(None)
  assert sum(len(text) for _, text in documents) > 2**21
  assert len(documents) > 100
