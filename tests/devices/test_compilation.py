"""Processes that need the same programs share the work of compiling them."""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import subprocess
import sys
import threading
import warnings

import jax
import pytest

from stability.devices import compilation

pytestmark = pytest.mark.slow


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


def test_wait_after_long_compilations(cache, programs, log, monkeypatch):
  """The time that a process compiles itself does not shorten its wait for the others."""
  clock = [0.0]
  monkeypatch.setattr(compilation, 'WAIT_SECONDS', 50)
  monkeypatch.setattr(compilation.time, 'monotonic', lambda: clock[0])

  def compile_slowly(program=programs['init']):
    clock[0] += 100
    return f'executable of {program.as_text()}'

  programs['init'].compile = compile_slowly
  folder = cache / 'compiling'
  folder.mkdir()
  with (folder / hashlib.sha256(b'text of step').hexdigest()).open('w') as held:
    fcntl.flock(held, fcntl.LOCK_EX)

    def release(seconds):
      log.append('waited')
      fcntl.flock(held, fcntl.LOCK_UN)

    monkeypatch.setattr(compilation.time, 'sleep', release)
    assert compilation.compile_shared(programs) == expected(programs)
  assert log == ['text of evaluate', 'waited', 'text of step']


def test_no_cache(programs, log):
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', None)
  try:
    assert compilation.compile_shared(programs) == expected(programs)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert len(log) == 3


# A cache that fails.


@pytest.fixture
def warned(monkeypatch, caplog):
  """A function that returns the warnings so far."""
  monkeypatch.setattr(compilation, '_warned', [])
  return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    'name', ['EACCES', 'EROFS', 'ENOSPC', 'EIO', 'ELOOP', 'ENAMETOOLONG', 'ESTALE', 'ENOLCK']
)
@pytest.mark.parametrize('call', ['mkdir', 'open', 'flock'])
def test_error_of_the_folder_of_locks(call, name, cache, programs, log, warned, monkeypatch):
  code = getattr(errno, name)

  def fail(*_, **__):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(*((fcntl, 'flock') if call == 'flock' else (pathlib.Path, call)), fail)
  assert compilation.compile_shared(programs) == expected(programs)
  assert len(log) == 3
  (message,) = warned()
  assert message.startswith('processes do not share compilations: ')
  assert os.strerror(code) in message


def test_lock_that_is_never_released(cache, programs, log, monkeypatch):
  """Its process hangs: after a while the program is compiled here, too."""
  monkeypatch.setattr(compilation, 'WAIT_SECONDS', 0.3)
  folder = cache / 'compiling'
  folder.mkdir()
  with contextlib.ExitStack() as stack:
    for text in ('text of step', 'text of init'):
      held = stack.enter_context((folder / hashlib.sha256(text.encode()).hexdigest()).open('w'))
      fcntl.flock(held, fcntl.LOCK_EX)
    assert compilation.compile_shared(programs) == expected(programs)
  assert log == ['text of evaluate', 'text of step', 'text of init']


@pytest.mark.parametrize('folder', ['gs://bucket/cache', 's3://bucket'])
def test_cache_in_a_store_has_no_locks(folder, programs, log, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  before = jax.config.jax_compilation_cache_dir
  jax.config.update('jax_compilation_cache_dir', folder)
  try:
    assert compilation.compile_shared(programs) == expected(programs)
  finally:
    jax.config.update('jax_compilation_cache_dir', before)
  assert not list(tmp_path.iterdir())


def test_disabled_cache_has_no_locks(cache, programs, log):
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    assert compilation.compile_shared(programs) == expected(programs)
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
  assert not list(cache.iterdir())


class WarnedProgram(Program):
  """A program at whose compilation jax and others warn."""

  def compile(self):
    for message in ('Error writing persistent compilation cache entry for {}', '{} is odd'):
      warnings.warn(message.format(self._text), stacklevel=1)
    return super().compile()


def test_jax_warns_of_the_cache_once(cache, log, warned):
  programs = {name: WarnedProgram(name, log) for name in ('a', 'b', 'c')}
  with pytest.warns(UserWarning, match='is odd') as others:
    compilation.compile_shared(programs)
  assert len(others) == 3
  assert warned() == ['Error writing persistent compilation cache entry for a']


@pytest.mark.parametrize('content', [b'', b'damaged', bytes(10_000)])
def test_damaged_entry(content, tmp_path):
  """In a process of its own, since jax opens its cache once."""
  program = f"""
import pathlib, jax, jax.numpy as jnp
from stability.devices import compilation
jax.config.update('jax_compilation_cache_dir', {str(tmp_path)!r})
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
lowered = jax.jit(lambda x: jnp.sin(x) @ x).lower(jnp.ones((3, 3)))
compilation.compile_shared({{'a': lowered}})
(entry,) = [path for path in pathlib.Path({str(tmp_path)!r}).glob('jit__lambda*-cache')]
entry.write_bytes({content!r})
jax.clear_caches()
found = compilation.compile_shared({{'a': lowered}})['a'](jnp.ones((3, 3)))
print(float(found[0, 0]))
"""
  done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('2.52') and done.stderr.count('\n') <= 1
