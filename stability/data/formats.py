"""The formats of data files, as their names tell them."""

# Those that launch.tokenize reads row by row; `lines` is JSON lines, and json any JSON.
_FORMATS = {
    '.jsonl': 'lines',
    '.ndjson': 'lines',
    '.json': 'json',
    '.parquet': 'parquet',
    '.arrow': 'arrow',
    '.feather': 'arrow',
}
COMPRESSIONS = {'.gz': 'gzip', '.zst': 'zstd', '.bz2': 'bzip2', '.xz': 'xz'}
_ARCHIVES = ('.tar', '.tgz', '.tbz2', '.txz', '.zip', '.7z', '.rar')


def compression(name: str) -> str | None:
  """The compression of a file: a value of COMPRESSIONS."""
  return next((kind for end, kind in COMPRESSIONS.items() if name.lower().endswith(end)), None)


def format_of(name: str) -> str:
  """The format of a file without its compression: a value of _FORMATS, archive or text."""
  name = name.lower()
  for end in COMPRESSIONS:
    name = name.removesuffix(end)
  if name.endswith(_ARCHIVES):
    return 'archive'
  return next((kind for end, kind in _FORMATS.items() if name.endswith(end)), 'text')


def is_text(name: str) -> bool:
  """Whether a file is plain text, as far as its name tells."""
  return format_of(name) == 'text' and compression(name) is None


BYTE_ORDER_MARK = b'\xef\xbb\xbf'  # of UTF-8
HEAD_BYTES = 8192  # of a file's beginning, from which `problem` tells


def problem(head: bytes) -> str | None:
  """Why a file with this beginning is not text: utf-16 | binary; None if it may be text."""
  if head.startswith((b'\xff\xfe', b'\xfe\xff')):
    return 'utf-16'
  return 'binary' if b'\0' in head else None
