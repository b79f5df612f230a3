"""The one entry of all programs: flags, config file, errors and exit codes, before jax is imported.

A program's flags live in an object of its own, so that one process (a test, say) can import
several programs:

  FLAGS = flags.FlagValues()
  app.define_config(FLAGS)
  WORKDIR = app.define_workdir(FLAGS)

  def main() -> int | None:
    sweep = app.load_sweep(FLAGS)
    ...

  if __name__ == '__main__':
    app.run(main, FLAGS)
"""

import contextlib
import dataclasses
import difflib
import errno
import inspect
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict

from launch.common import preemption
from stability import config as config_lib
from stability import hyper
from stability.analysis import windows
from stability.errors import BadInput, CannotWrite

flags.disclaim_key_flags()  # --help lists what is defined here under the program that asked for it


Main = Callable[..., int | None]

CONFIG_SECONDS = 60  # that a config file may take to say what it describes
# A path that cannot be one, or a folder where a file is meant, or the other way round.
_WRONG_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
_MOST_SHOWN = 600  # characters of an error; what is left out of a longer one is in its middle


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What --config, its scale and the overrides describe."""

  config_file: str  # as given, without the scale
  scale: str
  overrides: dict[str, Any]  # dotted field -> value
  runs: hyper.Runs
  report: dict[str, Any]  # how LR sensitivities are to be compared: stability/analysis/windows.py


class _HelpAsked(Exception):
  """--help is among the flags."""


class _HelpFlag(flags.BooleanFlag):
  """Ends the parsing where it stands, before a missing flag is complained of."""

  def __init__(self):
    super().__init__('help', False, 'show this text', short_name='h')

  def parse(self, argument: str) -> None:
    super().parse(argument)
    if self.value:
      raise _HelpAsked


class _FieldParser(flags.ArgumentParser):
  """The value of a field in --config.FIELD=VALUE."""

  def __init__(self, field: config_lib.Field):
    self._field = field

  def parse(self, argument: str) -> Any:
    try:
      return self._field.parse(argument)
    except BadInput:  # absl's error names the flag
      raise ValueError(f'must be {self._field.allowed}') from None


def define_config(flag_values: flags.FlagValues) -> flags.FlagHolder[str]:
  """Defines --config and an override for every field; load_sweep reads them."""
  holder = flags.DEFINE_string(
      'config', None, 'FILE.py or FILE.py:SCALE, say configs/base.py:gpu', flag_values=flag_values
  )
  _require('config', 'FILE.py or FILE.py:SCALE', flag_values)
  define_overrides(flag_values)
  return holder


def define_overrides(flag_values: flags.FlagValues) -> None:
  """Defines --config.FIELD for every field; overrides reads them."""
  # ml_collections' own overrides fail with tracebacks and need the file loaded while flags are
  # being defined. The fields are known beforehand, so they are flags like any other.
  for name, field in config_lib.FIELDS.items():
    flag = flags.Flag(_FieldParser(field), None, f'config.{name}', None, field.help)
    flags.DEFINE_flag(flag, flag_values, module_name='configs.base')


def overrides(flag_values: flags.FlagValues) -> dict[str, Any]:
  """The fields given on the command line: dotted field -> value."""
  given = {field: flag_values[f'config.{field}'] for field in config_lib.FIELDS}
  return {field: flag.value for field, flag in given.items() if flag.present}


def define_workdir(
    flag_values: flags.FlagValues, *, required: bool = True
) -> flags.FlagHolder[str | None]:
  """Defines --workdir, the folder of a sweep."""
  holder = flags.DEFINE_string(
      'workdir', None, 'folder of the sweep and its runs', flag_values=flag_values
  )
  if required:
    _require('workdir', 'a folder', flag_values)
  return holder


def _require(name: str, allowed: str, flag_values: flags.FlagValues) -> None:
  def check(value: str | None) -> bool:
    if not value:
      raise BadInput(f'--{name}: missing, must be {allowed}')
    return True

  flags.register_validator(name, check, flag_values=flag_values)


def load_sweep(
    flag_values: flags.FlagValues, *, single: bool = False, seeds: int | None = None
) -> Sweep:
  """Loads --config with the overrides; see load.

  Args:
    flag_values: the program's parsed flags, after define_config.
    single: take the one run of get_config, even where the file defines a sweep.
    seeds: train every run with the seeds 0 to seeds - 1; None: as the config says.
  """
  return load(flag_values['config'].value, overrides(flag_values), single=single, seeds=seeds)


def load(
    config: str, overrides: dict[str, Any], *, single: bool = False, seeds: int | None = None
) -> Sweep:
  """Loads FILE.py or FILE.py:SCALE and expands it into runs, all checked."""
  stem, suffix, rest = config.rpartition('.py')
  file = stem + suffix
  if rest and not rest.startswith(':'):
    raise BadInput(f'--config={file}{rest}: must be FILE.py or FILE.py:SCALE')
  if not os.path.isfile(file):
    raise BadInput(f'--config={file}: no such file')

  with _blame(file, BaseException), _limited(file):
    namespace = runpy.run_path(file)
    get_config = namespace.get('get_config')
    if not callable(get_config):
      raise BadInput("must define get_config(scale='cpu')")
    parameter = inspect.signature(get_config).parameters.get('scale')
    if parameter is None or not isinstance(parameter.default, str):
      raise BadInput("get_config must take a scale, as in get_config(scale='cpu')")
    scale = rest[1:] if rest else parameter.default
    config = get_config(scale=scale)
    if not isinstance(config, ConfigDict):
      raise BadInput(f'get_config returns a {type(config).__name__}, must be a ConfigDict')
    with config.ignore_type():  # the rules decide on types, not what the default happens to be
      config.update_from_flattened_dict(overrides)
    base = config.to_dict()  # touches every value: a field that is computed may raise here
    points = [{}]
    if 'get_sweep' in namespace and not single:
      points = namespace['get_sweep'](scale=scale)
      if not isinstance(points, Iterable):
        raise BadInput(f'get_sweep returns a {type(points).__name__}, must be a list of points')
      points = hyper.at_most(points, 'get_sweep')
    report = {}
    if 'get_report' in namespace and not single:
      report = namespace['get_report'](scale=scale)
  with _blame(file, BadInput):
    runs = hyper.expand(base, points, overrides, seeds)
    report = windows.check(report, runs)
  return Sweep(file, scale, overrides, runs, report)


@contextlib.contextmanager
def _blame(file: str, *kinds: type[BaseException]) -> Iterator[None]:
  """Turns what a config file raises into one line that names the file and the line in it."""
  try:
    yield
  except KeyboardInterrupt:  # a person's
    raise
  except kinds as error:
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    what = f'{type(error).__name__}: {_text(error)}'
    if isinstance(error, BadInput | _TookTooLong):
      what = str(error)
    elif isinstance(error, SyntaxError):
      what = f'{type(error).__name__}: {error.msg}'
      if error.filename == file:
        lines.append(error.lineno)
    where = f'{file}:{lines[-1]}' if lines else file
    raise BadInput(f'{where}: {what}') from error


class _TookTooLong(BaseException):
  """What a config file can hardly catch."""


@contextlib.contextmanager
def _limited(file: str) -> Iterator[None]:
  """Interrupts a config file that does not come to an end, where the system has alarms for it."""
  if not hasattr(signal, 'setitimer') or threading.current_thread() is not threading.main_thread():
    yield
    return

  def end(number: int, frame: Any) -> NoReturn:
    raise _TookTooLong(f'has not come to an end after {CONFIG_SECONDS} seconds')

  before = signal.signal(signal.SIGALRM, end)
  signal.setitimer(signal.ITIMER_REAL, CONFIG_SECONDS, 1)  # and again, should it be caught
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _text(error: BaseException) -> str:
  """What an exception of other people's says of itself."""
  try:
    return str(error)
  except Exception:
    return '(its text cannot be had)'


def run(main: Main, flag_values: flags.FlagValues, *, words: bool = False) -> NoReturn:
  """Runs a program with the command line of this process and ends the process."""
  for stream in (sys.stdout, sys.stderr):  # no text can fail to be printed
    stream.reconfigure(errors='backslashreplace')
  sys.exit(execute(main, flag_values, sys.argv, words=words))


def execute(
    main: Main, flag_values: flags.FlagValues, argv: Sequence[str], *, words: bool = False
) -> int:
  """Parses `argv`, calls `main` and returns the exit code: main's, 2 for bad input, 75 preempted.

  Bad input costs one line on stderr; whatever else is raised is a fault of ours and passes through.
  With `words`, what is no flag is handed to main; else it is refused.
  """
  try:
    found = _parse(flag_values, argv)
    if found and not words:
      raise BadInput(f'{found[0]!r}: stray argument, every option is given as --flag=value')
    return main(*found) or 0
  except _HelpAsked:
    print(sys.modules[main.__module__].__doc__)
    print(flag_values.get_help(include_special_flags=False))
    return 0
  except BadInput as error:
    print(f'error: {_printable(str(error))}', file=sys.stderr)
    return 2
  except CannotWrite as error:
    print(f'error: {_printable(str(error))}', file=sys.stderr)
    return 1
  except OSError as error:
    if error.errno not in _WRONG_PATH:
      raise
    path = error.filename2 or error.filename  # a file is written under another name first
    print(f'error: {_printable(f"{path}: {error.strerror}")}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  except preemption.Preempted:
    print('told to end; the same command goes on from where it was', file=sys.stderr)
    return preemption.EXIT_CODE


def _parse(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Sets the flags; returns what is none of them."""
  if 'help' not in flag_values:
    flags.DEFINE_flag(_HelpFlag(), flag_values)
  for name in flag_values:
    flag_values[name].unparse()  # what an earlier call in this process was given
  flag_values.set_gnu_getopt()  # flags may follow words
  for argument in argv[1:]:
    try:
      argument.encode()
    except UnicodeEncodeError:
      raise BadInput(f'{argument!r}: must be UTF-8') from None
    if '\0' in argument:
      raise BadInput(f'{argument!r}: must not hold a NUL')
  try:
    _, *words = flag_values(argv)
  except flags.UnrecognizedFlagError as error:
    nearest = difflib.get_close_matches(error.flagname, list(flag_values), n=1, cutoff=0.0)
    raise BadInput(f'--{error.flagname}: no such flag; the nearest is --{nearest[0]}') from error
  except (flags.Error, ValueError) as error:  # absl's own, and some ValueErrors it lets through
    raise BadInput(str(error).removeprefix('flag ')) from error
  return words


def _printable(text: str) -> str:
  """One line, with nothing in it that a terminal would obey."""
  line = ' '.join(part.strip() for part in text.splitlines())
  if len(line) > _MOST_SHOWN:
    line = f'{line[: _MOST_SHOWN // 2]} ... {line[-_MOST_SHOWN // 2 :]}'
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in line)
