"""The files that a folder or a pattern stands for, and those that are left out, with reasons."""

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stability.data import formats

_SHOWN = 3  # names per reason


@dataclasses.dataclass
class Listing:
  """Files to read, by name relative to their folder, and the names that are left out, by reason."""

  files: dict[str, Path]
  left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  def leave_out(self, reason: str, names: Iterable[str]) -> None:
    """Moves names from the files to those that are left out."""
    for name in names:
      self.files.pop(name, None)
      self.left_out.setdefault(reason, []).append(name)

  def to_json(self) -> dict[str, Any]:
    """The number of files read, and of those left out by reason."""
    counts = {reason: len(names) for reason, names in self.left_out.items()}
    return {'read': len(self.files), 'left_out': counts}

  def __str__(self) -> str:
    count = len(self.files)
    return f'{count:,} file{"" if count == 1 else "s"}{self.left_out_text("; left out: ")}'

  def left_out_text(self, before: str) -> str:
    """What is left out, after the text `before`; empty if nothing is."""
    parts = []
    for reason, names in self.left_out.items():
      more = ', ...' if len(names) > _SHOWN else ''
      parts.append(f'{len(names):,} {reason} ({", ".join(names[:_SHOWN])}{more})')
    return before + ', '.join(parts) if parts else ''


def of_folder(root: Path, output: Path | None = None) -> Listing:
  """The regular files below a folder, sorted by name, without hidden ones.

  Links are followed, but each folder and file is listed once, a file under a name that tells its
  format if it has one. Raises OSError for a folder that cannot be read.

  Args:
    root: the folder.
    output: a folder that the caller writes, which is left out.
  """
  listing = Listing({})
  written = None if output is None else os.path.realpath(output)
  visited: set[str] = set()
  folders, links = [root], []  # links come last, so that the names of real folders are kept
  while folders or links:
    is_link = not folders
    folder = links.pop(0) if is_link else folders.pop()
    real = os.path.realpath(folder)
    if real == written:
      listing.leave_out('output', [_name(folder, root)])
      continue
    if is_link and (real in visited or _contains(real, folder.parent)):
      listing.leave_out('linked twice or in a circle', [_name(folder, root)])
      continue
    visited.add(real)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
      path = Path(entry.path)
      if entry.name.startswith('.'):
        listing.leave_out('hidden', [_name(path, root)])
      elif os.path.isdir(path):
        (links if entry.is_symlink() else folders).append(path)
      else:
        _add(listing, _name(path, root), path)
  return _sorted_once(listing)


def lists(root: Path, folder: Path) -> bool:
  """Whether of_folder(root) lists a folder's files: it is in `root` and not hidden."""
  real = os.path.realpath(root)
  for path in map(Path, (os.path.abspath(folder), os.path.realpath(folder))):
    for parent in (path, *path.parents):
      names = path.relative_to(parent).parts
      if os.path.realpath(parent) == real and not any(name.startswith('.') for name in names):
        return True
  return False


def matching(pattern: str, output: Path | None = None) -> Listing:
  """The regular files that a glob pattern matches, each once; `**` is any number of folders.

  Those in the folder `output`, which the caller writes, are left out.
  """
  parts = Path(pattern).parts
  fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
  base = Path(*parts[:fixed])
  if '**' in parts:  # glob would follow links in circles
    listing = of_folder(base, output) if base.is_dir() else Listing({})
    for name in [name for name in listing.files if not _matches(name.split('/'), parts[fixed:])]:
      del listing.files[name]
    return listing
  listing = Listing({})
  for path in map(Path, glob.glob(pattern)):
    if path.is_dir():
      listing.leave_out('folders', [_name(path, base)])
    elif output is None or not _contains(os.path.realpath(output), path):
      _add(listing, _name(path, base), path)
  return _sorted_once(listing)


def _add(listing: Listing, name: str, path: Path) -> None:
  if not os.path.isfile(path):
    listing.leave_out('neither a file nor a folder', [name])
  else:
    listing.files[name] = path


def _sorted_once(listing: Listing) -> Listing:
  """Sorts the files by name and leaves out all names but one of the same file."""
  names: dict[str, list[str]] = {}
  for name, path in sorted(listing.files.items()):
    names.setdefault(os.path.realpath(path), []).append(name)
  listing.files = dict(sorted(listing.files.items()))
  for same in names.values():
    same.sort(key=lambda name: (formats.is_text(name), listing.files[name].is_symlink()))
    listing.leave_out('linked twice or in a circle', same[1:])
  return listing


def _contains(folder: str, other: Path) -> bool:
  """Whether a folder, given by its real path, is or contains another path."""
  return os.path.commonpath([folder, os.path.realpath(other)]) == folder


def _name(path: Path, base: Path) -> str:
  return path.relative_to(base).as_posix()


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
  if not parts:
    return not names
  if parts[0] == '**':
    return any(_matches(names[i:], parts[1:]) for i in range(len(names) + 1))
  return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])
