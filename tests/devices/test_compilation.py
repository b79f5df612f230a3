"""Processes that need the same programs share the work of compiling them."""

import fcntl
import hashlib
import threading

import jax
import pytest

from stability.devices import compilation


class Program:
  """A fake lowered program: it has a text and records its compilation."""

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


def test_order(cache, programs, log):
  assert compilation.compile_shared(programs) == expected(programs)
  assert log == ['text of step', 'text of init', 'text of evaluate']


def test_program_that_another_process_compiles(cache, programs, log):
  """The program is compiled last. A second open file, with its own flock, acts as the process."""
  folder = cache / 'compiling'
  folder.mkdir()
  with (folder / hashlib.sha256(b'text of step').hexdigest()).open('w') as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    thread = threading.Thread(target=lambda: log.append(compilation.compile_shared(programs)))
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert log == ['text of init', 'text of evaluate']
    fcntl.flock(held, fcntl.LOCK_UN)
    thread.join(10)
  assert log[2:] == ['text of step', expected(programs)]


def test_no_cache(programs, log):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    assert compilation.compile_shared(programs) == expected(programs)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert len(log) == 3
