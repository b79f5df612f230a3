"""Leases, which let several launchers, on one or more machines, share the runs of a workdir.

  DIR/runs/NAME/lease.N.json   the N-th lease on a run; the highest N counts

A lease is created by link(2), which is atomic and fails if the file exists, so only one launcher
gets the N-th lease. To take over from a dead holder, a launcher creates the next lease. A lease is
never replaced, and all leases on a run are deleted together once it has a result, so a launcher
that has an outdated view of the folder finds that its number is taken. No file is locked, so leases
also work over NFS.

A holder refreshes its leases by setting their modification time, by the file server's clock. A
holder on this machine counts as dead when its process has ended; a holder on another machine counts
as dead when it has not refreshed its lease for EXPIRES_SECONDS, and so does another user's here if
/proc hides processes (hidepid).
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from stability.errors import BadInput, writing

Json = dict[str, Any]

REFRESH_SECONDS = 5  # between refreshes of a lease
# Twelve refreshes, so that a slow file server or machine costs no holder its lease.
EXPIRES_SECONDS = 60
# A holder that has not refreshed for this long stops confirming its leases to its workers, which
# then end before EXPIRES_SECONDS are over (launch/workers/worker.py).
FRESH_SECONDS = 10
POLL_SECONDS = 0.2  # while waiting for a lease that another holder has
_NO_LINKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM)


@dataclasses.dataclass(frozen=True)
class Lease:
  """A lease that this process holds."""

  folder: Path
  number: int

  @property
  def path(self) -> Path:
    return _path(self.folder, self.number)

  def refresh(self) -> bool:
    """Renews the lease; False if another holder has taken over."""
    try:
      os.utime(self.path)
    except FileNotFoundError:
      return False
    return not _path(self.folder, self.number + 1).exists()

  def release(self) -> None:
    """Ends the lease: the next is available at once, or on expiry if the disk cannot be written."""
    with contextlib.suppress(OSError):
      os.utime(self.path, (0, 0))

  def remove(self) -> None:
    """Deletes all leases on the folder, whose work is done; the one that counts is deleted last.

    A launcher that still acquires a lease, from an outdated view of the folder, finds the result.
    """
    for number in [n for n in _numbers(self.folder) if n <= self.number]:
      _path(self.folder, number).unlink(missing_ok=True)


def try_acquire(folder: Path, trainer: int | None = None) -> Lease | None:
  """Acquires the next lease on a folder; returns None if another holder has the current one.

  Args:
    folder: an existing folder, such as that of a run.
    trainer: ID of a process on this machine that works under the lease. The lease is valid while
      this process lives, even if its holder is dead; a request for the lease then kills the
      process.

  Raises:
    BadInput: the file system has no hard links.
  """
  own = _identity(trainer)
  temporary = folder / f'.lease.{own["id"]}'
  with writing(temporary):
    temporary.write_text(json.dumps(own))
  try:
    number = max(_numbers(folder), default=0)
    before = _read(folder, number)
    if number and (before is None or not _is_free(*before, temporary.stat().st_mtime)):
      return None
    _link(temporary, _path(folder, number + 1))
  except FileExistsError:
    return None
  except FileNotFoundError:  # another launcher has removed stale leases, `temporary` with them
    if folder.exists():
      return None
    raise
  finally:
    temporary.unlink(missing_ok=True)
  lease = Lease(folder, number + 1)
  if number:  # the previous lease must not have been removed and created again meanwhile
    now = _read(folder, number)
    if now is None or now[0].get('id') != before[0].get('id'):
      lease.path.unlink(missing_ok=True)
      return None
  return lease


def holder(folder: Path) -> Json | None:
  """The known facts (host, pid, ...) on the holder of the lease on a folder; None if it is free."""
  number = max(_numbers(folder), default=0)
  found = _read(folder, number) if number else None
  if found is None or _is_free(*found, _now(folder)):
    return None
  return found[0]


def remove_stale(folder: Path) -> None:
  """Deletes the leases of dead holders in a folder whose work is done."""
  stale = [path for path in folder.iterdir() if is_lease(path)]
  if stale and holder(folder) is None:
    for path in stale:
      path.unlink(missing_ok=True)


class LeaseManager:
  """Acquires leases and refreshes them until they are released. A context manager."""

  def __init__(self):
    self._held: dict[Path, Lease] = {}
    self._lost: set[Path] = set()
    self._lock = threading.Lock()
    self._refreshed = time.monotonic()
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._refresh, daemon=True)

  def __enter__(self) -> Self:
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    """Releases the leases that are still held."""
    self._stop.set()
    self._thread.join()
    for folder in list(self._held):
      self.release(folder)

  def try_acquire(self, folder: Path, trainer: int | None = None) -> bool:
    """Acquires the lease on a folder if it is free; returns whether it did. See try_acquire."""
    lease = try_acquire(folder, trainer)
    if lease is not None:
      with self._lock:
        self._held[folder] = lease
    return lease is not None

  def release(self, folder: Path) -> None:
    """Releases the lease on a folder."""
    with self._lock:
      if lease := self._pop(folder):
        lease.release()

  def remove(self, folder: Path) -> None:
    """Deletes the leases on a folder, whose work is done."""
    with self._lock:
      if lease := self._pop(folder):
        lease.remove()

  def _pop(self, folder: Path) -> Lease | None:
    self._lost.discard(folder)
    return self._held.pop(folder, None)

  def lost(self) -> set[Path]:
    """The folders whose lease another holder has taken over."""
    with self._lock:
      return set(self._lost)

  def is_fresh(self) -> bool:
    """Whether the leases were refreshed recently, so that others see that this holder is alive."""
    return time.monotonic() - self._refreshed < FRESH_SECONDS

  def _refresh(self) -> None:
    while not self._stop.wait(REFRESH_SECONDS):
      has_failed = False
      for folder in list(self._held):
        try:
          with self._lock:  # a lease must not be refreshed after its release
            if folder in self._held and not self._held[folder].refresh():
              self._lost.add(folder)
        except OSError:  # the file server may come back; until then, is_fresh is soon false
          has_failed = True
      if not has_failed:
        self._refreshed = time.monotonic()


@contextlib.contextmanager
def acquire(folder: Path, on_wait: Callable[[Json], None] = lambda holder: None) -> Iterator[None]:
  """A context that holds the lease on a folder; waits for the lease if necessary.

  A folder that does not exist is created, and deleted again if it stays empty.

  Args:
    folder: the folder to lease.
    on_wait: called once with the current holder if another one has the lease.
  """
  created = [path for path in (folder, *folder.parents) if not path.exists()]
  has_waited = False
  with LeaseManager() as manager:
    try:
      while True:
        with contextlib.suppress(FileNotFoundError):  # deleted by the holder that had created it
          with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
          if manager.try_acquire(folder):
            break
          if not has_waited and (other := holder(folder)):
            on_wait(other)
            has_waited = True
        time.sleep(POLL_SECONDS)
      yield
    finally:
      manager.remove(folder)
      with contextlib.suppress(OSError):  # not empty
        for path in created:
          path.rmdir()


def is_lease(path: Path) -> bool:
  """Whether a file is a lease, complete or not."""
  return path.name.startswith(('lease.', '.lease.'))


def _link(temporary: Path, path: Path) -> None:
  try:
    with writing(path):
      os.link(temporary, path)
  except OSError as error:
    if error.errno not in _NO_LINKS:
      raise
    raise BadInput(
        f'{path.parent}: its file system has no hard links, which launchers need to share runs'
    ) from error


def _path(folder: Path, number: int) -> Path:
  return folder / f'lease.{number}.json'


def _numbers(folder: Path) -> list[int]:
  """The numbers of the leases on a folder, in ascending order."""
  parts = (entry.split('.') for entry in os.listdir(folder) if entry.startswith('lease.'))
  return sorted(int(p[1]) for p in parts if len(p) == 3 and p[1].isdecimal() and p[2] == 'json')


def _read(folder: Path, number: int) -> tuple[Json, float] | None:
  """A lease and the time of its last refresh, or None; opening the file avoids the cache of NFS."""
  try:
    with _path(folder, number).open() as file:
      seconds = os.fstat(file.fileno()).st_mtime
      text = file.read()
  except FileNotFoundError:
    return None
  try:
    return dict(json.loads(text)), seconds
  except (ValueError, TypeError):  # cut off by a power loss: only its age counts
    return {}, seconds


def _now(folder: Path) -> float:
  """The time by the file server's clock, or by this machine's if the folder cannot be written."""
  try:
    with tempfile.TemporaryFile(prefix='.lease.', dir=folder) as file:
      os.utime(file.fileno())
      return os.fstat(file.fileno()).st_mtime
  except OSError:
    return time.time()


def _is_free(lease: Json, refreshed: float, now: float) -> bool:
  """Whether a lease was released or its holder is dead; kills a trainer that outlives its holder.

  While the trainer still lives, the lease is not free.
  """
  if refreshed == 0:  # released
    return True
  has_expired = now - refreshed > EXPIRES_SECONDS
  if lease.get('machine') != _machine():
    return has_expired
  is_alive = _is_alive(lease['pid'], lease['started'])
  if is_alive is False and lease['trainer'] is not None:
    is_alive = _is_alive(*lease['trainer'])
    if is_alive:
      with contextlib.suppress(OSError):
        os.kill(lease['trainer'][0], signal.SIGKILL)
  return has_expired if is_alive is None else not is_alive


# Processes.


def _identity(trainer: int | None) -> Json:
  pid = os.getpid()
  return {
      'id': uuid.uuid4().hex,
      'host': _host(),
      'machine': _machine(),
      'pid': pid,
      'started': _started(pid),
      'trainer': None if trainer is None else [trainer, _started(trainer)],
  }


@functools.cache
def _machine() -> str:
  """An identifier of this boot and this container, within which process IDs are unique."""
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return _host()


def _host() -> str:
  """The name of this machine, or the number of its network card if it has no name."""
  try:
    return socket.gethostname() or str(uuid.getnode())
  except OSError:
    return str(uuid.getnode())


def _started(pid: int) -> str | None:
  """The start time of a process, in clock ticks; None if it is dead or /proc is not available."""
  try:
    state, *rest = Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
  except OSError:
    return None
  return None if state in 'ZX' else rest[18]


def _is_alive(pid: int, started: str | None) -> bool | None:
  """Whether a process lives; None if another user's process has its ID, whose start is hidden."""
  has_proc = os.path.exists('/proc/self/stat')
  if has_proc and (started is None or os.access(f'/proc/{pid}/stat', os.R_OK)):
    return started is not None and _started(pid) == started
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:  # /proc may be mounted with hidepid
    return None if has_proc else True
  return not has_proc
