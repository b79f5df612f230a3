"""What a signal does while a program starts, while it runs, and where it may be missed."""

import ast
import pathlib
import subprocess
import sys
import time

import pytest
from helpers.processes import ROOT, command

from launch.common import app, preemption

PROGRAMS = ('sweep', 'train', 'work', 'reproduce')
SAID = 'preempted; to go on, start the same command again\n'


def ends(code, text='from launch.common import preemption; preemption.install();'):
  """Exit code and stderr of a process that runs this code after installing the handlers."""
  found = subprocess.run(
      [sys.executable, '-c', f'import os, signal; {text} {code}'],
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      check=False,
  )
  return found.returncode, found.stderr


@pytest.mark.parametrize('sent', preemption.SIGNALS)
def test_signal_outside_the_program_ends_the_process(sent):
  kill = f'os.kill(os.getpid(), {sent.value})'
  assert ends(kill) == (75, SAID)
  assert ends(f'os.close(2); {kill}') == (75, '')
  # Not an exception, which code that is being imported may catch.
  assert ends(f'exec("try:\\n {kill}\\nexcept BaseException:\\n pass")') == (75, SAID)


def test_nohup():
  """Whoever has it ignored wants the program to outlive the terminal."""
  text = 'from launch.common import preemption; signal.signal(signal.SIGHUP, signal.SIG_IGN);'
  hangup = 'preemption.install(); os.kill(os.getpid(), signal.SIGHUP);'
  assert ends(hangup, text) == (0, '')
  assert ends(f'{hangup} os.kill(os.getpid(), signal.SIGTERM)', text) == (75, SAID)


def test_raised_and_deferred():
  code = """
with preemption.raised():
  with preemption.deferred() as is_preempted:
    os.kill(os.getpid(), signal.SIGTERM)
    assert is_preempted()
  with preemption.raised():
    pass
  try:
    os.kill(os.getpid(), signal.SIGTERM)
  except preemption.Preempted:
    print('raised', file=__import__('sys').stderr)
os.kill(os.getpid(), signal.SIGTERM)
"""
  assert ends(f'exec({code!r})') == (75, f'raised\n{SAID}')


def test_signal_during_an_import(tmp_path):
  """Extension modules abort the process when an import of theirs raises Preempted."""
  (tmp_path / 'careless.py').write_text("""import os
try:
  os.kill(os.getpid(), 15)
except BaseException:
  pass
""")
  code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
with preemption.raised():
  import careless
"""
  assert ends(f'exec({code!r})') == (75, SAID)


def test_signal_in_a_config_file_is_not_its_fault(tmp_path, capsys):
  path = tmp_path / 'experiment.py'
  path.write_text('from launch.common import preemption\nraise preemption.Preempted\n')
  flag_values = app.flags.FlagValues()
  app.define_config(flag_values)
  arguments = ['sweep', f'--config={path}']
  code = app.execute(lambda: app.load_sweep(flag_values), flag_values, arguments)
  assert (code, capsys.readouterr().err) == (75, SAID)


@pytest.mark.parametrize('program', PROGRAMS)
def test_handlers_are_installed_before_other_imports(program):
  _, first, second, *_ = ast.parse((ROOT / 'launch' / f'{program}.py').read_text()).body
  assert ast.unparse(first) == 'from launch.common import preemption'
  assert 'preemption.install()' in ast.unparse(second)


def handles(pid, number):
  """Whether a process has a handler for a signal."""
  lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  (caught,) = (line.split()[1] for line in lines if line.startswith('SigCgt'))
  return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
@pytest.mark.parametrize('program', PROGRAMS)
def test_signals_while_a_program_starts(program, tmp_path):
  """As soon as there are handlers, which is before the slow imports, and at later moments."""
  (tmp_path / 'slow.py').write_text('import time\ntime.sleep(60)\n')
  more = {'work': [], 'reproduce': ['--dry_run']}.get(program, ['--config=slow.py'])
  for moment in (0, 0.02, 0.1, 0.3, 1, 3):
    for sent in preemption.SIGNALS:
      prepared = command(tmp_path, program, '--workdir=runs', *more)
      process = subprocess.Popen(**prepared, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
      try:
        while not handles(process.pid, sent):
          assert process.poll() is None
        if not moment:
          libraries = pathlib.Path(f'/proc/{process.pid}/maps').read_text()
          assert 'numpy' not in libraries and 'pandas' not in libraries
        time.sleep(moment)
        if process.poll() is not None:  # without a workdir, or done with its plan
          assert moment >= 1 and program in ('work', 'reproduce')
          continue
        process.send_signal(sent)
        _, err = process.communicate(timeout=30)
        has_ended = {'work': 'no sweep.json' in err, 'reproduce': not err}.get(program, False)
        if moment >= 1 and has_ended:
          assert process.returncode in (0, 2, -sent)
          continue  # it had just ended by itself, or was about to
        assert (process.returncode, err) == (75, SAID), (moment, sent)
      finally:
        process.kill()
