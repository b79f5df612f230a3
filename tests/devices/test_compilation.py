"""Processes that need the same programs share the work of compiling them."""

import fcntl
import hashlib
import threading

import jax
import pytest

from stability.devices import compilation


class Program:
  """Takes the place of what jax lowers: its text, and a record of being compiled."""

  def __init__(self, text, log):
    self._text, self._log = text, log

  def as_text(self):
    return self._text

  def compile(self):
    self._log.append(self._text)
    return f'executable of {self._text}'


@pytest.fixture
def log():
  return []


@pytest.fixture
def programs(log):
  return {name: Program(f'text of {name}', log) for name in ('step', 'init', 'evaluate')}


@pytest.fixture
def cache(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', str(tmp_path))
  yield tmp_path
  jax.config.update('jax_compilation_cache_dir', before)


def expected(programs):
  return {name: f'executable of text of {name}' for name in programs}


def test_alone_it_compiles_in_order(cache, programs, log):
  assert compilation.compiled(programs) == expected(programs)
  assert log == ['text of step', 'text of init', 'text of evaluate']


def test_what_another_compiles_comes_last_and_only_when_that_is_done(cache, programs, log):
  """A second open file stands for the other process: flock tells them apart."""
  folder = cache / 'compiling'
  folder.mkdir()
  with (folder / hashlib.sha256(b'text of step').hexdigest()).open('w') as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    thread = threading.Thread(target=lambda: log.append(compilation.compiled(programs)))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert log == ['text of init', 'text of evaluate']
    fcntl.flock(held, fcntl.LOCK_UN)
    thread.join(10)
  assert log[2:] == ['text of step', expected(programs)]


def test_without_a_cache_each_compiles_for_itself(programs, log):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    assert compilation.compiled(programs) == expected(programs)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert len(log) == 3
