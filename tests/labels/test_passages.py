"""Passages, their offsets, and near-duplicates."""

from stability.labels import passages
from stability.labels.passages import Passage


def test_passages_are_the_text_at_their_offsets():
  first = 'first line\nsecond \xe9 line\n\nthird'.encode()
  documents = [('a', first), ('b', b'caf\xe9 in Latin-1')]
  for length in (1, 5, 12, 14, 0):
    found = list(passages.cut(documents, length))
    for (name, content), encoding in zip(documents, ('utf-8', 'latin-1'), strict=True):
      own = [passage for passage in found if passage.document == name]
      for passage in own:
        assert content[passage.start : passage.end] == passage.text.encode(encoding)
        assert passage.encoding == encoding
        assert not length or len(passage.text) <= length
        assert passage.text.encode(passage.encoding) in content
      covered = sum(len(passage.text) for passage in own)
      total = len(content.decode(encoding))
      assert covered == total or (length == 1 and covered < total)
  lines = ['first line\n', 'second \xe9 line\n', '\nthird']
  assert [p.text for p in passages.cut(documents[:1], 14)] == lines
  assert len({passage.task for passage in found}) == len(found)


def test_white_space_is_no_passage():
  assert [p.start for p in passages.cut([('a', b'ab\n\n\n\ncd\n')], 3)] == [0, 6]


def passage(text):
  return Passage('a', 0, len(text), text, 'utf-8')


LONG = 'The quick brown fox jumps over the lazy dog, and then it runs away from the hunter.'


def test_near_duplicates():
  similar = LONG.upper().replace(' ', '\n') + ' At last.'
  other = LONG[:30] + ' sits on the mat and looks at a cat that has come in from the cold.'
  texts = [LONG, similar, other, 'short', 'SHORT', 'shorter']
  found, left_out = passages.without_near_duplicates(map(passage, texts), 10)
  assert [each.text for each in found] == [LONG, other, 'short', 'shorter'] and left_out == 2


def test_only_as_many_as_asked_for():
  taken = []

  def source():
    for i in range(100):
      taken.append(i)
      yield passage(f'{i} ' * 20)

  found, left_out = passages.without_near_duplicates(source(), 3)
  assert len(found) == 3 and left_out == 0 and len(taken) <= 4
