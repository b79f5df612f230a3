"""The table of measurements with a datastore."""

import concurrent.futures
import dataclasses
import time

import pytest

from stability.errors import BadInput
from stability.storage import files, retrieval_csv
from stability.storage.retrieval_csv import Row

KNN = Row('a,b=1', 'knn', 64, 1.5, 0.25, 10, 2, 2.5, 2.25, 3.1, 1000, 'train', 'validation',
          0.5, 4.0, 'ff')  # fmt: skip
BM25 = dataclasses.replace(KNN, method='bm25', temperature=None, weight=None, recall=None,
                           stable_rank=None)  # fmt: skip


def test_round_trip_and_replacement(tmp_path):
  assert retrieval_csv.read(tmp_path) == []
  retrieval_csv.add(tmp_path, [KNN, BM25])
  assert retrieval_csv.read(tmp_path) == [KNN, BM25]
  newer = dataclasses.replace(KNN, k=4, digest='00')
  other = dataclasses.replace(KNN, datastore='train+x')
  retrieval_csv.add(tmp_path, [newer, other])
  assert retrieval_csv.read(tmp_path) == [newer, BM25, other]
  header = retrieval_csv.path(tmp_path).read_text().splitlines()[0]
  assert header.startswith(
      'run,method,k,temperature,weight,windows,left_out,loss_without,loss_with,seconds'
  )


def test_a_file_without_the_column_model(tmp_path):
  retrieval_csv.add(tmp_path, [KNN, BM25])
  file = retrieval_csv.path(tmp_path)
  file.write_text(file.read_text().replace(',model\n', '\n').replace(',run\n', '\n'))
  assert retrieval_csv.read(tmp_path) == [KNN, BM25]
  of_parent = dataclasses.replace(KNN, model='parent')
  retrieval_csv.add(tmp_path, [of_parent])  # does not replace that of the run
  assert retrieval_csv.read(tmp_path) == [KNN, BM25, of_parent]


def test_a_file_that_is_not_utf_8(tmp_path):
  retrieval_csv.add(tmp_path, [KNN, BM25])
  file = retrieval_csv.path(tmp_path)
  file.write_bytes(file.read_bytes().replace(b'train', b'tr\xffin'))
  with pytest.raises(BadInput, match=r"retrieval\.csv: cannot be read: 'utf-8' codec"):
    retrieval_csv.read(tmp_path)


def test_additions_at_the_same_time_lose_no_row(tmp_path, monkeypatch):
  rows = [dataclasses.replace(KNN, run=f'run {number}') for number in range(4)]
  write = files.write_atomic

  def slow(path, content):
    time.sleep(0.2)  # in which the others would read the old rows
    write(path, content)

  monkeypatch.setattr(files, 'write_atomic', slow)
  with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
    list(pool.map(lambda row: retrieval_csv.add(tmp_path, [row]), rows))
  assert sorted(row.run for row in retrieval_csv.read(tmp_path)) == [row.run for row in rows]
  assert [path.name for path in (tmp_path / 'report').iterdir()] == ['retrieval.csv']


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        ('bm25', 'bm26', 'method=bm26: must be one of knn, bm25'),
        (',2.5,', ',nan,', 'loss_without=nan: must be a finite number'),
        (',64,', ',many,', 'many'),
        (',ff,run\n', ',ff,run,x\n', 'too many cells'),
        (',ff,run\n', ',ff\n', 'model is missing'),
        (',ff,run\n', ',ff,child\n', 'model=child: must be run or parent'),
        (',digest', ',hash', 'digest is missing'),
    ],
)
def test_damage(tmp_path, old, new, said):
  retrieval_csv.add(tmp_path, [KNN, BM25])
  file = retrieval_csv.path(tmp_path)
  text = file.read_text()
  assert old in text
  file.write_text(text.replace(old, new))
  with pytest.raises(BadInput, match=r'retrieval.csv, line \d: damaged: ') as error:
    retrieval_csv.read(tmp_path)
  assert said in str(error.value)
