"""Standard streams that are closed, full, gone or not those of a terminal."""

import io
import os
import pty
import subprocess
import sys

import pytest

from launch.common import display, streams

# Prints much, then says on stderr what it has reached.
PROGRAM = """
import sys
from launch.common import streams
streams.protect()
for i in range(20_000):
  print('line', i, '\\u2026')
error = streams.lost_output()
print('error:', error and error.strerror, file=sys.stderr)
"""


def run(program, **kwargs):
  return subprocess.run([sys.executable, '-c', program], check=False, timeout=60, **kwargs)


def test_reader_that_has_seen_enough():
  """The program goes on, quietly, to its own end."""
  read, write = os.pipe()
  os.close(read)
  done = run(PROGRAM, stdout=write, stderr=subprocess.PIPE, text=True)
  os.close(write)
  assert done.returncode == 0 and done.stderr == 'error: None\n'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
def test_full_disk():
  with open('/dev/full', 'w') as full:
    done = run(PROGRAM, stdout=full, stderr=subprocess.PIPE, text=True)
  assert done.returncode == 0 and done.stderr == 'error: No space left on device\n'


def test_terminal_that_is_closed():
  """Each write raises EIO."""
  main, terminal = pty.openpty()
  os.close(main)
  done = run(PROGRAM, stdout=terminal, stderr=subprocess.PIPE, text=True)
  os.close(terminal)
  assert done.returncode == 0 and done.stderr == 'error: None\n'


def test_pipe_that_does_not_block():
  """A pipe whose other end has made it non-blocking is waited for."""
  read, write = os.pipe()
  os.set_blocking(write, False)
  with subprocess.Popen([sys.executable, '-c', PROGRAM], stdout=write, stderr=-1) as process:
    os.close(write)
    with open(read, encoding='utf-8') as file:
      lines = file.read().splitlines()
    assert process.stderr.read() == b'error: None\n'
  assert len(lines) == 20_000 and lines[-1] == 'line 19999 …'


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1'])
def test_text_that_the_encoding_lacks(encoding):
  done = run(
      PROGRAM, capture_output=True, env=os.environ | {'PYTHONIOENCODING': encoding}, text=True
  )
  assert done.stdout.endswith('line 19999 \\u2026\n') and done.stderr == 'error: None\n'


@pytest.mark.parametrize('closed', ['1', '2', '0', '012'])
def test_closed_streams(closed, tmp_path):
  """A file that is opened later does not take the descriptor, to which libraries may write."""
  program = f"""
import os, sys
from launch.common import streams
streams.protect()
file = open({str(tmp_path / 'file')!r}, 'w')
assert file.fileno() > 2
for number in {sorted(map(int, closed))}:
  if number:
    os.write(number, b'of a library')
print('stdout')
print('stderr', file=sys.stderr)
sys.stdin.fileno()
streams.lost_output()
file.write('done')
"""
  redirections = ' '.join(f'{number}>&-' for number in closed)
  script = f'exec "$0" -c "$1" {redirections}'
  done = subprocess.run(
      ['bash', '-c', script, sys.executable, program], capture_output=True, text=True, check=False
  )
  assert (tmp_path / 'file').read_text() == 'done'
  assert done.stdout == ('' if '1' in closed else 'stdout\n')
  assert done.stderr == ('' if '2' in closed else 'stderr\n')


@pytest.mark.parametrize(
    ('columns', 'kept'),
    [
        *((value, None) for value in ('abc', '²', '0', '-5', '3', '9' * 30, '')),
        ('100', '100'),
    ],
)
def test_size_of_the_terminal(columns, kept, monkeypatch):
  monkeypatch.setattr(sys, 'stdout', io.StringIO())  # is left alone
  monkeypatch.setattr(sys, 'stderr', stderr := io.StringIO())
  monkeypatch.setenv('COLUMNS', columns)
  streams.protect()
  assert os.environ.get('COLUMNS') == kept
  assert sys.stderr is stderr and streams.lost_output() is None


@pytest.mark.parametrize('columns', [0, 1, 3])
def test_narrow_terminal(columns):
  """The help of a program is wrapped to what absl can wrap to."""
  main, terminal = pty.openpty()
  subprocess.run(['stty', 'cols', str(columns)], stdin=terminal, check=True)
  process = subprocess.Popen(
      [sys.executable, '-m', 'launch.report', '--help'],
      stdin=terminal,
      stdout=terminal,
      stderr=subprocess.PIPE,
  )
  os.close(terminal)
  try:
    while os.read(main, 4096):
      pass
  except OSError:  # the program has ended
    pass
  assert process.wait() == 0 and process.communicate()[1] == b''
  os.close(main)


class Faulty(io.StringIO):
  """A stream that fails at each write."""

  def __init__(self, error, is_terminal):
    super().__init__()
    self._error, self._is_terminal = error, is_terminal

  def isatty(self):
    return self._is_terminal

  def write(self, text):
    raise self._error


@pytest.mark.parametrize('is_terminal', [True, False])
@pytest.mark.parametrize(
    'error',
    [
        BrokenPipeError(32, 'Broken pipe'),
        OSError(5, 'Input/output error'),
        ValueError('I/O operation on closed file'),
        UnicodeEncodeError('ascii', '·', 0, 1, 'ordinal not in range'),
        io.UnsupportedOperation('write'),
    ],
)
def test_display_on_a_stream_that_fails(error, is_terminal, monkeypatch):
  monkeypatch.setattr(sys, 'stderr', Faulty(error, is_terminal))
  with display.Display() as shown:
    shown.show(0.5, ['half · way'])
    shown.log('a line')
    shown.show(None, ['all'], last=True)


def test_display_without_streams(monkeypatch):
  monkeypatch.setattr(sys, 'stderr', None)
  with display.Display() as shown:
    shown.show(0.5, ['half'])
    shown.log('a line')


def test_display_on_a_stream_of_a_notebook(monkeypatch):
  """It has neither a file descriptor nor a buffer, nor isatty."""

  class Stream:
    written = ''

    def write(self, text):
      self.written += text

    def flush(self):
      pass

  monkeypatch.setattr(sys, 'stderr', stream := Stream())
  with display.Display() as shown:
    shown.log('a line')
    shown.show(0.5, ['half'])
  assert stream.written.splitlines() == ['a line', ' 50%  half']
