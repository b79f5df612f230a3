"""Token folders of passages that people have judged."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stability.data import labels
from stability.data import tokens as tokens_lib
from stability.data.tokenize.stored import StoredTokenizer
from stability.errors import BadInput
from stability.labels.answers import Decision
from stability.labels.tasks import Task


def write(
    output: Path, source: Path, tasks: Sequence[Task], decisions: Sequence[Decision]
) -> None:
  """Writes a token folder whose training documents are the judged passages, with labels.json.

  The validation text is that of the sweep, so that losses compare with those of its runs.

  Args:
    output: the folder, which must be new.
    source: the sweep's token folder, whose tokenizer is used.
    tasks: the tasks.
    decisions: on some of them; the others are left out.

  Raises:
    BadInput: there is no decision, or the token folder is invalid.
  """
  if not decisions:
    raise BadInput('--answers: holds no answers')
  opened = tokens_lib.open_tokens(source)
  tokenizer = StoredTokenizer(source, opened.meta)
  by_name = {task.task: task for task in tasks}
  chosen = [by_name[decision.task] for decision in decisions]
  train, lengths = tokenizer.pack([task.text.encode(task.encoding) for task in chosen])
  arrays = {
      'train': train.astype(opened.train.dtype),
      'validation': np.asarray(opened.validation[:]),
  }
  kept = {key: opened.meta['sha256'][key] for key in opened.meta['sha256'] if key == 'tokenizer'}
  meta = opened.meta | {
      'sha256': tokens_lib.digests(arrays) | kept,
      'documents': opened.meta['documents']
      | {
          'train': [
              [f'{task.document}[{task.start}:{task.end}]', length]
              for task, length in zip(chosen, lengths, strict=True)
          ]
      },
  }
  meta |= tokens_lib.statistics(arrays, meta['vocabulary_size'])
  files = [(path.name, path.read_bytes()) for path in source.glob('tokenizer.[jm]*')]
  partial = output.with_name(f'.{output.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    tokens_lib.write(partial, meta, arrays, files[0] if files else None)
    labels.write(partial, [_entry(decision) for decision in decisions])
    partial.rename(output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _entry(decision: Decision) -> dict:
  opinions = [[answer.annotator, answer.label] for answer in decision.opinions]
  return {
      'task': decision.task,
      'label': decision.label,
      'weight': decision.weight,
      'opinions': opinions,
  }
