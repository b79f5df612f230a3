import gzip
import math

import numpy as np
import pandas as pd
import pytest

from stability.errors import BadInput
from stability.importing import tables


def read(tmp_path, content, name='runs.csv'):
  path = tmp_path / name
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return tables.read(path)


def test_byte_order_mark_and_mixed_line_ends(tmp_path):
  table = read(tmp_path, b'\xef\xbb\xbflr,loss\r\n1,2\n\n3,4\r\n')
  assert table.columns == {'lr': ['1', '3'], 'loss': ['2', '4']}
  assert table.where(1).endswith('runs.csv, line 4')


@pytest.mark.parametrize('separator', ['\t', ';'])
def test_other_separators(tmp_path, separator):
  assert read(tmp_path, f'a{separator}b\n1{separator}2\n').columns == {'a': ['1'], 'b': ['2']}


def test_index_of_a_data_frame_is_dropped(tmp_path):
  assert read(tmp_path, ',a\n0,1\n').columns == {'a': ['1']}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'contains no rows'),
        ('a,b\n', 'contains no rows'),
        ('0.1,2\n0.2,3\n', "has no header: '0.1'"),
        ('a,a\n1,2\n', "more than one column 'a'"),
        ('a,b\n1,2\n1\n', 'line 3: has 1 cells, the header 2'),
        ('a,b\n"1,2\n', 'neither CSV nor JSON'),
        ('[{"a": 1}, 2]', 'item 2: is not a JSON object'),
        ('[{"a": 1}', 'is not JSON'),
        ('[]', 'contains no rows'),
        ('{"a": 1}\n{"a"\n{"a": 2}\n', 'line 2: is not JSON'),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', "line 2: has more than one 'a'"),
        ('{"b": {"a": 1, "a": 2}}\n', "line 1: has more than one 'a'"),
        ('{"b": {"a": 1}, "b.a": 2}\n', r"line 1: has more than one 'b\.a'"),
        ('[{"b": 1}, {"a": 1, "a": 2}]', "runs.csv: has more than one 'a'"),
        ('[{"b": {"a": 1}, "b.a": 2}]', r"item 1: has more than one 'b\.a'"),
        (b'a\n\xff\n', 'neither CSV nor JSON'),
    ],
)
def test_unreadable(tmp_path, content, message):
  with pytest.raises(BadInput, match=message):
    read(tmp_path, content)


def test_json_lines(tmp_path):
  table = read(tmp_path, '{"a": 1, "b": {"c": "x"}}\n{"a": NaN, "d": null}\n{"a": 3, "b"')
  assert list(table.columns) == ['a', 'b.c', 'd']
  assert table.columns['b.c'] == ['x', '']
  np.testing.assert_array_equal(table.numbers('a'), [1, math.nan])


def test_json_array(tmp_path):
  table = read(tmp_path, '[\n {"a": 1, "b": {"c": 2}},\n {"a": 3}\n]', 'runs.json')
  assert table.columns == {'a': [1, 3], 'b.c': [2, '']} and table.where(1).endswith(', item 2')


def test_compressed(tmp_path):
  assert read(tmp_path, gzip.compress(b'a\n1\n'), 'runs.csv.gz').columns == {'a': ['1']}
  for damaged in (b'a\n1\n', gzip.compress(b'a\n1\n' * 99)[:-9]):
    with pytest.raises(BadInput, match=r'runs\.csv\.gz: is damaged or no gzip file'):
      read(tmp_path, damaged, 'runs.csv.gz')


@pytest.mark.parametrize(
    'text', ['', 'nan', 'NaN', 'NAN', 'null', 'None', 'N/A', '#N/A', '-nan(ind)', '<NA>', ' nan ']
)
def test_spellings_of_nan(tmp_path, text):
  table = read(tmp_path, f'a,b\n1,x\n{text},x\n')
  np.testing.assert_array_equal(table.numbers('a'), [1, math.nan])


@pytest.mark.parametrize('text', ['"1,000"', '"2,31"', '1.000.000', '1 000', '5%', 'x'])
def test_no_number(tmp_path, text):
  table = read(tmp_path, f'a\n1\n{text}\n')
  with pytest.raises(BadInput, match=r'runs.csv, line 3: a=.*must be a number'):
    table.numbers('a')


@pytest.mark.parametrize('rows', ['{"a": 1}\n{"a": true}\n', '[{"a": 1}, {"a": true}]'])
def test_booleans_are_no_numbers(tmp_path, rows):
  table = read(tmp_path, rows)
  with pytest.raises(BadInput, match='2: a=True: must be a number'):
    table.numbers('a')
  assert read(tmp_path, '{"a": false}\n').is_text('a')


def test_text_is_not_meant_as_a_number(tmp_path):
  table = read(tmp_path, 'a,b,c,d\n,"1,000",x,"1,5e-3"\ntrain,,2,\n')
  assert [table.is_text(column) for column in 'abcd'] == [True, False, True, False]


def test_chunks_give_the_same_rows(tmp_path, monkeypatch):
  monkeypatch.setattr(tables, 'CHUNK', 2)
  table = read(tmp_path, '{"a": 1}\n{"a": 2}\n{"b": 3}\n')
  assert table.columns == {'a': [1, 2, ''], 'b': ['', '', 3]}


def test_frame():
  table = tables.of_frame(pd.DataFrame({'seed': [1, None], 'on': [True, False]}), 'runs')
  assert table.texts('seed') == ['1', ''] and table.texts('on') == ['True', 'False']
  assert table.where(1) == 'runs, row 1'


def test_named_levels_of_an_index_are_columns():
  frame = pd.DataFrame({'run': ['a', 'b'], 'step': [1, 2], 'loss': [3.0, 2.0]})
  for index in ('run', ['run', 'step']):
    assert tables.of_frame(frame.set_index(index), 'curves').columns == {
        'run': ['a', 'b'], 'step': [1, 2], 'loss': [3.0, 2.0]
    }
  kept = tables.of_frame(frame.set_index('run', drop=False), 'runs')
  assert list(kept.columns) == ['run', 'step', 'loss']
