"""The rows of a table of runs: learning rate, size, seed, state and losses."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stability import same_number
from stability.config import SIZE_FIELDS, safe_repr
from stability.errors import BadInput
from stability.importing import columns as columns_lib
from stability.importing.options import MAX_LOSS, Options
from stability.importing.tables import Table, is_empty, parse_number

# Settings of our configs that are read if a table has them; their values are whole numbers.
FIELDS = (
    *('model.width', 'model.depth', 'model.head_dim'),
    *('schedule.steps', 'schedule.warmup_steps'),
)
_WHOLE = ('parameters', 'seed', 'steps', 'tokens', *FIELDS)
_COUNTERS = ('steps', 'tokens', 'seconds')  # not needed
_SUFFIXES = {'': 1, 'K': 1e3, 'M': 1e6, 'B': 1e9, 'T': 1e12}
_COUNT = re.compile(r'([0-9]+\.?[0-9]*(?:[eE]\+?[0-9]+)?)\s*([kKmMbBgGtT]?)')
_LIKE_THOUSANDS = re.compile(r'[1-9][0-9]{0,2}\.[0-9]{3}')


@dataclasses.dataclass
class Run:
  """A run as its table describes it. Losses are in nats; None: unknown."""

  where: str  # file and line
  row: int
  name: str  # '' if the table has none
  id: str
  state: str  # as the table has it; '' if it has none
  learning_rate: float
  seed: int
  parameters: int | None
  initial_loss: float | None
  final_loss: float | None  # None: empty; not finite if the table says so
  steps: int | None
  tokens: int | None
  seconds: float | None
  fields: dict[str, Any]  # FIELDS that the table has, and the arms


class Caution(str):
  """A note on what is left out of the runs or may be wrong; notebooks show it as a warning."""


def recognise(table: Table, options: Options) -> tuple[dict[str, str], list[str]]:
  """Recognises the columns of a table of runs: name -> column; and sentences on the choices."""
  spelled = {n: columns_lib.spelled(c, table.columns) for n, c in options.mapping.items()}
  found = {name: column for name, column in spelled.items() if column}
  notes = []
  free = [c for c in table.columns if c not in found.values()]
  for name in columns_lib.RUN_COLUMNS:
    if name in found or options.mapping.get(name) == '':
      continue
    columns = columns_lib.candidates(name, free)
    unread = {c: cell for c in columns if (cell := _unread(table, name, c)) is not None}
    notes += [f'{c} is not read as {name}: it has {cell}' for c, cell in unread.items()]
    columns = [c for c in columns if c not in unread]
    if not columns:
      continue
    if name in columns_lib.ONE_MEANING and len(columns) > 1 and _differ(table, columns):
      raise BadInput(
          f'{table.source}: {", ".join(columns)} could each be {name}'
          f'{f" ({columns_lib.COUNTED})" if name == "parameters" else ""}; choose with'
          f' --map={name}=COLUMN'
      )
    found[name] = columns[0]
    free.remove(columns[0])
    others = [c for c in columns[1:] if c in free]
    if others and name == 'final_loss':
      notes.append(f'final_loss is {columns[0]}, not {", ".join(others)}')
  if 'learning_rate' not in found:
    raise BadInput(
        f'{table.source}: has no column learning_rate;'
        f' {columns_lib.nearest("learning_rate", table.columns)}; name it with'
        ' --map=learning_rate=COLUMN'
    )
  if 'parameters' not in found and not any(name in found for name in SIZE_FIELDS):
    notes.append(
        'no column is the size of the runs; name one with --map=parameters=COLUMN'
        f' ({columns_lib.COUNTED})'
    )
  for name in ('final_loss', 'initial_loss'):
    column = found.get(name, '')
    if options.loss_unit is None and columns_lib.mentions_bits(column):
      raise BadInput(f'--loss_unit: missing; {column} may be in nats or in bits')
  return found, notes


def _unread(table: Table, name: str, column: str) -> str | None:
  """A cell because of which a column cannot be what its name suggests; None if it can.

  Counters are not needed. A size in words is a setting; one wrong cell among numbers is a mistake.
  """
  if name not in (*_COUNTERS, 'parameters', *FIELDS):
    return None
  texts = [text for text in table.texts(column) if not is_empty(text)]
  wrong = [text for text in texts if _size(text) is None]
  is_wrong = wrong and (name in _COUNTERS or len(wrong) == len(texts))
  return safe_repr(wrong[0]) if is_wrong else None


def _differ(table: Table, columns: Iterable[str]) -> bool:
  rows = zip(*(table.texts(column) for column in columns), strict=True)
  return any(len({_comparable(cell) for cell in row}) > 1 for row in rows)


def _comparable(text: str) -> Any:
  number = parse_number(text)
  return text if number is None or math.isnan(number) else number


def rows(table: Table, found: Mapping[str, str], options: Options) -> tuple[list[Run], list[str]]:
  """The runs of a table, and sentences on those left out.

  Args:
    table: a row per run.
    found: see recognise.
    options: the user's.
  """
  total = len(table.lines)
  numbers = {
      name: table.numbers(column) if (column := found.get(name)) else [math.nan] * total
      for name in ('learning_rate', 'seed', 'initial_loss', 'final_loss')
  }
  counters = {name: _counters(table, found.get(name)) for name in _COUNTERS}
  texts = {
      name: table.texts(column) if (column := found.get(name)) else [''] * total
      for name in ('run', 'id', 'status')
  }
  represents = same_number.representatives(
      float(rate) for rate in numbers['learning_rate'] if not math.isnan(rate)
  )
  found_runs, empty = [], []
  for row in range(total):
    rate = float(numbers['learning_rate'][row])
    if math.isnan(rate):
      empty.append(table.where(row))
      continue
    if not 0 < rate < math.inf:
      raise table.error(row, found['learning_rate'], 'a number above 0')
    initial = _loss(table, row, found, 'initial_loss', numbers)
    final = _loss(table, row, found, 'final_loss', numbers)
    found_runs.append(
        Run(
            where=table.where(row),
            row=row,
            name=texts['run'][row],
            id=texts['id'][row],
            state=texts['status'][row],
            learning_rate=represents[rate],
            seed=_whole(table, row, found, 'seed', numbers['seed'][row]) or 0,
            parameters=_parameters(table, row, found),
            initial_loss=None if initial is None else initial * options.nats,
            final_loss=None if final is None else final * options.nats,
            steps=_whole_part(counters['steps'][row]),
            tokens=_whole_part(counters['tokens'][row]),
            seconds=counters['seconds'][row],
            fields=_fields(table, row, found),
        )
    )
  if not found_runs:
    raise BadInput(f'{table.source}: {found["learning_rate"]} is empty in every row')
  notes = [Caution(f'left out, without a learning rate: {listed(empty)}')] if empty else []
  return found_runs, notes + _on_points(table, found)


def _on_points(table: Table, found: Mapping[str, str]) -> list[str]:
  """Names columns of whole numbers such as 10.000, which may be ten thousand."""
  notes = []
  for name in _WHOLE:
    texts = table.texts(found[name]) if name in found else []
    rows_with = [row for row, text in enumerate(texts) if _LIKE_THOUSANDS.fullmatch(text)]
    if rows_with:
      text = texts[rows_with[0]]
      notes.append(
          Caution(
              f'{table.where(rows_with[0])}: {found[name]}={text!r} is read as {float(text):g}; if'
              f' the point separates thousands, write {text.replace(".", "")}'
          )
      )
  return notes


def count(number: int) -> str:
  """How many runs."""
  return f'{number} run' if number == 1 else f'{number} runs'


def listed(items: Sequence[str], shown: int = 3) -> str:
  """The first items, and how many more there are."""
  more = f' and {len(items) - shown} more' if len(items) > shown else ''
  return ', '.join(items[:shown]) + more


def _loss(
    table: Table, row: int, found: Mapping[str, str], name: str, numbers: Mapping[str, Any]
) -> float | None:
  """A loss; None if the cell is empty."""
  if name not in found or is_empty(table.text(found[name], row)):
    return None
  loss = float(numbers[name][row])
  if abs(loss) > MAX_LOSS and (name == 'initial_loss' or loss < 0 or loss != math.inf):
    raise table.error(row, found[name], f'a number from -{MAX_LOSS:g} to {MAX_LOSS:g}')
  if name == 'initial_loss' and math.isnan(loss):
    return None
  return loss


def _whole(
    table: Table, row: int, found: Mapping[str, str], name: str, number: float
) -> int | None:
  if math.isnan(number):
    return None
  if not (0 <= number < 2**53 and number % 1 == 0):
    raise table.error(row, found[name], 'a whole number from 0 to 2^53')
  return int(number)


def _counters(table: Table, column: str | None) -> list[float | None]:
  """What a run has counted; None if it is unknown."""
  if column is None:
    return [None] * len(table.lines)
  counted = []
  for row, text in enumerate(table.texts(column)):
    if (number := _size(text)) is None:
      raise table.error(row, column, 'a number, such as 10000 or 10K')
    counted.append(number if math.isfinite(number) and number >= 0 else None)
  return counted


def _whole_part(number: float | None) -> int | None:
  return None if number is None else int(number)


def _size(text: str) -> float | None:
  """A number, also with a suffix such as in 124M; NaN if there is none, None if it is neither."""
  match = _COUNT.fullmatch(text)
  if match is None:
    return parse_number(text)
  return float(match[1]) * _SUFFIXES[match[2].upper().replace('G', 'B')]


def _parameters(table: Table, row: int, found: Mapping[str, str]) -> int | None:
  """A parameter count such as 124439808, 1.2e8 or 124M; None if the cell is empty."""
  if 'parameters' not in found:
    return None
  number = _size(table.text(found['parameters'], row))
  if number is None:
    raise table.error(row, found['parameters'], 'a number of parameters, such as 124M')
  if math.isnan(number):
    return None
  if not 1 <= number < 2**53:
    raise table.error(row, found['parameters'], 'a number of parameters from 1 to 2^53')
  return round(number)


def _fields(table: Table, row: int, found: Mapping[str, str]) -> dict[str, int]:
  values = {}
  for name in FIELDS:
    if name in found and (text := table.text(found[name], row)):
      number = _size(text)
      if number is None:
        raise table.error(row, found[name], 'a whole number from 0 to 2^53')
      whole = _whole(table, row, found, name, number)
      if whole is not None:
        values[name] = whole
  return values


def check_fields(runs: Iterable[Run], notes: list[str]) -> None:
  """Removes the fields that only some of the runs have."""
  runs = list(runs)
  for name in FIELDS:
    having = [run for run in runs if name in run.fields]
    if having and len(having) < len(runs):
      notes.append(Caution(f'{name} is left out: {len(runs) - len(having)} runs lack it'))
      for run in having:
        del run.fields[name]

