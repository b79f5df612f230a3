"""The files of per-step logs in a folder, and the names that the run of a file may have."""

import re
from pathlib import Path

from stability.errors import BadInput
from stability.importing import events

ENDINGS = ('.csv', '.tsv', '.jsonl', '.ndjson')
# A file that TensorBoard offers for download: a metric of a run.
_DOWNLOAD = re.compile(r'run-(?P<run>.+)-tag-(?P<tag>.+)', re.DOTALL)


def find(folder: Path) -> tuple[list[Path], list[Path]]:
  """The files of logs in a folder, and the other files; BadInput if there are no logs."""
  paths = sorted(path for path in folder.rglob('*') if path.is_file())
  found = [path for path in paths if _ending(path) in ENDINGS or events.is_event_file(path)]
  if not found:
    raise BadInput(
        f'{folder}: has no {", ".join(ENDINGS)} (or these with .gz) or TensorBoard event files'
    )
  others = set(paths) - set(found)
  return found, sorted(path for path in others if not path.name.startswith('.'))


def _ending(path: Path) -> str:
  return Path(path.name.lower().removesuffix('.gz')).suffix


def _stem(path: Path) -> str:
  ending = _ending(path)
  name = path.name[: -len('.gz')] if path.name.lower().endswith('.gz') else path.name
  return name[: len(name) - len(ending)]


def tag(file: Path) -> str | None:
  """The metric in the name of a file that TensorBoard offers for download."""
  match = _DOWNLOAD.fullmatch(_stem(file))
  return match and match['tag']


def names(root: Path, file: Path) -> tuple[str, ...]:
  """The names that the run of a file may have: the file's, its path, those of its folders.

  Event files have names of their own, so that their folder's is the run's.
  """
  match = _DOWNLOAD.fullmatch(_stem(file))
  stem = match['run'] if match else _stem(file)
  if events.is_event_file(file):
    relative = file.relative_to(root).parent if root != file else Path()
    if not relative.name:
      return (file.resolve().parent.name,)
    stem = relative.name
  elif root == file:
    return (stem, file.resolve().parent.name)
  else:
    relative = file.relative_to(root).parent / stem
  folders = [folder for folder in relative.parents if folder.name]
  return (stem, str(relative), *map(str, folders), *(folder.name for folder in folders))


def place(names: tuple[str, ...], name: str) -> str:
  """The path, in the folder of logs, of the file or folder that has this name of a run.

  Args:
    names: see `names`.
    name: one of them.
  """
  position, folders = names.index(name), (len(names) - 2) // 2
  if folders < 1:
    return name
  return names[1] if position == 0 else names[position - (position > folders + 1) * folders]
