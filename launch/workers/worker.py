"""A worker process, which trains one population of runs after another for its launcher.

It writes requests to its standard output and reads replies from its standard input, one JSON object
per line:

  {"like": null}   asks for a run          {"run": NAME, "members": N, "runs": K}, or {"run": null}
                                           if none is left
  {"like": NAME}   asks for a run with the static config of NAME; the same reply
  {"beat": S, "members": N, "phase": P}    heartbeat; S: seconds since the last step of training or
                                           end of a compilation; P: starting, reading text,
                                           compiling or training
                                           {"alive": true}
                                           {"stop": true}, at any time: save everything and exit
  {"saving": [N, N]}                       the worker was told to end and now saves runs whose
                                           states have these bytes
  {"cannot_write": [errno, reason, path]}  the disk cannot be written to; the worker exits and
                                           leaves no result
  {"bad_input": TEXT}                      there is no device as JAX_PLATFORMS asks for, or
                                           sweep.json has changed since the launcher read it; the
                                           worker exits

`members` is the number of runs per device: the worker reports how many it tries, and the launcher
replies with an upper limit. `runs` is the number of runs with the static config of NAME, itself
included, that wait for a worker of this launcher: a population needs no more slots.

The worker exits when the launcher has no more runs, unless some runs of the worker are paused: then
it checks those for an answer and asks the launcher again. If the launcher dies, the kernel kills
the worker; where the kernel cannot, the worker's standard input closes and the worker exits. If the
launcher hangs, other launchers take over its runs, and the worker exits before they do. On
{"stop": true} and the signals of launch.common.preemption it saves its runs and exits with
preemption.EXIT_CODE. If several processes share a run, all of their workers do so, whichever is
told.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from absl import flags, logging

from launch.common import preemption

if typing.TYPE_CHECKING:  # importing them imports jax
  from launch.workers.peers import Peers
  from stability.devices.layout import Layout

FLAGS = flags.FLAGS

PATIENCE_SECONDS = 1800  # how long to wait for the first process of a run to prepare the data
POLL_SECONDS = 0.5  # between checks of paused runs while there is nothing to train
BEAT_SECONDS = 2  # between heartbeats
# A launcher that has sent nothing for this long counts as dead. Together with leases.FRESH_SECONDS,
# this is less than EXPIRES_SECONDS, after which launchers on other machines take over the runs.
SILENCE_SECONDS = 40

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the sweep.', required=True)
_DISTRIBUTED = flags.DEFINE_string(
    'distributed',
    None,
    'Arguments of jax.distributed.initialize as JSON; the processes train one run together.',
)
_CORES = flags.DEFINE_list('cores', [], 'CPU cores to run on.')


class Launcher:
  """The connection to the launcher.

  Threads serve it while the main thread compiles or trains. Only while the main thread has runs
  loaded is there something to save. If the worker is told to stop at any other time, even during a
  compilation, which cannot be interrupted, the process exits at once.
  """

  def __init__(self, replies: TextIO, requests: TextIO):
    self._replies, self._requests = replies, requests
    self._runs: queue.Queue = queue.Queue()  # replies to `ask`
    self._write_lock = threading.Lock()
    self._stop = threading.Event()
    self._has_runs = False
    self._peers: Peers | None = None  # until the run that they share is trained
    self._members = 1
    self._phase = 'starting'
    self._last_reply = self._last_progress = time.monotonic()
    # Python runs a signal handler in the main thread, and only once the compiler returns.
    # The wakeup file descriptor is written to at once, whatever thread receives the signal.
    self._signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    ignore_signals()
    for serve in (self._read_replies, self._send_heartbeats, self._await_signal):
      threading.Thread(target=serve, daemon=True).start()

  def ask(self, like: str | None) -> tuple[str | None, int | None, int]:
    """Asks for a run, with the static config of the run `like` if that is given.

    Returns:
      The name of the run, None if there is none; the maximum number of runs per device, None if it
      is not limited; the number of runs to train together.
    """
    self._send({'like': like})
    reply = self._runs.get()
    self.made_progress()
    if like is None and reply['run'] is not None:
      self._enter('reading text')
    return reply['run'], reply.get('members'), reply.get('runs', 1)

  def made_progress(self) -> None:
    """Notes that the main thread does not hang."""
    self._last_progress = time.monotonic()

  def interrupted(self) -> bool:
    """Whether the main thread must save the loaded runs. Every call counts as progress."""
    self.made_progress()
    self._enter('training')
    self._has_runs = True
    return self._stop.is_set()

  def share_run(self, peers: 'Peers') -> None:
    """Notes that the workers of other processes train the run too and must end with this one."""
    self._peers = peers
    if self._stop.is_set():  # told meanwhile, and exiting
      peers.end_all()

  def end_if_told(self) -> None:
    """Exits if training has failed because a worker that shares the run was told to stop."""
    if self._peers is not None:
      self._peers.end_if_told()

  def released_runs(self, has_saved: bool) -> None:
    """Notes that no run is loaded any more; exits if this or another worker was told to stop.

    Args:
      has_saved: whether the runs were saved because a worker that shares them was told to stop.
    """
    self._peers = None
    self._has_runs = False
    self.made_progress()
    if has_saved or self._stop.is_set():
      os._exit(preemption.EXIT_CODE)

  def report_members(self, members: int) -> None:
    """Reports the number of runs per device, before a compilation, which may exhaust the memory."""
    self._members = members
    self._phase = 'compiling'
    self.made_progress()
    self._send_heartbeat()

  def report_saving(self, sizes: Sequence[int]) -> None:
    """Reports the bytes of the states to save, so that the launcher gives the time for them."""
    self._send({'saving': sizes})

  def cannot_write(self, error: OSError) -> NoReturn:
    """Reports a disk that cannot be written to, which the launcher prints once, and exits."""
    self._send({'cannot_write': [error.errno, error.strerror, error.filename]})
    os._exit(1)

  def bad_input(self, error: Exception) -> NoReturn:
    """Reports input that no worker can use, which the launcher prints once, and exits."""
    self._send({'bad_input': str(error)})
    os._exit(1)

  def _send(self, message: dict) -> None:
    with self._write_lock:
      try:
        print(json.dumps(message), file=self._requests, flush=True)
      except OSError:
        os._exit(1)  # the launcher is dead

  def _enter(self, phase: str) -> None:
    if phase != self._phase:
      self._phase = phase
      self._send_heartbeat()

  def _send_heartbeat(self) -> None:
    idle = round(time.monotonic() - self._last_progress, 1)
    self._send({'beat': idle, 'members': self._members, 'phase': self._phase})

  def _read_replies(self) -> None:
    for line in self._replies:
      self._last_reply = time.monotonic()
      message = json.loads(line)
      if 'run' in message:
        self._runs.put(message)
      elif 'stop' in message:
        self._request_stop()
    os._exit(1)  # the launcher is dead

  def _send_heartbeats(self) -> None:
    while True:
      self._send_heartbeat()
      if time.monotonic() - self._last_reply > SILENCE_SECONDS:
        os._exit(preemption.EXIT_CODE)
      time.sleep(BEAT_SECONDS)

  def _await_signal(self) -> None:
    os.read(self._signals, 1)
    self._request_stop()

  def _request_stop(self) -> None:
    # This method sets _stop and then reads _has_runs; `interrupted` sets _has_runs and then reads
    # _stop. So at least one of the two threads sees both set.
    self._stop.set()
    if not self._has_runs:
      if self._peers is not None:
        self._peers.end_all()
      os._exit(preemption.EXIT_CODE)


def ignore_signals() -> None:
  """Makes preemption signals do nothing but write to the wakeup file descriptor."""
  preemption.handle(lambda *_: None)


def main(make_layout: 'Callable[..., Layout] | None' = None) -> None:
  """Serves the launcher.

  Args:
    make_layout: replaces stability.devices.make_layout.make_layout.
  """
  preemption.end_with_parent()
  FLAGS(sys.argv)
  logging.use_absl_handler()
  logging.set_verbosity(logging.WARNING)
  requests = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is not a request
  launcher = Launcher(sys.stdin, requests)

  # The launcher may die during the imports below, which take seconds: they come after Launcher.
  from launch.common import environment

  environment.pin([int(core) for core in _CORES.value])

  import jax  # which counts the cores when it starts

  from stability import errors, extensions
  from stability.devices import make_layout as make_layout_lib
  from stability.storage import sweeps
  from stability.trainer.hooks import TrainerHooks
  from stability.trainer.paused import PausedRuns
  from stability.trainer.trainer import train_runs

  # Called at the end of each compilation and of its parts.
  jax.monitoring.register_event_duration_secs_listener(lambda *_, **__: launcher.made_progress())
  if _DISTRIBUTED.value is not None:
    jax.distributed.initialize(
        **json.loads(_DISTRIBUTED.value), initialization_timeout=PATIENCE_SECONDS
    )
    ignore_signals()  # jax has replaced the handlers
    if jax.process_index() == 0:
      said = f'{jax.process_count()} processes share the run, with {jax.device_count()} devices'
      print(said, file=sys.stderr, flush=True)
    from launch.workers import peers

    launcher.share_run(peers.Peers())
  try:
    environment.check_devices()
  except errors.BadInput as error:
    launcher.bad_input(error)
  folder = Path(_WORKDIR.value)
  sweep = None
  paused = PausedRuns(folder)
  max_members: dict[str, int | None] = {}  # by run, as the launcher said when it assigned the run

  def checked(name: str | None) -> str | None:
    """The run, unless sweep.json has changed so that the run cannot be trained: then exits."""
    try:
      if name is not None:
        sweeps.check_run(folder, name, sweep.runs.get(name))
    except errors.BadInput as error:
      launcher.bad_input(error)
    return name

  def ask(like: str | None) -> tuple[str | None, int]:
    """Launcher.ask, which keeps the maximum number of runs per device."""
    name, members, runs = launcher.ask(like)
    if name is not None:
      max_members[name] = members
    return name, runs

  while True:
    name, runs = next(iter(paused.ready()), None), 1
    if name is None:
      name, runs = ask(None)
    if name is None and not paused.deadlines:
      return
    if name is None:
      time.sleep(POLL_SECONDS)
      continue
    try:
      if sweep is None:  # read once: later runs are forks, which it does not list
        sweep = sweeps.read_sweep(folder)
        sweeps.check_data(folder, sweep)
        extensions.load(folder, sweep.extensions)
    except errors.BadInput as error:
      launcher.bad_input(error)
    hooks = TrainerHooks(
        make_layout=make_layout or make_layout_lib.make_layout,
        interrupted=launcher.interrupted,
        on_save=launcher.report_saving,
        runs=runs,
        max_members=max_members[name],
        on_members=launcher.report_members,
    )
    try:
      next_run = lambda like=name: checked(ask(like)[0])  # noqa: E731
      is_finished = train_runs(folder, sweep, checked(name), next_run, paused, hooks)
    except errors.CannotWrite as error:
      launcher.cannot_write(error)
    except errors.BadInput as error:
      launcher.bad_input(error)
    except Exception:
      launcher.end_if_told()
      raise
    if not is_finished and _DISTRIBUTED.value is not None:
      peers.let_others_end()
    launcher.released_runs(has_saved=not is_finished)


if __name__ == '__main__':
  main()
