"""The texts of parquet and Arrow files, which are read by batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stability.data.tokenize import text_field
from stability.data.tokenize.text_field import Row
from stability.errors import BadInput

_PARQUET_ROWS = 256  # read at once

# The number of rows of a batch, their columns, and the share of the file that is read after it.
_Batch = tuple[int, Iterable[Any], float]


def rows(path: Path, kind: str, field: str, skip: int) -> Iterator[tuple[Row, float]]:
  """The text of each row after the first `skip`, with the share of the file that is read.

  A row that is not a text is yielded as its BadInput.

  Args:
    path: the file.
    kind: parquet | arrow, a file or stream of Arrow's IPC format.
    field: the column of the text.
    skip: the number of rows to skip.
  """
  try:
    import pyarrow as pa
  except ImportError:
    raise BadInput(
        f"{path}: {kind} needs the package pyarrow: pip install -e '.[hf]'"
    ) from None
  row = 0
  try:
    for count, columns, share in (_parquet if kind == 'parquet' else _arrow)(path, field):
      if row + count <= skip:
        row += count
        continue
      for column in columns:
        for value in column.cast(pa.large_binary()).to_pylist():
          row += 1
          if row > skip:
            yield text_field.text({field: value}, field, f'{path}: row {row}'), share
  except (pa.ArrowException, OSError) as error:
    raise BadInput(f'{path}: cannot be read after row {row}: {error}') from error


def _parquet(path: Path, field: str) -> Iterator[_Batch]:
  from pyarrow import parquet

  with parquet.ParquetFile(path) as file:
    _check(path, field, file.schema_arrow)
    for group in range(file.num_row_groups):
      batches = file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[field])
      columns = (batch.column(0) for batch in batches)
      yield file.metadata.row_group(group).num_rows, columns, (group + 1) / file.num_row_groups


def _arrow(path: Path, field: str) -> Iterator[_Batch]:
  import pyarrow as pa

  size = path.stat().st_size
  with pa.OSFile(str(path)) as source:
    is_file = source.read(6) == b'ARROW1'
    source.seek(0)
    reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source)
    _check(path, field, reader.schema)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
      yield batch.num_rows, [batch.column(field)], source.tell() / size


def _check(path: Path, field: str, schema: Any) -> None:
  """Raises BadInput unless the field is a column of text."""
  import pyarrow as pa

  text_field.check_present(field, schema.names, str(path))
  if (count := schema.names.count(field)) > 1:
    raise BadInput(f'{path}: has {count} columns {field!r}; must have one')
  kind = schema.field(field).type
  values = kind.value_type if pa.types.is_dictionary(kind) else kind
  is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
  if not any(check(values) for check in is_text):
    raise BadInput(f'{path}: field {field!r} must be text, not {kind}')
