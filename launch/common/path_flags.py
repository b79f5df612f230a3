"""Flags and environment variables that hold paths: see stability/config/paths.py."""

import os
from typing import Any

from absl import flags

from stability.config import paths
from stability.errors import BadInput

CACHE_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
_CACHE_URLS = ('gs://', 's3://')  # jax itself reads and writes these


class PathParser(flags.ArgumentParser):
  """Parses a path, or PREFIX and a path."""

  def __init__(self, prefix: str = ''):
    self._prefix = prefix

  def parse(self, argument: str) -> str:
    prefix = self._prefix
    if not argument.startswith(prefix) or argument.startswith(f'{prefix}//'):
      prefix = ''
    try:
      return prefix + paths.local(argument.removeprefix(prefix))
    except BadInput as error:  # absl's error names the flag
      raise ValueError(str(error)) from None


class _PathListParser(flags.ListParser):
  """Parses paths that are separated by commas."""

  def parse(self, argument: str | list[str]) -> list[str]:
    return [PathParser().parse(path) for path in super().parse(argument)]


def parse(name: str, argument: str) -> str:
  """The value of a path flag that absl has not parsed yet; BadInput names the flag."""
  try:
    return PathParser().parse(argument)
  except ValueError as error:
    raise BadInput(f'--{name}={argument}: {error}') from None


def define(
    name: str, default: str | None, text: str, flag_values: flags.FlagValues
) -> flags.FlagHolder[str | None]:
  """Defines a flag whose value is a path; `text` is its help."""
  return flags.DEFINE(PathParser(), name, default, text, flag_values)


def define_multi(
    name: str, text: str, flag_values: flags.FlagValues, prefix: str = ''
) -> flags.FlagHolder[list[str]]:
  """Defines a repeatable flag of paths, which may have a prefix."""
  return flags.DEFINE_multi(
      PathParser(prefix), flags.ArgumentSerializer(), name, [], text, flag_values
  )


def define_list(
    name: str, text: str, flag_values: flags.FlagValues
) -> flags.FlagHolder[list[str] | None]:
  """Defines a flag of paths that are separated by commas."""
  serializer = flags.CsvListSerializer(',')
  return flags.DEFINE(_PathListParser(), name, None, text, flag_values, serializer)


def check_environment(environment: Any = os.environ) -> None:
  """Expands `~` in the variables that name caches; raises BadInput for one that is not a path."""
  for name in (CACHE_VARIABLE, 'XDG_CACHE_HOME'):
    value = environment.get(name, '')
    if name == CACHE_VARIABLE and value.startswith(_CACHE_URLS):
      continue
    try:
      expanded = paths.local(value)
    except BadInput as error:
      raise BadInput(f'{name}={value}: {error}') from None
    if expanded != value:
      environment[name] = expanded
