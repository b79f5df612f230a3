"""A manifest as an experiment: of XManager's where it is installed, and of a stand-in."""

import asyncio
import importlib.util
import json
import sys
import types

import pytest

from launch import xmanager
from launch.common import app


class Unit:
  """A job that runs."""

  def __init__(self, process):
    self._process = process

  async def wait_until_complete(self):
    if code := await self._process.wait():
      raise RuntimeError(code)


class Experiment:
  """What XManager does with local jobs: on leaving it raises for one that failed."""

  def __init__(self, title):
    self._units = []

  async def __aenter__(self):
    return self

  async def __aexit__(self, *_):
    for unit in self._units:
      await unit.wait_until_complete()

  def package(self, programs):
    return programs

  async def add(self, job):
    program, _, _, arguments, variables = job
    process = await asyncio.create_subprocess_exec(program, *arguments, env=variables)
    self._units.append(Unit(process))
    return self._units[-1]


@pytest.fixture(params=['real', 'stand-in'])
def execute(request, monkeypatch, tmp_path, capsys):
  """launch.xmanager on a manifest of some jobs; its exit code and what it said."""
  monkeypatch.setenv('HOME', str(tmp_path))  # XManager's database
  if request.param == 'stand-in':
    xm = types.SimpleNamespace(binary=lambda spec, path: path, Job=lambda *job: job)
    local = types.SimpleNamespace(create_experiment=Experiment, Local=lambda: None)
    local.Local.Spec = lambda: None
    package = types.SimpleNamespace(xm=xm, xm_local=local)
    monkeypatch.setitem(sys.modules, 'xmanager', package)
  elif importlib.util.find_spec('xmanager') is None:
    pytest.skip('XManager is not installed: pip install xmanager')

  def run(*jobs):
    lines = [json.dumps({'name': name, 'command': c, 'env': env}) for name, c, env in jobs]
    (tmp_path / 'manifest.jsonl').write_text('\n'.join(lines))
    code = app.execute(xmanager.main, xmanager.FLAGS, ['xmanager', f'--workdir={tmp_path}'])
    return code, capsys.readouterr()

  return run


def shell(script, *arguments):
  return ['/bin/sh', '-c', script, 'sh', *map(str, arguments)]


def test_a_job_that_fails_ends_no_others(execute, tmp_path):
  text = 'it\'s $HOME "quoted" *'
  good = ('good', shell('sleep 1; echo "$1$A" > "$2"', text, tmp_path / 'good'), {'A': text})
  code, said = execute(('bad', shell('exit 75'), {}), good)
  assert code == 1 and '1 of 2 jobs ended well' in said.out
  assert (tmp_path / 'good').read_text() == f'{text}{text}\n'
  code, said = execute(good)
  assert code == 0 and '1 of 1 jobs ended well' in said.out


def test_what_is_missing_is_one_line(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(sys.modules, 'xmanager', None)  # as if not installed
  for what in ('launch.sweep --backend=manifest writes it', 'pip install xmanager'):
    code = app.execute(xmanager.main, xmanager.FLAGS, ['xmanager', f'--workdir={tmp_path}'])
    said = capsys.readouterr().err
    assert code == 2 and what in said and said.count('\n') == 1
    (tmp_path / 'manifest.jsonl').touch()
