"""The splits that the names of text files tell."""

import pytest

from stability.data import split_names


@pytest.mark.parametrize(
    'train, validation, test',
    [
        ('wiki.train.txt', 'wiki.valid.txt', 'wiki.test.txt'),
        ('train.txt', 'dev.txt', 'eval.txt'),
        ('wiki.train.tokens', 'wiki.valid.tokens', 'wiki.test.tokens.gz'),
        ('en/Training', 'en/Validation', 'en/Test'),
        ('text.train', 'text.val', 'text.test'),
        ('train-00003-of-00007.txt', 'validation-00000-of-00001.txt', 'test-00000-of-00001.txt'),
        ('a/train/b/1.txt', 'a/val/2.txt', 'a/test/c/3.txt'),
        ('books_103-train.txt', 'books_103-valid.txt', 'books_103-test.txt'),
    ],
)
def test_splits_beside_training_text(train, validation, test):
  names = [train, validation, test, 'notes.txt']
  assert split_names.of_texts(names) == {validation: 'validation', test: 'test'}
  assert split_names.of_texts(names[1:]) == {}
  assert split_names.named(names) == [validation, test]


@pytest.mark.parametrize(
    'names',
    [
        ['train.py', 'test.py', 'eval.py'],  # programs
        ['train/a.py', 'test/a.py'],
        ['train.txt', 'tests.txt', 'attest.txt', 'evaluate.txt', 'deval.txt'],
        ['train.txt', 'requirements/dev.txt', 'requirements/test.txt'],
        ['a/train.txt', 'b/test.txt'],
        ['a.train.txt', 'b.test.txt'],
        ['train/a.txt', 'tests/a.txt', 'src/test/a.txt'],
        ['train.jsonl', 'test.jsonl'],  # see of_rows
    ],
)
def test_names_that_tell_no_split(names):
  assert split_names.of_texts(names) == {}


def test_rows():
  names = ('a/train/b', 'c4-validation.00000', 'x_test.jsonl', 'tests.jsonl')
  assert list(map(split_names.of_rows, names)) == ['train', 'validation', 'test', None]
