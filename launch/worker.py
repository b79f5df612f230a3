"""A process that trains runs, one population after another, until its launcher has no more.

It asks on its standard output and is told on its standard input, a JSON object a line:

  {"like": null}   which run next?                 {"run": NAME} or {"run": null}: none, end
  {"like": NAME}   which run of the same executables as NAME?    the same
  {"cannot_write": [errno, why, path]}   the disk takes no more; it ends without a result

It ends when there are no more, unless runs are paused: then it waits for an answer to one of them,
and asks again. When its launcher dies its standard input closes, and the process ends at once.
"""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path

from absl import flags, logging

from launch import environment

FLAGS = flags.FLAGS

PATIENCE_SECONDS = 1800  # for the others, while the first one prepares the data
POLL_SECONDS = 0.5  # between looks at runs that wait for a person, while there is nothing else

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep.', required=True)
_DISTRIBUTED = flags.DEFINE_string(
    'distributed', None, 'Arguments of jax.distributed.initialize as JSON: share a run.'
)
_CORES = flags.DEFINE_list('cores', [], 'CPU cores to stay on.')


def main() -> None:
  """Serves the launcher."""
  FLAGS(sys.argv)
  environment.pin([int(core) for core in _CORES.value])
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  answers = _answers()
  requests = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no request

  def ask(like: str | None) -> str | None:
    print(json.dumps({'like': like}), file=requests, flush=True)
    return answers.get()['run']

  from stability import errors, population, workdir  # after the cores are set: this imports jax

  if _DISTRIBUTED.value is not None:
    import jax

    jax.distributed.initialize(
        **json.loads(_DISTRIBUTED.value), initialization_timeout=PATIENCE_SECONDS
    )
  folder = Path(_WORKDIR.value)
  paused: population.Paused = {}
  while True:
    answered = (name for name in paused if population.is_answered(folder, name, paused))
    name = next(answered, None) or ask(None)
    if name is None and not paused:
      return
    if name is None:
      time.sleep(POLL_SECONDS)
      continue
    sweep = workdir.read_sweep(folder)
    try:
      population.train_population(folder, sweep, name, lambda like=name: ask(like), paused)
    except errors.CannotWrite as error:  # the launcher says so, for all its workers
      told = {'cannot_write': [error.errno, error.strerror, error.filename]}
      print(json.dumps(told), file=requests, flush=True)
      os._exit(1)


def _answers() -> queue.Queue:
  """The launcher's answers, read by a thread that ends the process with the launcher."""
  answers: queue.Queue = queue.Queue()

  def listen() -> None:
    for line in sys.stdin:
      answers.put(json.loads(line))
    os._exit(1)

  threading.Thread(target=listen, daemon=True).start()
  return answers


if __name__ == '__main__':
  main()
