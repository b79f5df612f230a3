"""Training on what people kept: which documents data.labels chooses, and the folder it makes."""

import numpy as np
import pytest

from configs import base
from stability.data import labels, tokens
from stability.data import prepare as prepare_lib
from stability.errors import BadInput
from stability.storage import files


def entry(label, weight):
  return {'task': 't', 'label': label, 'weight': weight, 'opinions': [['a', label]]}


ENTRIES = [entry('keep', 1.0), entry('drop', 0.0), entry('unsure', 0.5), entry('keep', 2 / 3),
           entry('unsure', 0.5), entry('keep', 1.0)]  # fmt: skip
TEXTS = [f'document {n} '.encode() * (n + 2) for n in range(6)]


@pytest.fixture
def folder(tmp_path):
  """A token folder of six training documents, with labels."""
  train = b'\0'.join([*TEXTS, b''])
  arrays = {
      'train': np.frombuffer(train, np.uint8),
      'validation': np.frombuffer(b'some other text\0' * 3, np.uint8),
  }
  meta = {
      'tokenizer': 'bytes',
      'vocabulary_size': 256,
      'end_of_document': 0,
      'dtype': 'uint8',
      'sha256': tokens.digests(arrays),
      'documents': {'train': [[f'd{n}', len(text)] for n, text in enumerate(TEXTS)],
                    'validation': [['v', 15]] * 3},
      **tokens.statistics(arrays, 256),
  }  # fmt: skip
  tokens.write(tmp_path / 'labelled', meta, arrays)
  labels.write(tmp_path / 'labelled', ENTRIES)
  return tmp_path / 'labelled'


def prepare(folder, rule, length=16):
  data = base.get_config().data
  data.path, data.labels = str(folder), rule
  return prepare_lib.prepare(data, folder.parent / 'data', length)


def test_kept(folder):
  assert labels.chosen(folder, 'kept', 6) == [0, 3, 5]
  made = prepare(folder, 'kept')
  opened, before = tokens.open_tokens(made), tokens.open_tokens(folder)
  assert opened.train.tobytes() == b'\0'.join([TEXTS[0], TEXTS[3], TEXTS[5], b''])
  assert np.array_equal(opened.validation, before.validation)
  assert [name for name, _ in opened.meta['documents']['train']] == ['d0', 'd3', 'd5']
  assert opened.meta['unigram_loss'] != before.meta['unigram_loss']
  assert prepare(folder, 'kept') == made and prepare(folder, 'none') == folder


def test_weights(folder):
  """The sums are 1, 1, 1.5, 2.17, 2.67, 3.67: each whole number is reached once."""
  assert labels.chosen(folder, 'weights', 6) == [0, 3, 5]
  labels.write(folder, [entry('unsure', 1 / 3)] * 6)
  assert labels.chosen(folder, 'weights', 6) == [2, 5]


def test_weights_are_shares_of_many_documents(folder):
  weights = np.random.default_rng(0).choice([0, 0.25, 0.5, 1], 4000)
  labels.write(folder, [entry('keep', float(weight)) for weight in weights])
  found = labels.chosen(folder, 'weights', 4000)
  assert len(found) == int(weights.sum()) and found == sorted(set(found))
  used = np.isin(np.arange(4000), found)
  assert not used[weights == 0].any() and used[weights == 1].all()
  for weight in (0.25, 0.5):
    assert used[weights == weight].mean() == pytest.approx(weight, abs=0.06)


def test_selection_with_another_tokenizer(folder):
  """The tokens, not the text, are selected: they may be of any type."""
  stream = np.array([300, 301, 9, 7, 9, 400, 9], np.uint16)
  assert labels.select(stream, [2, 1, 1], [0, 2]).tolist() == [300, 301, 9, 400, 9]


def test_bad_labels(folder, tmp_path):
  with pytest.raises(BadInput, match='at least 1001'):
    prepare(folder, 'kept', 1000)
  for content, said in (
      ({'documents': ENTRIES[1:]}, 'documents must have an entry for each of 6'),
      ({'documents': [3] * 6}, 'entry 0 must have a label and a weight'),
      ({'documents': [entry('keep', 1.5)] * 6}, 'entry 0 must have'),
      ({'documents': [entry('drop', 0)] * 6}, 'no document of'),
  ):
    files.write_json(folder / 'labels.json', content)
    with pytest.raises(BadInput, match=said):
      prepare(folder, 'kept')
  (folder / 'labels.json').unlink()
  with pytest.raises(BadInput, match=r'config\.data\.labels=weights: .* has no labels\.json'):
    prepare(folder, 'weights')
  (tmp_path / 'text').mkdir()
  (tmp_path / 'text/a.txt').write_text('text ' * 900)
  with pytest.raises(BadInput, match=r'config\.data\.labels=kept: needs a token folder'):
    prepare(tmp_path / 'text', 'kept')
  assert not (tmp_path / 'data').exists() or not list((tmp_path / 'data').glob('[0-9a-f]*'))
