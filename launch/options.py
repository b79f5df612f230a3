"""Prints every option of a run: its default, unit, meaning, allowed values and source.

  python -m launch.options [--config=FILE.py[:SCALE]] [WORD]

WORD selects the options that mention it. With --config, the defaults are those of that file. The
programs that start a run or a sweep set an option by --config.NAME=VALUE.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import textwrap
from collections.abc import Mapping, Sequence

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stability import config as config_lib
from stability.config import Field
from stability.config.field import value_text
from stability.errors import BadInput

FLAGS = flags.FlagValues()
_CONFIG = path_flags.define('config', None, app.CONFIG_HELP, FLAGS)

FOOTNOTE = 'Sections and figures are those of arXiv 2309.14322.'
PIPED_WIDTH = 80  # characters per line if the output is not a terminal


def main(*words: str) -> None:
  """Prints the options."""
  if len(words) > 1:
    raise BadInput(f'{words[1]!r}: stray argument, only one WORD is looked for')
  defaults = {name: field.default_text for name, field in config_lib.FIELDS.items()}
  if _CONFIG.value is not None:
    (config,) = app.load(_CONFIG.value, {}, single=True).runs.configs.values()
    defaults = {name: value_text(value) for name, value in config_lib.flatten(config).items()}
  options = [field for field in config_lib.FIELDS.values() if _mentions(field, *words)]
  if not options:
    raise BadInput(f'{words[0]!r}: no option mentions it')
  console = Console()
  if console.is_terminal:
    console.print(_table(options, defaults))
    console.print(FOOTNOTE, highlight=False)
  else:
    print(_plain(options, defaults))


def _mentions(field: Field, word: str = '') -> bool:
  """Whether the name or the description of an option contains a word, in any case."""
  described = ' '.join((field.name, field.unit, field.doc, field.allowed, field.source))
  return word.lower() in described.lower()


def _sections(options: Sequence[Field]) -> dict[str, list[Field]]:
  """The options by section, in the order in which the sections first appear."""
  sections: dict[str, list[Field]] = {}
  for field in options:
    sections.setdefault(field.name.rpartition('.')[0], []).append(field)
  return sections


def _description(field: Field) -> str:
  unit = f' Unit: {field.unit}.' if field.unit else ''
  source = f' Source: {field.source}.' if field.source else ''
  return f'{field.doc}{unit} Allowed: {field.allowed}.{source}'


def _table(options: Sequence[Field], defaults: Mapping[str, str]) -> Table:
  table = Table('option', 'default', 'meaning', box=box.SIMPLE_HEAD)
  table.columns[0].no_wrap = True
  table.columns[1].max_width = 16
  for section, fields in _sections(options).items():
    if section:
      table.add_row(Text(f'{section}.', 'bold'))
    for field in fields:
      name = field.name.removeprefix(f'{section}.')
      cells = (f'  {name}' if section else name, defaults[field.name], _description(field))
      # Text, not str: brackets in it are not markup.
      table.add_row(*map(Text, cells), end_section=field is fields[-1])
  return table


def _plain(options: Sequence[Field], defaults: Mapping[str, str]) -> str:
  sections = []
  for fields in _sections(options).values():
    lines = []
    for field in fields:
      lines.append(f'{field.name} = {defaults[field.name]}')
      lines += textwrap.wrap(
          _description(field), PIPED_WIDTH, initial_indent='    ', subsequent_indent='    '
      )
    sections.append('\n'.join(lines))
  return '\n\n'.join((*sections, FOOTNOTE))


if __name__ == '__main__':
  app.run(main, FLAGS, words=True)
