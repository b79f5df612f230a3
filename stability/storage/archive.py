"""One file with what reports and predictions read of a workdir, to keep or to send.

The archive holds sweep.json, the forks, the config, rows, result, alarms and actions of each run,
the copied sources of extensions, results.csv, the targets of predictions and the report. It leaves
out the text, checkpoints, TensorBoard's files, and what belongs to processes at work (leases,
requests, jobs, logs).
"""

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from stability.errors import BadInput
from stability.storage import files, leases, sweeps

SUFFIXES = ('.tar.gz', '.tgz')
# result.json first: where it is in the archive, the other files are those of a run that has ended.
_OF_A_RUN = ('result.json', '*.json', '*.jsonl')
_PATTERNS = (
    'sweep.json',
    *(f'runs/*/{pattern}' for pattern in _OF_A_RUN),
    'forks/*.json',
    'extensions/**/*',
    'results.csv',
    'targets.json',
    'report/**/*',
)


def write(workdir: Path, output: Path) -> int:
  """Writes the archive of a sweep, finished or not; equal workdirs of one name give equal bytes.

  The files are in a folder that has the name of the workdir.

  Args:
    workdir: folder of the sweep; nothing is written to it.
    output: the file to write, as a whole or not at all.

  Returns:
    The number of files in the archive.

  Raises:
    BadInput: the workdir holds no sweep, or a link or file that cannot be read; `output` has
      another suffix.
  """
  if not output.name.endswith(SUFFIXES):
    raise BadInput(f'--output={output}: must end with {" or ".join(SUFFIXES)}')
  if output.is_dir():
    raise BadInput(f'--output={output}: is a folder')
  sweeps.read_sweep(workdir)
  name, count = workdir.resolve().name or 'sweep', 0
  with (
      files.open_atomic(output) as file,
      gzip.GzipFile('', 'wb', fileobj=file, mtime=0) as compressed,
      tarfile.open(fileobj=compressed, mode='w', format=tarfile.PAX_FORMAT) as archive,
  ):
    for path in _selected(workdir):
      try:
        content = path.read_bytes()
      except FileNotFoundError:  # a process at work has just removed it
        continue
      except OSError as error:
        raise BadInput(f'{path}: cannot be read: {error.strerror}') from error
      member = tarfile.TarInfo(f'{name}/{path.relative_to(workdir).as_posix()}')
      member.size, member.mode = len(content), 0o644
      archive.addfile(member, io.BytesIO(content))
      count += 1
  return count


def _selected(workdir: Path) -> Iterator[Path]:
  """The files to archive, each once, in an order that depends on their names alone."""
  found: set[Path] = set()
  for pattern in _PATTERNS:
    for path in sorted(workdir.glob(pattern)):
      names = path.relative_to(workdir).parts
      is_hidden = any(name.startswith('.') for name in names)
      if path in found or is_hidden or leases.is_lease(path) or path.name.endswith(SUFFIXES):
        continue
      for depth in range(1, len(names) + 1):
        if (linked := workdir.joinpath(*names[:depth])).is_symlink():
          raise BadInput(f'{linked}: must not be a link')
      if path.is_file():
        found.add(path)
        yield path
