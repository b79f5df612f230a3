"""A process that trains runs, one population after another, until its launcher has no more.

It asks on its standard output and is told on its standard input, a JSON object a line:

  {"like": null}   which run next?         {"run": NAME, "members": N} or {"run": null}: none, end
  {"like": NAME}   which run of the same executables as NAME?    the same
  {"beat": S, "members": N}   it lives; its work last moved S seconds ago    {"alive": true}
                                           {"stop": true}: save all, and end
  {"cannot_write": [errno, why, path]}   the disk takes no more; it ends without a result
  {"bad_input": TEXT}   sweep.json was changed since the launcher read it; it ends

Of members, runs on a device, it says how many it tries, and is told how many at the most.

It ends when there are no more, unless runs are paused: then it waits for an answer to one of them,
and asks again. When its launcher dies the kernel kills it, or where it cannot, its standard input
closes, and the process ends at once; when its launcher hangs, others will have taken its runs, and
it ends in time for that. Told to stop, or by SIGTERM or SIGUSR1, it saves what it has in hand and
ends with preemption.EXIT_CODE.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn, TextIO

from absl import flags, logging

from launch.common import preemption

FLAGS = flags.FLAGS

PATIENCE_SECONDS = 1800  # for the others, while the first one prepares the data
POLL_SECONDS = 0.5  # between looks at runs that wait for a person, while there is nothing else
BEAT_SECONDS = 2
# Without a word from its launcher. With lease.FRESH_SECONDS this is less than EXPIRES_SECONDS, when
# launchers elsewhere take over its runs. No such wait where the launcher died: its pipe closes.
SILENCE_SECONDS = 40

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep.', required=True)
_DISTRIBUTED = flags.DEFINE_string(
    'distributed', None, 'Arguments of jax.distributed.initialize as JSON: share a run.'
)
_CORES = flags.DEFINE_list('cores', [], 'CPU cores to stay on.')


class Launcher:
  """The line to the launcher, kept by threads that live while the main one compiles or trains.

  Only while the main thread has runs in hand is there something to save: told to stop while it
  compiles, which nothing can interrupt, or waits, the process ends where it is.
  """

  def __init__(self, told: TextIO, requests: TextIO):
    self._told, self._requests = told, requests
    self._answers: queue.Queue = queue.Queue()
    self._line = threading.Lock()
    self._stop = threading.Event()
    self._has_runs = False
    self._members = 1
    self._heard = self._moved = time.monotonic()
    # Python runs a handler in the main thread, when that is back from the compiler. What a signal
    # writes into a pipe is there at once, whichever thread it has come to.
    self._signalled, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    handle_signals()
    for work in (self._listen, self._beat, self._await_signal):
      threading.Thread(target=work, daemon=True).start()

  def ask(self, like: str | None) -> tuple[str | None, int | None]:
    """The next run, if any, and how many there may be on a device, if that is limited."""
    self._say({'like': like})
    answer = self._answers.get()
    self._moved = time.monotonic()
    return answer['run'], answer.get('members')

  def has_interrupted(self) -> bool:
    """Whether runs in hand are to be saved and left; asked by those that have them."""
    self._moved = time.monotonic()
    self._has_runs = True
    return self._stop.is_set()

  def hands_are_empty(self) -> None:
    """Nothing is left to be saved."""
    self._has_runs = False
    self._moved = time.monotonic()
    if self._stop.is_set():
      os._exit(preemption.EXIT_CODE)

  def members_chosen(self, members: int) -> None:
    """So many runs a device are tried; told before anything can go wrong with them."""
    self._members = members
    self._say_beat()

  def cannot_write(self, error: OSError) -> NoReturn:
    """Ends the process; the launcher says why, once for all its workers."""
    self._say({'cannot_write': [error.errno, error.strerror, error.filename]})
    os._exit(1)

  def bad_input(self, error: Exception) -> NoReturn:
    """Ends the process; the launcher says why, once for all its workers."""
    self._say({'bad_input': str(error)})
    os._exit(1)

  def _say(self, message: dict) -> None:
    with self._line:
      try:
        print(json.dumps(message), file=self._requests, flush=True)
      except OSError:
        os._exit(1)  # nobody is there

  def _say_beat(self) -> None:
    still = round(time.monotonic() - self._moved, 1)
    self._say({'beat': still, 'members': self._members})

  def _listen(self) -> None:
    for line in self._told:
      self._heard = time.monotonic()
      message = json.loads(line)
      if 'run' in message:
        self._answers.put(message)
      elif 'stop' in message:
        self._end()
    os._exit(1)

  def _beat(self) -> None:
    while True:
      self._say_beat()
      if time.monotonic() - self._heard > SILENCE_SECONDS:
        os._exit(preemption.EXIT_CODE)
      time.sleep(BEAT_SECONDS)

  def _await_signal(self) -> None:
    os.read(self._signalled, 1)
    self._end()

  def _end(self) -> None:
    self._stop.set()  # before the look at _has_runs; has_interrupted does both the other way round
    if not self._has_runs:
      os._exit(preemption.EXIT_CODE)


def handle_signals() -> None:
  """Lets the signals of a notice write into the pipe, and do nothing else."""
  for number in preemption.SIGNALS:
    signal.signal(number, lambda *_: None)


def main() -> None:
  """Serves the launcher."""
  preemption.end_with_parent()
  FLAGS(sys.argv)
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  requests = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no request
  launcher = Launcher(sys.stdin, requests)

  from launch.common import environment  # what takes long to import: the launcher may die meanwhile

  environment.pin([int(core) for core in _CORES.value])

  from stability import errors, extensions
  from stability.storage import sweeps  # after the cores are set: this imports jax
  from stability.trainer import trainer

  if _DISTRIBUTED.value is not None:
    import jax

    jax.distributed.initialize(
        **json.loads(_DISTRIBUTED.value), initialization_timeout=PATIENCE_SECONDS
    )
    handle_signals()  # jax has put its own in their place
  folder = Path(_WORKDIR.value)
  sweep = None
  paused: trainer.Paused = {}
  while True:
    answered = (name for name in paused if trainer.is_answered(folder, name, paused))
    name, most = next(answered, None), None
    if name is None:
      name, most = launcher.ask(None)
    if name is None and not paused:
      return
    if name is None:
      time.sleep(POLL_SECONDS)
      continue
    try:
      if sweep is None:  # what is asked for was in it from the start
        sweep = sweeps.read_sweep(folder)
        extensions.load(folder, sweep.extensions)
    except errors.BadInput as error:
      launcher.bad_input(error)
    watch = trainer.TrainerHooks(launcher.has_interrupted, most, launcher.members_chosen)
    try:
      trainer.train_runs(
          folder, sweep, name, lambda like=name: launcher.ask(like)[0], paused, watch
      )
    except errors.CannotWrite as error:
      launcher.cannot_write(error)
    launcher.hands_are_empty()


if __name__ == '__main__':
  main()
