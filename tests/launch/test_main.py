"""The console script `stability`."""

import pathlib
import subprocess
import sys

import pytest

from launch import __main__ as console

PROGRAMS = pathlib.Path(console.__file__).parent


def run(monkeypatch, *arguments: str) -> int:
  monkeypatch.setattr(sys, 'argv', ['stability', *arguments])
  try:
    console.main()
  except SystemExit as end:
    return end.code
  return 0


@pytest.mark.parametrize('arguments', [[], ['--help'], ['-h']])
def test_list(arguments, monkeypatch, capsys):
  assert run(monkeypatch, *arguments) == 0
  usage, blank, *lines = capsys.readouterr().out.splitlines()
  assert usage.startswith('stability COMMAND') and not blank
  names = {path.stem for path in PROGRAMS.glob('*.py')} - {'__init__', '__main__'}
  assert {line.split()[0] for line in lines} == names
  assert '  sweep        Trains every run of a sweep and reports LR sensitivity.' in lines
  assert all(line.endswith('.') for line in lines)


@pytest.mark.parametrize('name', ['swep', '__main__', 'common', 'launch.sweep', '../sweep'])
def test_unknown_command(name, monkeypatch, capsys):
  assert run(monkeypatch, name) == 2
  captured = capsys.readouterr()
  assert captured.err.startswith(f"error: '{name}': no such command; the nearest is ")
  assert captured.err.count('\n') == 1 and not captured.out


def test_arguments_are_those_of_the_program(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'path', list(sys.path))
  assert run(monkeypatch, 'options', '--config=quickstart:gpu', 'schedule.steps') == 0
  assert 'schedule.steps = ' in capsys.readouterr().out
  assert run(monkeypatch, 'options', '--wrong') == 2
  assert '--wrong: no such flag' in capsys.readouterr().err


def test_reader_that_has_seen_enough():
  command = f'{sys.executable} -m launch | head -1'
  found = subprocess.run(
      command, shell=True, cwd=PROGRAMS.parent, capture_output=True, text=True, check=True
  )
  assert found.stdout.startswith('stability COMMAND') and found.stderr == ''
