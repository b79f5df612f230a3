"""The walk of configs/README.md in short form: from a sweep to training on what a person kept."""

import csv
import math
import subprocess

import pytest
from helpers import experiment
from helpers.processes import command, run
from helpers.retrieval import sentences, write_text

from stability.labels import tasks
from stability.storage import other_text_csv, retrieval_csv

FIELDS = {
    'data.source': 'text',
    'data.path': 'text',
    'data.sequence_length': 32,
    'data.batch_size': 8,
    'data.validation_batches': 2,  # 16 of the 21 windows: none is measured twice
    'schedule.steps': 40,
    'schedule.warmup_steps': 4,
    'probe.every_steps': 0,
}
SWEEP = """hyper.product([
      hyper.sweep('optimizer.learning_rate', [1e-2, 1e-1]),
      hyper.sweep('seed', [0, 1]),
  ])"""


def ok(process):
  assert process.returncode == 0, process.stderr
  return process.stdout


@pytest.mark.slow
def test_walk(tmp_path):
  write_text(tmp_path / 'text')
  (tmp_path / 'new').mkdir()
  for seed in range(30):
    (tmp_path / 'new' / f'{seed}.txt').write_bytes(sentences(seed, 60)[::-1])
  (tmp_path / 'sweep.py').write_text(experiment.config_file(FIELDS, SWEEP))
  (tmp_path / 'one.py').write_text(experiment.config_file(FIELDS))
  ok(run(tmp_path, 'sweep', '--config=sweep.py', '--workdir=pretrained'))
  with (tmp_path / 'pretrained/results.csv').open(newline='') as file:
    best = min(csv.DictReader(file), key=lambda row: float(row['final_loss']))
  parent = f'pretrained/runs/{best["run"]}'
  tuned = ['--config.adapter.kind=lora', f'--config.init.checkpoint={parent}']
  ok(run(tmp_path, 'train', '--config=one.py', '--config.data.path=new', *tuned, '--workdir=tuned'))
  ok(run(tmp_path, 'evaluate', '--workdir=tuned'))
  (forgotten,) = other_text_csv.read(tmp_path / 'tuned')
  # The trainer has measured the parent on the same windows, in another program.
  assert math.isclose(forgotten.parent_loss, float(best['final_loss']), rel_tol=1e-5)
  assert forgotten.text == 'parent' and forgotten.loss > forgotten.parent_loss
  retrieve = ['retrieve', '--workdir=tuned']
  ok(run(tmp_path, *retrieve, '--datastore=text', '--add=new', '--output=store'))
  methods = [row.method for row in retrieval_csv.read(tmp_path / 'tuned')]
  assert sorted(methods) == ['bm25', 'bm25', 'knn', 'knn']
  asked = sentences(0, 3)[::-1].decode()
  out = ok(run(tmp_path, *retrieve, '--datastore=store', f'--ask={asked}'))
  assert '(new: ' in out and 'not tuned' not in out  # the text that was added answers
  rate = f'--runs=learning_rate={best["learning_rate"]},*'
  selected = ['--workdir=pretrained', rate, '--data=new', '--count=20', '--output=tasks']
  ok(run(tmp_path, 'label', 'select', *selected))
  asked = command(tmp_path, 'label', 'ask', '--tasks=tasks', '--annotator=ann', '--second=0')
  keys = 'kkkd' * 5
  out = ok(subprocess.run(**asked, input=keys, capture_output=True, check=False))
  found, _ = tasks.read(tmp_path / 'tasks')
  assert f'{len(found)} answers given, 0 questions left' in out
  answers = ['--tasks=tasks', '--answers=tasks/answers.jsonl', '--output=judged']
  out = ok(run(tmp_path, 'label', 'read', *answers))
  assert f'{keys[: len(found)].count("k")} kept' in out
  kept = ['--config.data.path=judged', '--config.data.labels=kept', '--config.data.batch_size=2']
  ok(run(tmp_path, 'train', '--config=one.py', *kept, *tuned, '--workdir=chosen'))
  with (tmp_path / 'chosen/results.csv').open(newline='') as file:
    row = next(csv.DictReader(file))
  # So little text is soon learned by heart: the loss may end above that of the parent.
  assert row['steps'] == '40' and math.isfinite(float(row['final_loss']))
