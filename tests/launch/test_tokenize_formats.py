"""launch.tokenize: rows and files as other programs write them."""

import bz2
import gzip
import json
import lzma
import pathlib

import numpy as np
import pyarrow as pa
import pytest
from helpers.tokenizing import as_text, line, made, run
from pyarrow import parquet

from stability.data import tokens
from stability.data.tokenize import json_rows, readers
from stability.errors import BadInput


def rows(count=60):
  return [{'text': f'text {i} "and" more', 'url': 'a'} for i in range(count)]


def column(name):
  return [row[name] for row in rows()]


JSON_LINES = ''.join(json.dumps(row) + '\n' for row in rows()).encode()
COLUMNS = {name: dict(enumerate(column(name))) for name in ('url', 'text')}
TABLE = pa.table({'url': column('url'), 'text': column('text')})
ENCODED = TABLE.set_column(1, 'text', TABLE['text'].dictionary_encode())


def arrow(table: pa.Table, new_writer) -> bytes:
  sink = pa.BufferOutputStream()
  with new_writer(sink, table.schema) as writer:
    writer.write_table(table, max_chunksize=7)
  return sink.getvalue().to_pybytes()


def as_parquet(table: pa.Table) -> bytes:
  sink = pa.BufferOutputStream()
  parquet.write_table(table, sink)
  return sink.getvalue().to_pybytes()


WRITTEN = {
    'lines.json': JSON_LINES,
    'crlf.jsonl': JSON_LINES.replace(b'\n', b'\r\n'),
    'mark.jsonl': b'\xef\xbb\xbf' + JSON_LINES,
    'mark.jsonl.gz': gzip.compress(b'\xef\xbb\xbf' + JSON_LINES, mtime=0),
    'a.jsonl.bz2': bz2.compress(JSON_LINES),
    'a.jsonl.xz': lzma.compress(JSON_LINES),
    'streams.jsonl.bz2': bz2.compress(JSON_LINES[:999]) + bz2.compress(JSON_LINES[999:]),
    'padded.jsonl.xz': (
        lzma.compress(JSON_LINES[:99]) + bytes(20_000) + lzma.compress(JSON_LINES[99:]) + bytes(4)
    ),
    'a.jsonl.zst': pa.compress(JSON_LINES, 'zstd', asbytes=True),
    'array.json': json.dumps(rows()).encode(),
    'mark.json': b'\xef\xbb\xbf' + json.dumps(rows(), indent=1).encode(),
    'columns.json': json.dumps(COLUMNS).encode(),
    'index.json': json.dumps(dict(enumerate(rows()))).encode(),
    'list.json': json.dumps({name: column(name) for name in ('url', 'text')}).encode(),
    'split.json': json.dumps(
        {'columns': ['url', 'text'], 'index': [], 'data': [[r['url'], r['text']] for r in rows()]}
    ).encode(),
    'table.json': json.dumps({'schema': {'fields': []}, 'data': rows()}, indent=2).encode(),
    'file.arrow': arrow(TABLE, pa.ipc.new_file),
    'stream.arrow': arrow(TABLE, pa.ipc.new_stream),
    'a.feather': arrow(ENCODED, pa.ipc.new_file),
    'view.arrow': arrow(
        TABLE.set_column(1, 'text', TABLE['text'].cast(pa.string_view())), pa.ipc.new_file
    ),
    'encoded.parquet': as_parquet(ENCODED),
}


@pytest.mark.parametrize('name', WRITTEN)
def test_what_others_write(name, tmp_path):
  path = tmp_path / name
  path.write_bytes(WRITTEN[name])
  file = readers.File(path, None, 'text')
  whole = list(file.documents(0))
  assert [text.decode() for text in whole] == column('text')
  for skip in (1, 7, 33, 60):
    assert list(file.documents(skip)) == whole[skip:]
  assert 0 <= file.bytes_read() <= file.size


def test_lone_row_is_a_document(tmp_path):
  (tmp_path / 'a.json').write_text('{\n "text": "alone",\n "n": {"a": 1}\n}')
  assert list(readers.File(tmp_path / 'a.json', None, 'text').documents(0)) == [b'alone']


@pytest.mark.parametrize('content', [b'[' + b' ' * 99 + b']', b' ' * 99, b'{"a": 1,\n' + b' ' * 99])
def test_json_that_is_too_long(content, tmp_path, monkeypatch):
  monkeypatch.setattr(json_rows, 'MAX_BYTES', 50)
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(BadInput, match=r'a\.json.*50 bytes'):
    list(readers.File(tmp_path / 'a.json', None, 'text').documents(0))


def test_byte_order_mark_of_text(tmp_path):
  (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbfa\r\n')
  assert list(readers.File(tmp_path / 'a.txt', None, 'text').documents(0)) == [b'a\r\n']


@pytest.mark.parametrize('given', ['', '/**/*.jsonl', '/*/*.jsonl'])
def test_links_into_the_cache_of_the_hub(given, tmp_path):
  (tmp_path / 'hub/blobs').mkdir(parents=True)
  (tmp_path / 'hub/snapshots/abc').mkdir(parents=True)
  (tmp_path / 'hub/blobs/1111').write_bytes(JSON_LINES)
  (tmp_path / 'hub/snapshots/abc/validation.jsonl').symlink_to('../../blobs/1111')
  (tmp_path / 'hub/blobs/2222').write_bytes(JSON_LINES)
  (tmp_path / 'hub/snapshots/abc/train.jsonl').symlink_to('../../blobs/2222')
  for folder in ('hub', 'hub/snapshots'):
    if given == '/*/*.jsonl' and folder == 'hub':
      continue
    found, _ = readers.find(f'{tmp_path}/{folder}{given}', 'text')
    assert [(file.path.name, file.split) for file in found] == [
        ('train.jsonl', 'train'),
        ('validation.jsonl', 'validation'),
    ]


@pytest.mark.parametrize('name, split', [('test.jsonl', None), ('.a.jsonl', None), ('_', None)])
def test_named_file_is_read(name, split, tmp_path):
  (tmp_path / name).write_text('{"text": "a"}\n')
  found, _ = readers.find(str(tmp_path / name), 'text')
  assert [(file.path.name, file.split) for file in found] == [(name, split)]


def test_bad_rows_are_skipped_up_to_a_share(tmp_path, capsys):
  given = [json.dumps(row).encode() for row in rows(97)]
  given[10:10] = [b'{"text": "torn', b'{"text": null}']
  given.append(b'{"text": "\xff"}')
  (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(given))
  options = ['--validation_fraction=0.2', '--max_bad_rows_share=0.03']
  out = made(tmp_path / 'out', tmp_path / 'a.jsonl', *options)
  assert '; 3 rows without text were skipped; train on them' in capsys.readouterr().err
  assert tokens.open_tokens(out).meta['bad_rows'] == 3
  assert len(as_text(out, 'train') + as_text(out, 'validation')) == 97
  assert tokens.open_tokens(out).meta['settings']['max_bad_rows_share'] == 0.03
  options[1] = '--max_bad_rows_share=0.029'
  assert run(f'--input={tmp_path / "a.jsonl"}', f'--output={tmp_path / "b"}', *options) == 2
  error = capsys.readouterr().err
  assert '--max_bad_rows_share=0.029: 3 of 100 rows have no text' in error
  assert not (tmp_path / 'b' / 'meta.json').exists()


def test_bad_rows_of_a_dataset_and_of_a_validation_split(tmp_path, monkeypatch):
  (tmp_path / 'set').mkdir()
  for split in ('train', 'validation'):
    lines = [json.dumps({'text': f'{split} {i}'}) for i in range(9)] + ['{"text": null}']
    (tmp_path / 'set' / f'{split}.jsonl').write_text('\n'.join(lines))
  monkeypatch.chdir(tmp_path)
  for given in ('hf:./set', 'set'):
    out = made(tmp_path / given[:2], given, '--max_bad_rows_share=0.1')
    assert tokens.open_tokens(out).meta['bad_rows'] == 2


def write_nanogpt(folder: pathlib.Path) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  arrays = {name: rng.integers(0, 60, 500).astype('<u2') for name in ('train', 'val')}
  folder.mkdir()
  for name, array in arrays.items():
    (folder / f'{name}.bin').write_bytes(array.tobytes())
  return arrays


def test_nanogpt(tmp_path):
  arrays = write_nanogpt(tmp_path / 'gpt')
  options = ['--from=nanogpt', '--vocabulary_size=60', '--end_of_document=59']
  out = made(tmp_path / 'out', tmp_path / 'gpt', *options)
  tokens.verify(out)
  opened = tokens.open_tokens(out)
  assert np.array_equal(opened.train, arrays['train'])
  assert np.array_equal(opened.validation, arrays['val'])
  assert (opened.meta['vocabulary_size'], opened.meta['end_of_document']) == (60, 59)
  assert opened.meta['documents']['train'] == np.count_nonzero(arrays['train'] == 59)


@pytest.mark.parametrize(
    'options, message',
    [
        ([], '--vocabulary_size: missing'),
        (['--vocabulary_size=59'], 'train.bin: holds token 59; --vocabulary_size=59 must be above'),
        (['--vocabulary_size=60', '--end_of_document=60'], '--end_of_document=60: must be below'),
        (['--vocabulary_size=60', '--end_of_document=a'], '--end_of_document=a: must be the'),
        (['--vocabulary_size=60', '--tokenizer=bpe'], '--tokenizer: not with --from=nanogpt'),
        (['--vocabulary_size=60', '--input=x'], '--input: must be one folder'),
    ],
)
def test_nanogpt_is_refused(options, message, tmp_path, capsys):
  write_nanogpt(tmp_path / 'gpt')
  given = [f'--input={tmp_path / "gpt"}', f'--output={tmp_path / "out"}', '--from=nanogpt']
  assert run(*given, *options) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
  (tmp_path / 'gpt/val.bin').write_bytes(b'abc')
  assert run(*given, '--vocabulary_size=60') == 2
  assert 'val.bin: holds 3 bytes' in capsys.readouterr().err
  (tmp_path / 'gpt/val.bin').unlink()
  assert run(*given, '--vocabulary_size=60') == 2
  assert 'val.bin cannot be read' in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()


TWICE = pa.table([column('text'), column('text')], ['text', 'text'])
GOOD = line('good').encode() + b'\n'
ZIPPED = gzip.compress(b''.join(line(f'{i} {i * i}').encode() + b'\n' for i in range(9_000)))


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('a.jsonl', GOOD + b'{"text": "torn', ':2: bad JSON: Unterminated string'),
        ('a.jsonl', GOOD + b'\n["text"]\n', ':3: must be a JSON object, not an array'),
        ('a.json', b'[\n{"text": "a"}\n', ':3: bad JSON'),
        ('a.json', b'[{"text": "a"}, 7]', ' row 2: must be a JSON object, not a number'),
        ('a.json', b'{"text": {"0": "a", "1": null}}', " row 2: field 'text' must be text"),
        ('a.json', b'5', ' row 1: must be a JSON object, not a number'),
        ('a.json', b'{"body": "a"}', " row 1: has no field 'text' (--field); it has 'body'"),
        ('a.jsonl', '{"text": "a"}'.encode('utf-16'), ' is UTF-16; must be converted to UTF-8'),
        ('a.txt', 'a text'.encode('utf-16'), ' is UTF-16; must be converted to UTF-8'),
        ('a.txt', 'a text'.encode('utf-16-le'), ' is binary; supported are UTF-8 text'),
        ('a.txt.gz', gzip.compress(b'a\0', mtime=0), ' is binary; supported are UTF-8 text'),
        ('a.jsonl.zst', pa.compress(GOOD * 99, 'zstd', asbytes=True)[:-9], ' bad zstd after this'),
        ('a.jsonl.bz2', bz2.compress(GOOD)[:-9], ':1: the bzip2 file is truncated'),
        ('a.jsonl.bz2', b'plain', ':0: bad bzip2 after this line'),
        ('a.jsonl.xz', b'plain', ':0: bad xz after this line'),
        ('a.jsonl.bz2', bz2.compress(GOOD) + b'x' + bz2.compress(GOOD)[1:], ':1: bad bzip2 after'),
        ('a.jsonl.xz', lzma.compress(GOOD) + b'x' + lzma.compress(GOOD)[1:], ':1: bad xz after'),
        ('a.jsonl.xz', lzma.compress(GOOD) * 2 + lzma.compress(GOOD)[:9], ':2: the xz file is'),
        ('a.arrow', b'ARROW1 no', ' cannot be read after row 0'),
        ('a.jsonl', b'{"body": "b", "url": 1}', ":1: has no field 'text' (--field); it has 'body'"),
        ('a.jsonl', b'{"text": 7}', ":1: field 'text' must be text, not a number"),
        ('a.jsonl', b'{"text": null}', ":1: field 'text' must be text, not null"),
        ('a.jsonl', GOOD + b'{"text": "\xff"}', ':2: bad UTF-8 at byte 10'),
        ('a.jsonl', GOOD + b'{"text": "\\ud800"}', ":2: field 'text' contains half of a surrogate"),
        ('a.jsonl', b'[' * 100_000, ':1: bad JSON'),
        ('a.jsonl', b'{"text": ' + b'9' * 10_000 + b'}', ':1: bad JSON'),
        ('a.jsonl.gz', ZIPPED[: len(ZIPPED) // 2], ': the gzip file is truncated after this line'),
        ('a.jsonl.gz', b'plain', ':0: bad gzip after this line'),
        ('a.jsonl.gz', b'', 'empty, not a gzip file'),
        ('a.jsonl.gz', ZIPPED[:-6] + b'x' * 6, ':9000: bad gzip after this line: CRC check failed'),
        ('a.jsonl.gz', ZIPPED + b'junk', ':9000: bad gzip after this line'),
        ('a.txt', b'first\nsecond \xe9\n', ':2: bad UTF-8'),
        ('a.parquet', as_parquet(TWICE), " has 2 columns 'text'; must have one"),
        ('a.arrow', arrow(TWICE, pa.ipc.new_file), " has 2 columns 'text'; must have one"),
        ('a.parquet', b'PAR1 no', 'cannot be read after row 0'),
    ],
)
def test_unreadable_input(
    name, content, message, tmp_path, capsys
):
  (tmp_path / name).write_bytes(content)
  assert run(f'--input={tmp_path / name}', f'--output={tmp_path / "out"}') == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {tmp_path / name}:') and message in error
  assert error.count('\n') == 1
