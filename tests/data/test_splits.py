import random

import pytest

from stability.data import splits
from stability.errors import BadInput


def lines(count: int, seed: int) -> bytes:
  rng = random.Random(seed)
  return b''.join(b'%d\n' % rng.randrange(10**9) for _ in range(count))


def texts(documents):
  return [text for _, text in documents]


def split(documents):
  found = splits.train_validation_split(documents)
  return found.train, found.validation


def test_split_order_and_share():
  documents = [(f'{i:03}', lines(20 + i % 7, seed=i)) for i in range(400)]
  train, validation = split(documents)
  assert sorted(train + validation) == documents
  assert train == sorted(train) and validation == sorted(validation)
  total = sum(map(len, texts(documents)))
  assert 0.05 * total <= sum(map(len, texts(validation))) < 0.06 * total


def test_split_depends_on_texts_alone():
  documents = [(f'{i}', lines(30, seed=i)) for i in range(100)]
  other = [(f'renamed{name}', text) for name, text in documents]
  random.Random(0).shuffle(other)
  _, validation = split(documents)
  _, other_validation = split(other)
  assert set(texts(validation)) == set(texts(other_validation))


def test_equal_documents_share_a_split():
  documents = [(f'{i}-{copy}', lines(30, seed=i)) for i in range(100) for copy in range(3)]
  train, validation = split(documents)
  assert len(validation) % 3 == 0 and len(train) + len(validation) == 300
  assert not set(texts(train)) & set(texts(validation))


@pytest.mark.parametrize(
    'lengths, held_out',
    [
        ([40] * 9, [40]),  # each is longer than the validation share, and than twice that
        ([41, 40, 42], [40]),
        ([30, 20], [20]),
        ([500, 1, 300], [1, 300]),
        ([890, 55, 55], [55]),
        ([*[40] * 8, 1], [1, 40]),
    ],
)
def test_documents_are_held_out_whole(lengths, held_out):
  """lengths: lines of each document."""
  documents = [(f'{i}.txt', lines(count, seed=i)) for i, count in enumerate(lengths)]
  found = splits.train_validation_split(documents)
  assert sorted(found.train + found.validation) == documents
  assert sorted(text.count(b'\n') for text in texts(found.validation)) == held_out
  assert found.cut == []
  said = [f'validation text: {len(held_out)} of {len(lengths)} documents']
  assert [line.rpartition(',')[0] for line in found.lines()] == (said if held_out != [55] else [])


@pytest.mark.parametrize(
    'documents',
    [
        [('book', lines(2000, seed=0))],
        [('book', lines(2000, seed=0)), *((f'{i}', lines(9, seed=i)) for i in range(5))],
        [('one line', lines(2000, seed=0).replace(b'\n', b' '))],
        [('book', lines(2000, seed=0)), ('copy', lines(2000, seed=0))],
    ],
)
def test_document_that_holds_nearly_all_is_cut(documents):
  found = splits.train_validation_split(documents)
  train, validation = found.train, found.validation
  total = sum(map(len, texts(documents)))
  assert 0.05 * total <= sum(map(len, texts(validation))) < 0.11 * total
  assert not set(texts(train)) & set(texts(validation))
  assert max(map(len, texts(train + validation))) <= total / 40
  place = {}
  for name, text in train + validation:
    document, _, part = name.partition('[')
    place.setdefault(document, {})[int(part.partition(':')[0] or 0)] = text
  assert {
      name: b''.join(text for _, text in sorted(parts.items())) for name, parts in place.items()
  } == dict(documents)
  assert found.cut == [name for name, text in documents if len(text) > total / 20]


def test_line_of_cut_documents():
  [line] = splits.train_validation_split([('book', lines(2000, seed=0))]).lines()
  assert line == 'text: book is cut: part of it is training text, part is validation text'
  line = splits.cut_line(['a', 'b', 'c', 'd'])
  assert line.startswith('text: 4 documents are cut') and line.endswith('(a, b, c, ...)')


def test_split_of_pieces():
  documents = [(f'{i}', lines(40, seed=i)) for i in range(9)]
  found = splits.split_of_pieces(documents)
  assert len(found.train) > 9 and found.cut
  assert splits.split_of_pieces([('a', b'short')]) is None


def test_cuts_at_line_ends():
  train, validation = split([('book', lines(2000, seed=0))])
  assert all(text.endswith(b'\n') for text in texts(train + validation))


def test_repeated_text_stays_in_training():
  for seed in range(20):
    common = [(f'license{i}', lines(30, seed=1000 + seed)) for i in range(60)]
    documents = common + [(f'{i}', lines(30, seed=i)) for i in range(40)]
    train, validation = split(documents)
    assert set(common) <= set(train) and validation


@pytest.mark.parametrize('text', [b'x', b'short', b'the same line\n' * 1000, b'a' * 1000])
def test_text_too_small_to_split(text):
  with pytest.raises(BadInput, match=r'data\.path.*cannot be split'):
    splits.train_validation_split([('text', text)])
