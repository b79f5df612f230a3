"""Entry point of all programs: flags, config file, errors and exit codes, without importing jax.

Each program has its own FlagValues, so that one process, such as a test, can import several:

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
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict

from launch.common import path_flags, preemption, streams
from stability import config as config_lib
from stability import extensions as extensions_lib
from stability import hyper
from stability.analysis import windows
from stability.config import Config, resolution
from stability.errors import BadInput, CannotWrite

flags.disclaim_key_flags()  # --help lists the flags defined here under the program's name

Main = Callable[..., int | None]

CONFIG_HELP = (
    'config file: FILE.py or FILE.py:SCALE, for example configs/base.py:gpu; or NAME or NAME:SCALE,'
    ' an experiment of this package'
)
_CONFIGS = Path(__file__).absolute().parents[2] / 'configs'
# The path is invalid, or is a folder where a file is needed, or the other way round, or is below a
# folder that one may not enter.
_WRONG_PATH = (
    errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES
)  # fmt: skip
_MAX_CHARACTERS = 600  # of an error message; the middle of a longer one is cut


@dataclasses.dataclass(frozen=True)
class SweepRequest:
  """A requested sweep: the runs that --config, its scale and the overrides describe."""

  config_file: str  # FILE.py or NAME as given, without the scale
  scale: str
  overrides: dict[str, Any]  # dotted field -> value
  runs: hyper.Runs
  extensions: extensions_lib.Extensions | None  # that the config file adds to those of the package
  report: dict[str, Any]  # how to compare LR sensitivities: stability/analysis/windows.py
  arms: frozenset[str] | None = None  # the arms to train now; None: all

  def selected(self, configs: Mapping[str, Config]) -> dict[str, Config]:
    """The configs of the arms to train now, by the name of the run."""
    return {n: c for n, c in configs.items() if self.arms is None or c['arm'] in self.arms}


class _HelpRequested(Exception):
  """The command line has --help."""


class _HelpFlag(flags.BooleanFlag):
  """Stops the parser at --help, before it complains about a missing flag."""

  def __init__(self):
    super().__init__('help', False, 'show this text', short_name='h')

  def parse(self, argument: str) -> None:
    super().parse(argument)
    if self.value:
      raise _HelpRequested


class _FieldParser(flags.ArgumentParser):
  """Parses the value of --config.FIELD=VALUE."""

  def __init__(self, field: config_lib.Field):
    self._field = field

  def parse(self, argument: str) -> Any:
    if self._field.kind == 'path':
      argument = path_flags.PathParser().parse(argument)
    try:
      return self._field.parse(argument)
    except BadInput:  # absl's error names the flag
      raise ValueError(f'must be {self._field.allowed}') from None


def define_config(
    flag_values: flags.FlagValues, *, required: bool = True
) -> flags.FlagHolder[str | None]:
  """Defines --config and an override of every field; load_sweep reads them."""
  holder = path_flags.define('config', None, CONFIG_HELP, flag_values)
  if required:
    _require('config', 'FILE.py or FILE.py:SCALE', flag_values)
  define_overrides(flag_values)
  return holder


def define_overrides(flag_values: flags.FlagValues) -> None:
  """Defines --config.FIELD for every field that has no flag yet; `overrides` reads them."""
  # These are ordinary flags, since the fields are known without the config file. The overrides of
  # ml_collections need the file while flags are being defined, and fail with tracebacks.
  for name, field in config_lib.FIELDS.items():
    if f'config.{name}' not in flag_values:
      flag = flags.Flag(_FieldParser(field), None, f'config.{name}', None, field.help)
      flags.DEFINE_flag(flag, flag_values, module_name='configs.base')


def overrides(flag_values: flags.FlagValues) -> dict[str, Any]:
  """The fields set on the command line: dotted field -> value."""
  present = {name: flag_values[name] for name in flag_values if flag_values[name].present}
  fields = {field: present.get(f'config.{field}') for field in config_lib.FIELDS}
  return {field: flag.value for field, flag in fields.items() if flag is not None}


def define_workdir(
    flag_values: flags.FlagValues, *, required: bool = True
) -> flags.FlagHolder[str | None]:
  """Defines --workdir, the folder of a sweep."""
  holder = path_flags.define('workdir', None, 'folder of the sweep and its runs', flag_values)
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
    flag_values: flags.FlagValues,
    *,
    single: bool = False,
    seeds: int | None = None,
    arms: Sequence[str] | None = None,
    begun: Collection[str | None] = (),
) -> SweepRequest:
  """The runs of --config with the overrides of the command line.

  Args:
    flag_values: the program's parsed flags, for which define_config was called.
    single: load only the run of get_config, even if the file defines a sweep.
    seeds: repeat every run with the seeds 0 to seeds - 1; None: use the seeds of the config file.
    arms: names of the arms to train beside the baseline; None: all.
    begun: arms of the sweep in the workdir, which remain in it if they are not trained now.

  Raises:
    BadInput: there is no such file, or something in it or in an override is wrong.
  """
  config = flag_values['config'].value
  return load(config, overrides(flag_values), single=single, seeds=seeds, arms=arms, begun=begun)


def load(
    config: str,
    overrides: dict[str, Any],
    *,
    single: bool = False,
    seeds: int | None = None,
    arms: Sequence[str] | None = None,
    begun: Collection[str | None] = (),
) -> SweepRequest:
  """Loads and checks the runs of FILE.py[:SCALE] or NAME[:SCALE]; see load_sweep."""
  given, file, scale = _find_config(config)
  namespace, extensions = _run_config(file)
  with _as_bad_input(file, BaseException):
    get_config = namespace.get('get_config')
    if not callable(get_config):
      raise BadInput("must define get_config(scale='cpu')")
    parameter = inspect.signature(get_config).parameters.get('scale')
    if parameter is None or not isinstance(parameter.default, str):
      raise BadInput("get_config must take a scale, as in get_config(scale='cpu')")
    scale = parameter.default if scale is None else scale
    config = get_config(scale=scale)
    if not isinstance(config, ConfigDict):
      raise BadInput(f'get_config returns a {type(config).__name__}, must be a ConfigDict')
    with config.ignore_type():  # a field's record sets its type, not its value here
      config.update_from_flattened_dict(overrides)
    base = config.to_dict()  # evaluates every field: a computed one may raise here
    points = [{}]
    if 'get_sweep' in namespace and not single:
      points = namespace['get_sweep'](scale=scale)
      if not isinstance(points, Iterable):
        raise BadInput(f'get_sweep returns a {type(points).__name__}, must be a list of points')
      points = hyper.to_list(points, 'get_sweep')
    report = {}
    if 'get_report' in namespace and not single:
      report = namespace['get_report'](scale=scale)
  named = None
  if arms is not None:
    named = frozenset(point['arm'] for point in hyper.of_arms(points, arms))
    points = [point for point in points if point.get('arm') in named | set(begun)]
  with _as_bad_input(file, BadInput):
    runs = hyper.expand(base, points, overrides, seeds)
    report = windows.check(report, runs)
  return SweepRequest(given, scale, overrides, runs, extensions, report, named)


def _find_config(config: str) -> tuple[str, str, str | None]:
  """Finds the config file; returns the name as given, the file, and the scale if there is one.

  Args:
    config: FILE.py[:SCALE], or NAME[:SCALE] for the experiment configs/NAME.py of this package.

  Raises:
    BadInput: there is no such file.
  """
  name, separator, scale = config.partition(':')
  shipped = _CONFIGS / f'{name}.py'
  if name.isidentifier() and shipped.is_file():
    return name, str(shipped), scale if separator else None
  stem, suffix, rest = config.rpartition('.py')
  file = stem + suffix
  names = [path.stem for path in _CONFIGS.glob('[!_]*.py')]
  if not file:
    (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
    raise BadInput(
        f'--config={config}: must be FILE.py or FILE.py:SCALE, or an experiment of this package;'
        f' the nearest is {nearest}'
    )
  if rest and not rest.startswith(':'):
    raise BadInput(f'--config={file}{rest}: must be FILE.py or FILE.py:SCALE')
  if not os.path.isfile(file):
    found = f'; --config={Path(file).stem} is this package\'s' if Path(file).stem in names else ''
    raise BadInput(f'--config={file}: no such file{found}')
  return file, file, rest[1:] if rest else None


# The result of _run_config for the config file on the command line, if the file was run while flags
# were being defined. `load` takes it from here, once.
_run_config_results: dict[str, tuple[Mapping[str, Any], extensions_lib.Extensions | None]] = {}


def _run_config(file: str) -> tuple[Mapping[str, Any], extensions_lib.Extensions | None]:
  """Runs a config file; returns its namespace and its extensions, which are installed."""
  if file in _run_config_results:
    return _run_config_results.pop(file)
  extensions_lib.reset()
  with _as_bad_input(file, BaseException):
    extensions_lib.find_configs()
    namespace, extensions = runpy.run_path(file), None
    if 'get_extensions' in namespace:
      extensions = extensions_lib.of_config(Path(file), namespace['get_extensions']())
  return namespace, extensions


def _define_extensions(flag_values: flags.FlagValues, argv: Sequence[str]) -> None:
  """Defines flags for the options that the config file on the command line adds.

  Flags for options of another config file, from an earlier call, are removed.
  """
  _run_config_results.clear()
  extensions_lib.reset()
  for name in [name for name in flag_values if name.startswith('config.')]:
    if name.removeprefix('config.') not in config_lib.FIELDS:
      delattr(flag_values, name)
  if 'config' not in flag_values or 'config.seed' not in flag_values:
    return
  for position, argument in enumerate(argv):
    name, separator, value = argument.lstrip('-').partition('=')
    if argument.startswith('-') and name == 'config':
      value = value if separator else ''.join(argv[position + 1 : position + 2])
      value = path_flags.parse('config', value)
      try:
        _, file, _ = _find_config(value)
      except BadInput:  # `load` raises it
        continue
      if b'get_extensions' in Path(file).read_bytes():
        _run_config_results[file] = _run_config(file)
  define_overrides(flag_values)


@contextlib.contextmanager
def _as_bad_input(file: str, *kinds: type[BaseException]) -> Iterator[None]:
  """Converts an exception of a config file to BadInput that names the file and its line."""
  try:
    yield
  except (KeyboardInterrupt, preemption.Preempted):
    raise
  except kinds as error:
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename == file]
    what = f'{type(error).__name__}: {_text(error)}'
    if isinstance(error, BadInput):
      what = str(error)
    elif isinstance(error, SyntaxError):
      what = f'{type(error).__name__}: {error.msg}'
      if error.filename == file:
        lines.append(error.lineno)
    where = f'{file}:{lines[-1]}' if lines else file
    raise BadInput(f'{where}: {what}') from error


def _text(error: BaseException) -> str:
  """The message of an exception, whose class may be the user's and have a faulty __str__."""
  try:
    return str(error)
  except Exception:
    return '(its message cannot be read)'


def run(main: Main, flag_values: flags.FlagValues, *, words: bool = False) -> NoReturn:
  """Runs a program with the command line of this process, then exits."""
  streams.protect()
  os.environ['MPLBACKEND'] = 'agg'  # figures are files; another backend may not be installed
  code = execute(main, flag_values, sys.argv, words=words)
  if error := streams.lost_output():
    print(f'error: standard output: cannot be written: {error.strerror}', file=sys.stderr)
  sys.exit(code or (1 if error else 0))


def execute(
    main: Main, flag_values: flags.FlagValues, argv: Sequence[str], *, words: bool = False
) -> int:
  """Parses `argv`, calls `main` and returns the exit code.

  The code is that of main, or 1 if the disk cannot be written, 2 for bad input, 75 if preempted,
  130 if interrupted. Errors in the input are printed as one line on stderr; an unexpected exception
  is a bug and propagates. With `words`, arguments that are not flags are passed to main; otherwise
  they are refused.
  """
  try:
    with preemption.raised():
      path_flags.check_environment()
      arguments = _parse(flag_values, argv)
      if arguments and not words:
        raise BadInput(f'{arguments[0]!r}: stray argument, every option is given as --flag=value')
      return main(*arguments) or 0
  except _HelpRequested:
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
    path = error.filename2 or error.filename  # the destination of os.replace
    print(f'error: {_printable(f"{path}: {error.strerror}")}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr)
    return 130
  except preemption.Preempted:
    print(preemption.MESSAGE, file=sys.stderr)
    return preemption.EXIT_CODE


def _parse(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Sets the flags; returns the arguments that are not flags."""
  if 'help' not in flag_values:
    flags.DEFINE_flag(_HelpFlag(), flag_values)
  for name in flag_values:
    flag_values[name].unparse()  # forget the values of an earlier call in this process
  flag_values.set_gnu_getopt()  # flags may follow other arguments
  for argument in argv[1:]:
    try:
      argument.encode()
    except UnicodeEncodeError:
      raise BadInput(f'{argument!r}: must be UTF-8') from None
    if '\0' in argument:
      raise BadInput(f'{argument!r}: must not contain a NUL')
  _define_extensions(flag_values, argv)
  try:
    _, *words = flag_values(argv)
  except flags.UnrecognizedFlagError as error:
    nearest = resolution.nearest(error.flagname, flag_values)
    raise BadInput(f'--{error.flagname}: no such flag; the nearest is --{nearest}') from error
  except (flags.Error, ValueError) as error:  # absl lets some ValueErrors through
    raise BadInput(str(error).removeprefix('flag ')) from error
  return words


def _printable(text: str) -> str:
  """The text as one line of limited length without control characters."""
  line = ' '.join(part.strip() for part in text.splitlines())
  if len(line) > _MAX_CHARACTERS:
    line = f'{line[: _MAX_CHARACTERS // 2]} ... {line[-_MAX_CHARACTERS // 2 :]}'
  return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in line)
