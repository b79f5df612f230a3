"""Options, variants and terms that a config file adds to those of the package.

The config file defines get_extensions(), which returns a list of

  integer, number, switch, choice, text(...)   options (stability/config/field.py)
  variant(option, name, make, ...)             another value of a choice option
  term(place, name, make, ...)                 another term of a place (stability/variants.py)

The table of the option or place says with which arguments `make` is called: optimizer.name in
stability/optim/optimizers.py, model.attention in stability/model/attention.py, objective in
stability/step/objective.py ...

The config file and the user's modules that it imports are copied into the workdir: files and whole
packages, and of `configs` and other folders without __init__.py the modules that are named. Workers
and resumed sweeps run that copy. Programs that only read a workdir run none of it: they register
the options that sweep.json records. This module imports no jax.
"""

import ast
import dataclasses
import hashlib
import importlib.util
import os
import runpy
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import machinery
from pathlib import Path
from typing import Any

from stability import variants
from stability.config import fields
from stability.config.field import Field, choice, integer, number, switch, text
from stability.errors import BadInput

__all__ = ['choice', 'integer', 'number', 'switch', 'term', 'text', 'variant']

Json = dict[str, Any]

_ROOT = Path(__file__).absolute().parents[1]  # of the package, launch and configs
_INSTALLED = {'site-packages', 'dist-packages'}  # folders of installed packages


@dataclasses.dataclass(frozen=True)
class _Variant:
  option: str
  name: str
  variant: variants.Variant


@dataclasses.dataclass(frozen=True)
class _Term:
  place: str
  term: variants.Term


Entry = Field | _Variant | _Term

# The record of a sweep's extensions in sweep.json: key -> type.
_RECORD_TYPES = {
    'folder': str,
    'file': str,
    'files': list,
    'sha256': str,
    'options': list,
    'values': dict,
}
# One that sweeps begun by older code lack: what the probes of the extensions measure, by name.
PROBES = 'probes'


def variant(
    option: str, name: str, make: Callable[..., Any], source: str = '', reads: Sequence[str] = ()
) -> Entry:
  """An entry that adds a value to a choice option, such as NAME to optimizer.name.

  Args:
    option: the choice option.
    name: the new value.
    make: the function that the option's table holds; a comment there gives its arguments.
    source: paper or link.
    reads: options that `make` reads.
  """
  return _Variant(option, name, variants.Variant(make, source, tuple(reads)))


def term(
    place: str,
    name: str,
    make: Callable[..., Any],
    source: str = '',
    when: str | None = None,
    reads: Sequence[str] = (),
    needs: Sequence[str] = (),
) -> Entry:
  """An entry that adds a term to a place.

  Args:
    place: initialisation, objective, gradient, wrapper, after_update or probes.
    name: the name under which the term is logged.
    make: the function that the place calls.
    source: paper or link.
    when: the switch or choice option that turns the term on, or option=value; None: always on.
    reads: options that `make` reads.
    needs: measurements that the term needs from every step, quiet ones included.
  """
  return _Term(place, variants.Term(name, make, source, when, tuple(reads), tuple(needs)))


@dataclasses.dataclass(frozen=True)
class Extensions:
  """The options and values that a config file adds, and the source files that define them."""

  file: str  # the config file's name, a key of `files`
  files: Mapping[str, bytes]  # relative path -> content
  options: tuple[Field, ...]
  values: Mapping[str, tuple[str, ...]]  # choice option -> the values added to it

  @property
  def sha256(self) -> str:
    """The SHA-256 digest of the names and contents of all files."""
    return _sha256(self.files)

  @property
  def folder(self) -> str:
    """The folder of the copied files, relative to the workdir."""
    return f'extensions/{self.sha256[:12]}'

  def to_json(self) -> Json:
    """The record of the extensions in sweep.json, without the names of probes; see `probes`."""
    return {
        'folder': self.folder,
        'file': self.file,
        'files': sorted(self.files),
        'sha256': self.sha256,
        'options': [option.to_json() for option in self.options],
        'values': {option: list(names) for option, names in self.values.items()},
    }


def reset() -> None:
  """Removes all entries that are installed in this process."""
  fields.unregister_all()
  variants.remove_added()


def of_config(file: Path, entries: Any) -> Extensions:
  """Installs the entries that get_extensions of a config file returned, and reads its sources."""
  options, values = _install(entries)
  files = {name: path.read_bytes() for name, path in _sources(file).items()}
  return Extensions(file.name, files, options, values)


def _install(entries: Any) -> tuple[tuple[Field, ...], dict[str, tuple[str, ...]]]:
  """Replaces the installed entries; returns the added options, and added values by option."""
  reset()
  if not isinstance(entries, Iterable):
    raise BadInput('get_extensions: must return a list of entries')
  entries = list(entries)
  for entry in entries:
    if not isinstance(entry, Entry):
      raise BadInput(
          f'get_extensions: returns a {type(entry).__name__}; entries are made by'
          ' stability.extensions: number, choice ... variant, term'
      )
  options = [entry for entry in entries if isinstance(entry, Field)]
  for option in options:
    fields.register(option)
  values: dict[str, tuple[str, ...]] = {}
  for entry in entries:
    if isinstance(entry, _Variant):
      _check_choice(entry.option, entry.name)
      _check_reads(f'variant {entry.name!r}', entry.variant.reads)
      variants.add_variant(entry.option, entry.name, entry.variant)
      values[entry.option] = (*values.get(entry.option, ()), entry.name)
    elif isinstance(entry, _Term):
      _check_when(entry.term)
      _check_reads(f'term {entry.term.name!r}', entry.term.reads)
      variants.add_term(entry.place, entry.term)
  return tuple(options), values


def _check_choice(option: str, name: str) -> None:
  field = fields.FIELDS.get(option)
  if field is None or field.kind != 'choice':
    raise BadInput(f'variant {name!r}: config.{option} is not a choice option')
  if field.check(name):
    raise BadInput(f'variant {name!r}: config.{option} already has this value')


def _check_when(term: variants.Term) -> None:
  if term.when is None:
    return
  option = term.when.partition('=')[0]
  field = fields.FIELDS.get(option)
  if field is None or not (field.switch or field.kind == 'choice'):
    raise BadInput(f'term {term.name!r}: when={term.when!r} must name a switch or a choice')


def _check_reads(entry: str, reads: Sequence[str]) -> None:
  for option in reads:
    if option not in fields.FIELDS:
      raise BadInput(f'{entry}: reads={option!r}: must be an option')


def _sources(file: Path) -> dict[str, Path]:
  """The config file and the user's modules that it imports: relative path -> file.

  Raises:
    BadInput: one of them cannot be copied.
  """
  sources = {file.name: file}
  pending = [file.name]
  while pending:
    importer = pending.pop()
    package = importer.rpartition('/')[0].replace('/', '.')
    for name in sorted(_imported(ast.parse(sources[importer].read_bytes()), package)):
      for relative, path in _module_files(name).items():
        if relative not in sources:
          sources[relative] = path
          pending.append(relative)
        elif not path.samefile(sources[relative]):
          raise BadInput(
              f'imports {name}, whose file {path} has the name of {sources[relative]}, beside which'
              ' it cannot be copied; rename one'
          )
  return sources


def _imported(tree: ast.AST, package: str) -> set[str]:
  """The dotted names that a module of a package imports; the last may be no module.

  The name in a call of import_module is one of them if it is written out.
  """
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      above = package.split('.')[: len(package.split('.')) + 1 - node.level] if node.level else []
      parts = [*above, *filter(None, [node.module])]
      names |= {'.'.join([*parts, alias.name]) for alias in node.names}
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
      names |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
  return {name for name in names if isinstance(name, str)}


def _module_files(name: str) -> dict[str, Path]:
  """The source files of a module, by the paths under which it is imported; only the user's own.

  Those of Python, of installed packages, of stability and of launch are not. Of a package, all
  files count; of a folder without __init__.py and of a `configs`, only the module that is named.
  All modules of `configs` count: a user may keep files among those of this project, too.
  """
  files: dict[str, Path] = {}
  parts = name.split('.')
  for length in range(1, len(parts) + 1):
    spec = _find_spec('.'.join(parts[:length]))
    if spec is not None and spec.origin is None and spec.submodule_search_locations is not None:
      continue  # a folder without __init__.py
    if spec is None or not spec.has_location:
      break
    path = Path(spec.origin).absolute()
    if parts[0] != 'configs' and _is_installed(path):
      break
    _check_source(name, path)
    is_package = path.stem == '__init__'
    folder = parts[: length if is_package else length - 1]
    files['/'.join([*folder, path.name])] = path
    if parts[:length] == ['configs']:
      continue
    for found in sorted(path.parent.rglob('*')) if is_package else ():
      if found.name.endswith(('.py', *machinery.EXTENSION_SUFFIXES)):
        _check_source(name, found)
        files['/'.join([*folder, *found.relative_to(path.parent).parts])] = found
    break
  return files


def _find_spec(name: str) -> machinery.ModuleSpec | None:
  try:
    return importlib.util.find_spec(name)
  except (ImportError, ValueError):
    return None


def _is_installed(path: Path) -> bool:
  """Whether a file belongs to Python, an installed package, stability or launch."""
  folders = [sysconfig.get_path(kind) for kind in ('stdlib', 'platstdlib', 'purelib', 'platlib')]
  folders += [_ROOT / 'stability', _ROOT / 'launch']
  return any(map(path.is_relative_to, folders)) or not _INSTALLED.isdisjoint(path.parts)


def _check_source(name: str, path: Path) -> None:
  if path.suffix != '.py' or not path.is_file():
    raise BadInput(
        f'imports {name}: {path} is no file of Python source, so it cannot be copied into the'
        ' workdir; must be one, or of an installed package'
    )


def find_configs(copies: Path | None = None) -> None:
  """Lets a config file import this project's configs where another `configs` hides them.

  The other one, a folder, package or module of the user's project, remains importable, also where
  this project is installed and its configs are found first.

  Args:
    copies: the folder with the copies of a sweep's sources, whose `configs` comes before all.
  """
  first = [] if copies is None else [copies]
  package = sys.modules.get('configs')
  if is_new := package is None:
    places = [*map(str, first), '', *sys.path, str(_ROOT)]
    spec = machinery.PathFinder.find_spec('configs', places)
    package = importlib.util.module_from_spec(spec)
  folders = [str(folder / 'configs') for folder in (*first, _ROOT)]
  folders += getattr(package, '__path__', ())
  if os.path.isdir('configs'):
    folders.append(os.path.abspath('configs'))
  package.__path__ = list(dict.fromkeys(folders))
  if is_new:
    sys.modules['configs'] = package
    spec.loader.exec_module(package)


# Extensions stored in a workdir.


def register_stored(stored: Any) -> None:
  """Registers the options and values that sweep.json records, without running any of their code.

  Raises:
    BadInput: `stored` is not a record made by Extensions.to_json.
  """
  if not isinstance(stored, dict):
    raise BadInput('must be an object')
  for key, kind in _RECORD_TYPES.items():
    if stored and not isinstance(stored.get(key), kind):
      raise BadInput(f'{key} is missing or of a wrong type')
  names = probes(stored)
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise BadInput(f'{PROBES} is of a wrong type')
  for record in stored.get('options', ()):
    field = Field.from_json(record)
    if field.name not in fields.FIELDS:
      fields.register(field)
  for option, names in stored.get('values', {}).items():
    for name in names if isinstance(names, list) else ():
      if isinstance(name, str) and name not in variants.added(option):
        variants.add_variant(option, name, variants.Variant(None, 'known by name alone'))


def probes(stored: Json) -> list[str]:
  """The names of what probes of the extensions measure; none in sweeps begun by older code."""
  return stored.get(PROBES, [])


def lacking(
    stored: Json, extensions: Extensions, configs: Collection[Mapping[str, Any]]
) -> list[str]:
  """The options of extensions, and the values that configs use, that stored ones do not have."""
  known = {option['name'] for option in stored['options']}
  found = [f'config.{option.name}' for option in extensions.options if option.name not in known]
  for option, names in extensions.values.items():
    section, name = option.split('.')
    new = set(names).difference(stored['values'].get(option, ()))
    used = {config[section][name] for config in configs}
    found += [f'config.{option}={value}' for value in names if value in used & new]
  return found


def check(workdir: Path, stored: Json) -> Path:
  """The path of the config file's copy in a workdir; raises BadInput if a copy was changed."""
  folder = workdir / stored['folder']
  where = f'{folder / stored["file"]}: the extensions of this sweep'
  try:
    files = {name: (folder / name).read_bytes() for name in stored['files']}
  except OSError as error:
    raise BadInput(f'{where} cannot be read: {error.filename}: {error.strerror}') from error
  if _sha256(files) != stored['sha256']:
    raise BadInput(f'{where} have been changed: their SHA-256 is not that of sweep.json')
  return folder / stored['file']


def load(workdir: Path, stored: Json) -> None:
  """Runs the config file's copy in a workdir and installs its entries; BadInput if that fails."""
  if not stored:
    return
  file = check(workdir, stored)
  sys.path.insert(0, str(file.parent))  # permanently, so that later imports find the copies too
  try:
    find_configs(file.parent)
    _install(runpy.run_path(str(file))['get_extensions']())
  except Exception as error:
    what = f'{type(error).__name__}: {error}'
    raise BadInput(f'{file}: the extensions of this sweep fail: {what}') from error


def _sha256(files: Mapping[str, bytes]) -> str:
  digest = hashlib.sha256()
  for name, content in sorted(files.items()):
    digest.update(f'{name} {len(content)}\n'.encode())
    digest.update(content)
  return digest.hexdigest()
