"""A parser of reports."""

import html.parser

EVIL = '<script>alert("1")</script>&{{ 7 * 7 }}'


class Page(html.parser.HTMLParser):
  """A parsed page: its elements, their attributes and its text."""

  def __init__(self, path):
    super().__init__()
    self.elements, self.text, self._open = [], '', []
    self.source = path.read_text()
    self.feed(self.source)
    assert not self._open, f'never closed: {self._open}'

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in ('meta', 'br', 'img'):
      self._open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    if self._open and self._open[-1] != 'style':
      self.text += data

  def count(self, tag):
    return sum(found == tag for found, _ in self.elements)
