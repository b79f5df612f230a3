"""Paths as users write them."""

import pytest

from stability.config import fields, paths
from stability.errors import BadInput

URLS = ['gs://bucket/run', 's3://b', 'hf://sets/a/b', 'https://a.org/b', 'file:///tmp/x', 'gs:/b']


@pytest.mark.parametrize(
    'text, path', [('~', '/h'), ('~/a/~', '/h/a/~'), ('./~', './~'), ('a:b', 'a:b')]
)
def test_home_is_expanded(text, path, monkeypatch):
  monkeypatch.setenv('HOME', '/h')
  assert paths.local(text) == path


def test_unknown_home():
  with pytest.raises(BadInput, match=r'no home folder ~nobody-here; .* write \./~nobody-here/a'):
    paths.local('~nobody-here/a')


@pytest.mark.parametrize('url', URLS)
def test_urls_are_refused(url):
  with pytest.raises(BadInput, match='not a URL'):
    paths.local(url)


def test_field_of_a_path(monkeypatch):
  monkeypatch.setenv('HOME', '/h')
  field = fields.FIELDS['data.path']
  assert field.convert('~/text') == '/h/text' and field.convert(None) is None
  with pytest.raises(BadInput, match=r"config\.data\.path='gs://b': must be .*not a URL"):
    field.convert('gs://b')
