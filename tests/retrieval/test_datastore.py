"""Datastores on disk: values, sources, additions, damage."""

import dataclasses

import numpy as np
import pytest
from helpers.retrieval import StubModel

from stability.errors import BadInput
from stability.retrieval.datastore import Datastore
from stability.retrieval.texts import Windows
from stability.storage import files


def text(name, count, seed, step=16):
  """Windows of random bytes, `step` tokens apart, of two documents."""
  rng = np.random.default_rng(seed)
  stream = rng.integers(1, 256, step * count + 17, np.uint8)
  starts = step * np.arange(count)
  tokens = np.stack([stream[start : start + 17] for start in starts])
  return Windows(name, tokens, starts, [('first', 0), ('second', 30)])


@pytest.fixture
def store(tmp_path):
  """A datastore of two texts, with their windows."""
  (tmp_path / 'store').mkdir()
  made = Datastore.create(tmp_path / 'store', 'run', StubModel())
  texts = text('train', 5, 0), text('more', 4, 1, step=20)
  for each in texts:
    made.add(each, StubModel())
  return made, texts


def check(store, texts):
  """Keys, values and sources from the windows, one at a time."""
  model, index = StubModel(), 0
  keys = np.concatenate(store.arrays())
  assert store.keys == len(keys) == 16 * sum(len(each.starts_N) for each in texts)
  for each in texts:
    for window, start in zip(each.tokens_NxT1, each.starts_N, strict=True):
      ((_, outputs),) = model.batches(window[None])
      for position in range(16):
        assert np.array_equal(keys[index], outputs.keys_NxTxD[0, position])
        assert store.values(np.array([index])) == window[position + 1]
        source, before = store.source(index)
        place = start + position + 1
        name, first = ('second', 30) if place >= 30 else ('first', 0)
        assert source == f'{each.name}: {name}, token {place - first}'
        assert np.array_equal(before, window[: position + 2])
        index += 1
  with pytest.raises(IndexError):
    store.source(index)


def test_keys_values_and_sources(store):
  check(*store)
  made, texts = store
  check(Datastore.open(made.folder, StubModel()), texts)
  assert made.name == 'train+more'
  assert made.values(np.array([[0, 80], [79, 143]])).tolist() == [
      [texts[0].tokens_NxT1[0, 1], texts[1].tokens_NxT1[0, 1]],
      [texts[0].tokens_NxT1[4, 16], texts[1].tokens_NxT1[3, 16]],
  ]


def test_keys_are_mapped(store):
  assert all(isinstance(array, np.memmap) for array in store[0].arrays())


def test_added_for_good(store):
  made, texts = store
  opened = Datastore.open(made.folder, StubModel())
  third = text('third', 2, 3)
  opened.add(third, StubModel())
  check(Datastore.open(made.folder, StubModel()), (*texts, third))


def test_interrupted_addition_leaves_it_as_it_was(store, monkeypatch):
  made, texts = store
  third = text('third', 2, 3)
  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_json', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      made.add(third, StubModel())
  opened = Datastore.open(made.folder, StubModel())
  check(opened, texts)
  opened.add(third, StubModel())
  check(Datastore.open(made.folder, StubModel()), (*texts, third))


def test_another_model(store):
  with pytest.raises(BadInput, match="keys of another model, that of run 'run'"):
    Datastore.open(store[0].folder, StubModel(1))


def test_another_length_of_windows(store):
  made, texts = store
  model = StubModel()
  model.sequence_length = 8
  with pytest.raises(BadInput, match=r'datastore.json: holds windows of 16 tokens; must be of 8'):
    Datastore.open(made.folder, model)
  cut = dataclasses.replace(texts[0], tokens_NxT1=texts[0].tokens_NxT1[:, :9])
  with pytest.raises(ValueError, match='windows of 8 tokens; must be 16'):
    made.add(cut, StubModel())
  check(Datastore.open(made.folder, StubModel()), texts)


DAMAGE = {
    'a bit of keys': ('part-1.keys', lambda content: b'?' + content[1:], 'part-1.keys: damaged'),
    'keys cut off': ('part-0.keys', lambda content: content[:-4], 'part-0.keys: damaged'),
    'a token': ('part-0.tokens', lambda content: content[:-1] + b'\0', 'part-0.tokens: damaged'),
    'no starts': ('part-0.starts', None, 'part-0.starts: no such file'),
    'foreign': ('datastore.json', lambda _: b'{"format": "faiss"}', 'not a datastore'),
    'no JSON': ('datastore.json', lambda _: b'\x93NUMPY', 'datastore.json: cannot be read'),
    'a part': (
        'datastore.json',
        lambda content: content.replace(b'"windows": 5', b'"windows": "5"'),
        'damaged: part 0: windows',
    ),
    'no parts': (
        'datastore.json',
        lambda content: content.replace(b'"parts"', b'"pieces"'),
        'not a datastore',
    ),
    'a type': (
        'datastore.json',
        lambda content: content.replace(b'"uint8"', b'"object"'),
        'damaged: part 0: dtype',
    ),
}


@pytest.mark.parametrize('case', DAMAGE)
def test_damage(case, store):
  name, change, said = DAMAGE[case]
  path = store[0].folder / name
  content = path.read_bytes()
  path.unlink()
  if change:
    assert change(content) != content
    path.write_bytes(change(content))
  with pytest.raises(BadInput, match=said) as error:
    Datastore.open(store[0].folder, StubModel())
  assert str(store[0].folder) in str(error.value)
