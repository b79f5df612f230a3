"""Converts text to token files, once, for training with --config.data.path=DIR.

  python -m launch.tokenize --input=hf:allenai/c4:en --output=DIR --tokenizer=spiece.model
  python -m launch.tokenize --input=FOLDER --output=DIR [--tokenizer=bytes|bpe|PATH]

--input may be repeated. It is one of

  hf:NAME[:CONFIG]    a Hugging Face dataset, or a local folder with the layout of one, streamed by
                      the datasets library (extra hf: pip install -e '.[hf]')
  PATH or 'PATTERN'   a file, a folder or a glob pattern; files are read in order of their names:
                      .jsonl with an object per line; .json with that, an array of objects or a
                      layout of pandas; .parquet and .arrow (hf); and anything else as
                      text, one document per file (a file over 64 KiB is packed in pieces, cut at
                      line ends). JSON and text may be compressed (.gz, .bz2, .xz, .zst). Links are
                      followed

A file that is named itself is read or refused. Of a folder or pattern, --output, hidden, empty
and binary files and archives are left out; if it has JSON, parquet or Arrow files, so are other
files, names that begin with an underscore and the descriptions that the datasets library writes.
What is read and left out is printed and recorded in meta.json.

If the input has a validation split (for files: the word is in their names), that split is the
validation text, and its documents are removed from the training text. Otherwise rows are split by
their hash, and whole text files are held out; a file that holds nearly all the text is cut, and a
line says so. Test splits are skipped. For text files, words in names count only beside training
text, so that source trees are read whole: wiki.valid.txt is validation text beside wiki.train.txt,
and test/ is skipped beside train/ (stability/data/split_names.py).

--tokenizer is bytes; bpe, a byte-pair encoding learned from the first training documents; or the
path of a tokenizer.json or of a SentencePiece model (.model; hf).

Documents are packed as in the paper: each is followed by an end-of-document token, without padding.
Text must be UTF-8; input that cannot be read is refused with its file and line.
--max_bad_rows_share allows a share of the rows to have no text; they are counted. After a kill or a
full disk, the same command continues where it stopped, and the files are the same byte for byte.
DIR holds train.bin (then train-00001.bin, ...), validation.bin, the tokenizer's file, tokenize.json
(the settings) and, written last, meta.json with the SHA-256 of each.

  python -m launch.tokenize --from=nanogpt --input=FOLDER --output=DIR --vocabulary_size=50257

makes a token folder from nanoGPT's train.bin and val.bin. The files do not tell the size of their
vocabulary, nor the token that ends a document (--end_of_document=50256 for the one of GPT-2).
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, display, path_flags

# isort: split
import collections
import importlib.metadata
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from stability.data import split_names, splits
from stability.data.listing import Listing
from stability.data.tokenize import encoders, hub, nanogpt, packing, readers, resume, text_files
from stability.errors import BadInput, CannotWrite

FLAGS = flags.FlagValues()
_INPUT = path_flags.define_multi(
    'input',
    'hf:NAME[:CONFIG], a file, a folder or a glob pattern; may be repeated',
    FLAGS,
    prefix=hub.PREFIX,
)
_FROM = flags.DEFINE_enum(
    'from', 'text', ['text', 'nanogpt'], 'what the input holds', flag_values=FLAGS
)
_OUTPUT = path_flags.define('output', None, 'folder for the token files', FLAGS)
_TOKENIZER = path_flags.define(
    'tokenizer',
    'bytes',
    'bytes, bpe, or the path of a tokenizer.json or a SentencePiece .model',
    FLAGS,
)
_FIELD = flags.DEFINE_string(
    'field', 'text', 'field of a row that holds its text', flag_values=FLAGS
)
_MAX_BAD_ROWS_SHARE = flags.DEFINE_float(
    packing.MAX_BAD_ROWS_SHARE,
    0,
    'greatest share of rows without a text, which are skipped; 0: such a row is refused',
    lower_bound=0,
    upper_bound=1,
    flag_values=FLAGS,
)
_VOCABULARY_SIZE = flags.DEFINE_integer(
    'vocabulary_size',
    32_000,
    'vocabulary size of the bpe, or of the tokens of nanoGPT',
    lower_bound=1,
    upper_bound=65_536,
    flag_values=FLAGS,
)
_BPE_DOCUMENTS = flags.DEFINE_integer(
    'bpe_documents',
    10_000,
    'number of training documents to learn the bpe from, in order; they are held in memory',
    lower_bound=1,
    flag_values=FLAGS,
)
_END_OF_DOCUMENT = flags.DEFINE_string(
    'end_of_document',
    None,
    'token after each document; default: 0 for bytes and bpe, the end token of a SentencePiece'
    ' model, the first of </s>, <|endoftext|>, <|end_of_text|> and <eos> in a tokenizer.json',
    flag_values=FLAGS,
)
_VALIDATION_FRACTION = flags.DEFINE_float(
    'validation_fraction',
    0.01,
    'fraction of the rows or of the bytes of text files to hold out if the input has no validation'
    ' split',
    lower_bound=0,
    upper_bound=0.5,
    flag_values=FLAGS,
)
_MAX_TRAIN_TOKENS = flags.DEFINE_integer(
    'max_train_tokens',
    0,
    'stop after the document with which the training text reaches this length; 0: no limit (the'
    ' paper: 1.3e10)',
    lower_bound=0,
    flag_values=FLAGS,
)
_SHARD_TOKENS = flags.DEFINE_integer(
    'shard_tokens', 2**29, 'tokens per file', lower_bound=1, flag_values=FLAGS
)

_NANOGPT_FLAGS = ('from', 'input', 'output', 'vocabulary_size', 'end_of_document')
_BPE_FLAGS = ('vocabulary_size', 'bpe_documents')
_BYTES_PER_TOKEN = 4  # about, of all tokenizers but bytes
_LIBRARIES = {  # by tokenizer; their versions may affect the tokens
    'bpe': ['tokenizers'],
    'tokenizer.json': ['tokenizers'],
    'sentencepiece': ['sentencepiece'],
}


def main() -> int:
  """Writes the token files, or continues writing them."""
  if not all(given.removeprefix(hub.PREFIX) for given in _INPUT.value or ['']):
    raise BadInput('--input: missing, must be hf:NAME[:CONFIG], a file, a folder or a pattern')
  if not _OUTPUT.value:
    raise BadInput('--output: missing, must be a folder')
  output = Path(_OUTPUT.value)
  if _FROM.value == 'nanogpt':
    return _take_over(output)
  for given in _INPUT.value:
    if given.startswith(hub.PREFIX):
      hub.check_output(given, output)
  encoder = _load_encoder()
  try:
    with packing.locked(output):
      return _tokenize(output, encoder)
  except CannotWrite:
    raise
  except OSError as error:
    print(f'error: {error}; the same command resumes', file=sys.stderr)
    return 1


def _take_over(output: Path) -> int:
  """Makes a token folder from the token files of nanoGPT."""
  for name in FLAGS:
    if FLAGS[name].present and name not in _NANOGPT_FLAGS:
      raise BadInput(f'--{name}: not with --from=nanogpt')
  if len(_INPUT.value) > 1:
    raise BadInput('--input: must be one folder with --from=nanogpt')
  if not FLAGS['vocabulary_size'].present:
    raise BadInput('--vocabulary_size: missing, must be that of the tokens, 50257 for GPT-2')
  end = _END_OF_DOCUMENT.value
  if end is not None and not end.isdecimal():
    raise BadInput(f'--end_of_document={end}: must be the number of a token')
  counts = nanogpt.take_over(
      Path(_INPUT.value[0]), output, _VOCABULARY_SIZE.value, None if end is None else int(end)
  )
  _print_done(output, counts, '')
  return 0


def _print_done(output: Path, counts: Mapping[str, int], more: str) -> None:
  text = ', '.join(f'{count:,} {split} tokens' for split, count in counts.items())
  print(f'{text}{more}; train on them with --config.data.path={output}', file=sys.stderr)


def _load_encoder() -> encoders.Encoder | None:
  """The encoder that the flags name; None for a BPE, which is not learned yet."""
  name = _TOKENIZER.value
  for flag in (*_BPE_FLAGS, 'end_of_document'):
    if FLAGS[flag].present and (name == 'bytes' or (name == 'bpe') != (flag in _BPE_FLAGS)):
      only = 'bpe' if flag in _BPE_FLAGS else 'PATH'
      raise BadInput(f'--{flag}: only with --tokenizer={only}')
  if name == 'bpe':
    if _VOCABULARY_SIZE.value <= encoders.ByteEncoder.vocabulary_size:
      raise BadInput(f'--vocabulary_size={_VOCABULARY_SIZE.value}: must be above 256 for a bpe')
    return None
  if name == 'bytes':
    return encoders.ByteEncoder()
  return encoders.load(Path(name), _END_OF_DOCUMENT.value)


def _tokenize(output: Path, encoder: encoders.Encoder | None) -> int:
  parts, listings = _find_parts(output, resume.previous_settings(output))
  validation, cut, split_lines = 'its own split', [], _split_lines(parts, listings)
  if parts[0].split is None:
    if not _VALIDATION_FRACTION.value:
      raise BadInput(
          '--validation_fraction=0: must be above 0, as the input has no validation split'
      )
    max_bytes = (_MAX_TRAIN_TOKENS.value or math.inf) * (
        1 if isinstance(encoder, encoders.ByteEncoder) else _BYTES_PER_TOKEN
    )
    cut = text_files.hold_out(parts, _VALIDATION_FRACTION.value, max_bytes)
    parts.sort(key=lambda part: part.split != 'validation')
    validation = 'by hash' if parts[0].split is None else 'whole files'
  settings = _settings(encoder, parts, validation)
  if resume.begin(output, settings):
    packing.clean(output)
    print(f'{output} is already complete', file=sys.stderr)
    return 0
  for given, listing in listings.items():
    print(f'input: {listing} in {given}', flush=True)
  for line in split_lines + ([splits.cut_line(cut)] if cut else []):
    print(line, flush=True)
  if validation == 'whole files':
    sizes = {
        split: [part.size for part in parts if part.split == split]
        for split in ('train', 'validation')
    }
    for line in splits.share_lines(**sizes, fraction=_VALIDATION_FRACTION.value):
      print(line, flush=True)
  record = {
      'files': {given: listing.to_json() for given, listing in listings.items()},
      'cut_documents': cut,
  }
  with display.Display(first_after=display.PLAIN_SECONDS) as shown:
    packer = packing.Packer(output, parts, settings, record, _Progress(shown).show)
    packer.pack(encoder)
  bad = packer.documents['bad']
  _print_done(output, packer.tokens, f'; {bad:,} rows without text were skipped' if bad else '')
  return 0


def _split_lines(parts: list[readers.Part], listings: Mapping[str, Listing]) -> list[str]:
  """Lines on the text files that names call validation or test text."""
  held_out = dict.fromkeys(
      part.name for part in parts if part.split == 'validation' and readers.is_text(part)
  )
  searched = [listings[given] for given in listings if not given.startswith(hub.PREFIX)]
  ignored = [
      name
      for listing in searched
      if len(listing.files) > 1
      for name in split_names.named(listing.files)
      if str(listing.files[name]) not in held_out
  ]
  lines = [split_names.line(list(held_out), 'the validation text')] if held_out else []
  if ignored:
    lines.append(split_names.line(ignored, 'read like the others, without training text beside'))
  return lines


def _find_parts(
    output: Path, previous: packing.Json | None
) -> tuple[list[readers.Part], dict[str, Listing]]:
  """The parts of the input in reading order, and the files of each --input."""
  parts: list[readers.Part] = []
  listings: dict[str, Listing] = {}
  revisions = previous['revisions'] if previous else {}
  for given in _INPUT.value:
    if given.startswith(hub.PREFIX):
      revision = revisions.get(given)
      found, listings[given] = hub.find(
          given, _FIELD.value, output / packing.CACHE, revision
      )
    else:
      found, listings[given] = readers.find(given, _FIELD.value, output)
    parts += found
  counts = collections.Counter(part.name for part in parts)
  if repeated := [name for name, count in counts.items() if count > 1]:
    raise BadInput(f'--input: {min(repeated)!r} is in the input twice')
  return readers.order(parts), listings


def _settings(
    encoder: encoders.Encoder | None, parts: list[readers.Part], validation: str
) -> packing.Json:
  """The settings and versions that determine the token files; validation: how it is held out."""
  kind = encoder.kind if encoder else 'bpe'
  libraries = list(_LIBRARIES.get(kind, []))
  revisions = {part.dataset: part.revision for part in parts if isinstance(part, hub.DatasetSplit)}
  if revisions:
    libraries.append('datasets')
  return {
      'input': _INPUT.value,
      'field': _FIELD.value,
      'tokenizer': kind,
      'tokenizer_sha256': encoders.digest(encoder) if encoder else None,
      'vocabulary_size': encoder.vocabulary_size if encoder else _VOCABULARY_SIZE.value,
      'bpe_documents': None if encoder else _BPE_DOCUMENTS.value,
      'end_of_document': encoder.end_of_document if encoder else 0,
      'validation': validation,
      'validation_fraction': (
          None if validation == 'its own split' else _VALIDATION_FRACTION.value
      ),
      'max_train_tokens': _MAX_TRAIN_TOKENS.value,
      'shard_tokens': _SHARD_TOKENS.value,
      'revisions': revisions,
      'libraries': {name: importlib.metadata.version(name) for name in libraries},
      'parts': [[part.name, part.split, part.fingerprint()] for part in parts],
  } | ({packing.MAX_BAD_ROWS_SHARE: _MAX_BAD_ROWS_SHARE.value} if _MAX_BAD_ROWS_SHARE.value else {})


class _Progress:
  """The counts, speed and remaining time of a packer."""

  def __init__(self, shown: display.Display):
    self._display = shown
    # When packing began, and the fraction and tokens done by then, perhaps by an earlier process.
    self._start: tuple[float, float, int] | None = None

  def show(self, packer: packing.Packer) -> None:
    """Shows the progress of a packer."""
    now, fraction, tokens = time.monotonic(), packer.fraction(), sum(packer.tokens.values())
    if packer.phase == 'packing' and self._start is None:
      self._start = now, fraction or 0.0, tokens
    facts = [packer.phase]
    if self._start:
      start, start_fraction, start_tokens = self._start
      seconds = max(now - start, 1e-9)
      facts += [
          f'{packer.documents["train"] + packer.documents["validation"]:,} documents',
          f'{tokens:,} tokens',
          f'{packer.text_bytes / 1e6:,.0f} MB of text',
          f'{(tokens - start_tokens) / seconds:,.0f} tokens/s',
      ]
      gained = (fraction or 0.0) - start_fraction
      if gained > 0:
        facts.append(display.time_left((1 - fraction) / gained * seconds))
    self._display.show(fraction, facts)


if __name__ == '__main__':
  app.run(main, FLAGS)
