"""Documents that a sweep was trained on are found by their content."""

import types

import pytest
from helpers.retrieval import sentences, write_text
from helpers.tokenizing import documents as packed
from helpers.tokenizing import made

from stability.data import prepare as prepare_lib
from stability.data import tokens
from stability.data.tokenize import stored as stored_lib
from stability.data.tokenize.stored import StoredTokenizer
from stability.labels import labelled, passages
from stability.labels.answers import KEEP, Decision
from stability.labels.tasks import Task
from stability.retrieval.training_text import trained_on


@pytest.fixture(params=['bytes', 'bpe'])
def prepare(request, tmp_path):
  """A function that makes the token folder of a text and looks for documents in it."""

  def look_for(text, documents):
    source = types.SimpleNamespace(
        source='text', path=str(text), tokenizer=request.param, vocabulary_size=280, labels='none'
    )
    folder = prepare_lib.prepare(source, tmp_path / 'data', 16)
    meta = tokens.open_tokens(folder).meta
    return trained_on(documents, folder, StoredTokenizer(folder, meta)), meta

  return look_for


def test_whole_documents(prepare, tmp_path):
  """Under any name, unlike those of the validation text and new ones of the same length."""
  text = write_text(tmp_path / 'text')
  content = {path.name: path.read_bytes() for path in text.iterdir()}
  documents = [(f'new/{name}', content[name]) for name in sorted(content)]
  documents += [(f'other/{name}', body[::-1]) for name, body in content.items()]
  found, meta = prepare(text, documents)
  assert found == [f'new/{name}' for name, _ in meta['documents']['train']]
  assert meta['documents']['validation']


def test_a_document_that_was_cut(prepare, tmp_path):
  long = sentences(1, 4000)
  (tmp_path / 'text.txt').write_bytes(long)
  documents = [('same', long), ('longer', long + b' more'), ('other', sentences(2, 4000))]
  documents.append(('inside', long[100:3000]))
  found, meta = prepare(tmp_path / 'text.txt', documents)
  assert meta['cut_documents'] == ['text.txt'] and found == ['same', 'longer']


def test_passages_that_people_have_judged(prepare, tmp_path):
  """Of text that is not ASCII, and of pieces of it."""
  text = '\xe9t\xe9 '.encode() + sentences(1, 4000) + ' \u20ac'.encode()
  (tmp_path / 'text.txt').write_bytes(text)
  prepare(tmp_path / 'text.txt', [('text.txt', text)])
  folder = next((tmp_path / 'data').glob('*/meta.json')).parent
  for number, documents in enumerate([[('text.txt', text)], stored_lib.documents(folder)]):
    passage = list(passages.cut(documents, 100))[-1]
    task = Task(passage.task, *passage, None, None, None)
    output = tmp_path / f'judged {number}'
    labelled.write(output, folder, [task], [Decision(task.task, KEEP, 1.0, ())])
    tokenizer = StoredTokenizer(folder, tokens.open_tokens(folder).meta)
    others = [('same', text), ('other', text[::-1])]
    assert trained_on(others, output, tokenizer) == ['same']


@pytest.mark.parametrize('tokenizer', [['bytes'], ['bpe', '--vocabulary_size=280']])
def test_a_folder_of_launch_tokenize(tokenizer, tmp_path, monkeypatch):
  """It lists no documents and packs long ones in pieces."""
  monkeypatch.setattr('stability.retrieval.training_text._READ', 1000)
  long = sentences(1, 13_000)
  text = write_text(tmp_path / 'text')
  (text / 'long.txt').write_bytes(long)
  name, *options = tokenizer
  folder = made(tmp_path / 'tokens', text, f'--tokenizer={name}', *options)
  meta = tokens.open_tokens(folder).meta
  stored = StoredTokenizer(folder, meta)
  assert isinstance(meta['documents']['train'], int)
  trained = {stored.decode(document) for document in packed(folder, 'train')}
  content = {path.name: path.read_bytes() for path in text.glob('0*')}
  documents = list(content.items())
  documents += [(f'other {name}', body[::-1]) for name, body in documents]
  documents += [('long', long), ('longer', long + b' more'), ('inside', long[100:3000])]
  found = trained_on(documents, folder, stored)
  expected = [name for name, body in content.items() if body in trained]
  assert len(long) > 2**16 and 0 < len(expected) < len(content)
  assert found == [*expected, 'long', 'longer']
