"""The examples, run as they are; and that the library imports neither torch nor jax by itself."""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

import stability.probes

FOLDER = pathlib.Path(stability.probes.__file__).parent / 'examples'


def run(name, capsys):
  """Runs an example; returns its variables and what it prints."""
  capsys.readouterr()
  found = runpy.run_path(str(FOLDER / name))
  return found, capsys.readouterr().out


def test_torch_loop(capsys):
  pytest.importorskip('torch')
  found, output = run('torch_loop.py', capsys)
  assert 'step 5: attention_logit: the highest attention logit is' in output
  assert found['monitor'].lacking == {}


def test_huggingface_trainer(capsys, tmp_path, monkeypatch):
  pytest.importorskip('transformers')
  monkeypatch.chdir(tmp_path)
  found, output = run('huggingface_trainer.py', capsys)
  assert 'attention_logit: the highest attention logit is' in output
  assert set(found['alarms'].monitor.lacking) == {'loss_spike'}  # nine rows


@pytest.mark.slow
def test_optax_loop(capsys):
  found, output = run('optax_loop.py', capsys)
  assert 'attention_logit: the highest attention logit is' in output
  assert set(found['monitor'].lacking) == {'residual_growth'}  # the model has no modules of blocks


def test_tail_jsonl(tmp_path):
  """Another process follows the file while this one writes it, a line in two parts."""
  path = tmp_path / 'log.jsonl'
  rows = [{'iter': n, 'train/loss': 3.0, 'max_attn_logit': 10.0 * n} for n in range(60)]
  lines = ''.join(json.dumps(row | {'text': 'x'}) + '\n' for row in rows)
  half = len(lines) // 2
  path.write_text(lines[:half])
  command = [sys.executable, FOLDER / 'tail_jsonl.py', path, '1']
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    with path.open('a') as file:
      file.write(lines[half:])
    output, _ = process.communicate()
  assert process.returncode == 0
  assert 'step 51: attention_logit: the highest attention logit is 510; limit 500' in output
  assert 'log_z_drift needs log_z' in output


def test_tail_jsonl_of_a_resumed_run(tmp_path):
  """The file goes on at the step of a checkpoint, after a blank line; what follows is monitored."""
  path = tmp_path / 'log.jsonl'
  steps = [*range(0, 300, 10), *range(100, 200, 10)]
  rows = [{'iter': n, 'train/loss': 3.0, 'max_attn_logit': 10.0} for n in steps]
  rows[29]['max_attn_logit'] = rows[-1]['max_attn_logit'] = 600.0
  path.write_text('\n\n'.join(map(json.dumps, rows)) + '\n')
  command = [sys.executable, FOLDER / 'tail_jsonl.py', path, '1']
  process = subprocess.run(command, check=True, capture_output=True, text=True)
  alarms = [line for line in process.stdout.splitlines() if 'attention_logit: ' in line]
  assert [line.split(':')[0] for line in alarms] == ['step 290', 'step 190']


@pytest.mark.parametrize('path', sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_examples_are_short(path):
  assert path.suffix != '.py' or len(path.read_text().splitlines()) <= 40


def test_import_is_lazy():
  code = """
import sys
import stability, stability.probes
stability.Monitor()
print(sorted({'jax', 'flax', 'torch'} & set(sys.modules)))
"""
  process = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
  assert process.stdout == '[]\n'
