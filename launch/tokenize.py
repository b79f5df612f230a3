"""Makes token files of any text, once, for training with --config.data.path=DIR.

  python -m launch.tokenize --input=hf:allenai/c4:en --output=DIR --tokenizer=spiece.model
  python -m launch.tokenize --input=FOLDER --output=DIR [--tokenizer=bytes|bpe|PATH]

--input, which may be given several times, is

  hf:NAME[:CONFIG]    a Hugging Face set, or a folder laid out like one, streamed by their library
                      (pip install 'stability[hf]')
  PATH or 'PATTERN'   a file, a folder or a glob pattern, in order of the names: .json and .jsonl
                      with an object a line, .parquet (stability[hf]), anything else as text, one
                      document a file (over 64 KiB, one a piece, cut at line ends); all but parquet
                      may be gzipped (.gz). In a folder with JSON or parquet, other files are left
                      out, and hidden and linked ones always

Where the input has a validation split of its own (of files: the word in their names), that is the
validation text, and its documents are left out of the training text; else the documents whose
hash says so are. Test splits are left out.

--tokenizer is bytes; bpe, a byte-pair encoding learned from the first training documents; or the
path of a tokenizer.json or of a SentencePiece model (.model; stability[hf]).

Documents are packed as in the paper: each followed by an end-of-document mark, no padding. Text
must be UTF-8; what cannot be read is refused by file and line. After a kill or a full disk, the
same command goes on where it was; the files are the same, byte for byte. All is written to DIR:
train.bin (then train-00001.bin, ...), validation.bin, the tokenizer's file, tokenize.json (what was
asked for) and, last, meta.json with the SHA-256 of each.
"""

import importlib.metadata
import sys
import time
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.live import Live

from launch.common import app, progress
from stability.data.tokenize import encoders, hub, packing, readers
from stability.errors import BadInput

FLAGS = flags.FlagValues()
_INPUT = flags.DEFINE_multi_string(
    'input', [], 'hf:NAME[:CONFIG], a file, a folder or a pattern', flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string('output', None, 'folder of the token files', flag_values=FLAGS)
_TOKENIZER = flags.DEFINE_string(
    'tokenizer',
    'bytes',
    'bytes, bpe or the path of a tokenizer.json or a SentencePiece .model',
    flag_values=FLAGS,
)
_FIELD = flags.DEFINE_string('field', 'text', 'that holds the text of a row', flag_values=FLAGS)
_VOCABULARY_SIZE = flags.DEFINE_integer(
    'vocabulary_size', 32_000, 'of the bpe', lower_bound=257, flag_values=FLAGS
)
_BPE_DOCUMENTS = flags.DEFINE_integer(
    'bpe_documents',
    10_000,
    'training documents, the first ones, that the bpe is learned from; they are held in memory',
    lower_bound=1,
    flag_values=FLAGS,
)
_END_OF_DOCUMENT = flags.DEFINE_string(
    'end_of_document',
    None,
    'token after each document; default: 0 for bytes and bpe, the mark that a SentencePiece model'
    ' names, the first of </s>, <|endoftext|>, <|end_of_text|> and <eos> in a tokenizer.json',
    flag_values=FLAGS,
)
_VALIDATION_FRACTION = flags.DEFINE_float(
    'validation_fraction',
    0.01,
    'of documents, where the input has no validation split',
    lower_bound=0,
    upper_bound=0.5,
    flag_values=FLAGS,
)
_MAX_TRAIN_TOKENS = flags.DEFINE_integer(
    'max_train_tokens',
    0,
    'end with the document that makes the training text so long; 0: all (the paper: 1.3e10)',
    lower_bound=0,
    flag_values=FLAGS,
)
_SHARD_TOKENS = flags.DEFINE_integer(
    'shard_tokens', 2**29, 'in a file, before the next is begun', lower_bound=1, flag_values=FLAGS
)

PLAIN_SECONDS = 5  # between lines where there is no terminal

_BPE_FLAGS = ('vocabulary_size', 'bpe_documents')
_LIBRARIES = {  # whose version may change the tokens
    'bpe': ['tokenizers'],
    'tokenizer.json': ['tokenizers'],
    'sentencepiece': ['sentencepiece'],
}


def main() -> int:
  """Makes the token files, or goes on making them."""
  if not _INPUT.value:
    raise BadInput('--input: missing, must be hf:NAME[:CONFIG], a file, a folder or a pattern')
  if not _OUTPUT.value:
    raise BadInput('--output: missing, must be a folder')
  output = Path(_OUTPUT.value)
  encoder = _encoder()
  try:
    with packing.locked(output):
      return _tokenize(output, encoder)
  except OSError as error:
    print(f'error: {error}; the same command goes on from here', file=sys.stderr)
    return 1


def _encoder() -> encoders.Encoder | None:
  """The tokenizer; None: a BPE, yet to be learned."""
  name = _TOKENIZER.value
  for flag in (*_BPE_FLAGS, 'end_of_document'):
    if FLAGS[flag].present and (name == 'bytes' or (name == 'bpe') != (flag in _BPE_FLAGS)):
      only = 'bpe' if flag in _BPE_FLAGS else 'PATH'
      raise BadInput(f'--{flag}: only with --tokenizer={only}')
  if name == 'bpe':
    return None
  return encoders.Bytes() if name == 'bytes' else encoders.load(Path(name), _END_OF_DOCUMENT.value)


def _tokenize(output: Path, encoder: encoders.Encoder | None) -> int:
  before = packing.settings_before(output)
  parts, left_out = _parts(output, before)
  settings = _settings(encoder, parts)
  if packing.begin(output, settings):
    packing.clean(output)
    print(f'{output} is finished already', file=sys.stderr)
    return 0
  if left_out:
    more = f' and {len(left_out) - 3} more' if len(left_out) > 3 else ''
    print(f'left out: {", ".join(map(repr, left_out[:3]))}{more}', file=sys.stderr)
  with _Progress() as shown:
    packer = packing.Packer(output, parts, settings, shown.show)
    packer.pack(encoder)
  found = ', '.join(f'{packer.tokens[s]:,} {s} tokens' for s in packer.tokens)
  print(f'{found}; train on them with --config.data.path={output}', file=sys.stderr)
  return 0


def _parts(
    output: Path, before: packing.Json | None
) -> tuple[list[readers.Part], list[str]]:
  """What is read, in order, and the names of files that are not."""
  parts: list[readers.Part] = []
  left_out: list[str] = []
  revisions = before['revisions'] if before else {}
  for given in _INPUT.value:
    if given.startswith(hub.PREFIX):
      parts += hub.find(given, _FIELD.value, output / packing.CACHE, revisions.get(given))
    else:
      files, others = readers.find(given, _FIELD.value)
      parts += files
      left_out += others
  twice = {part.name for part in parts if sum(part.name == other.name for other in parts) > 1}
  if twice:
    raise BadInput(f'--input: {min(twice)!r} is in the input twice')
  return readers.divide(parts), left_out


def _settings(encoder: encoders.Encoder | None, parts: list[readers.Part]) -> packing.Json:
  """What the token files follow from."""
  kind = encoder.kind if encoder else 'bpe'
  libraries = list(_LIBRARIES.get(kind, []))
  splits = {part.name.rsplit(' ', 1)[0]: part for part in parts if isinstance(part, hub.Split)}
  if splits:
    libraries.append('datasets')
  return {
      'input': _INPUT.value,
      'field': _FIELD.value,
      'tokenizer': kind,
      'tokenizer_sha256': encoders.digest(encoder) if encoder else None,
      'vocabulary_size': encoder.vocabulary_size if encoder else _VOCABULARY_SIZE.value,
      'bpe_documents': None if encoder else _BPE_DOCUMENTS.value,
      'end_of_document': encoder.end_of_document if encoder else 0,
      'validation': 'its own split' if parts[0].side else 'by hash',
      'validation_fraction': None if parts[0].side else _VALIDATION_FRACTION.value,
      'max_train_tokens': _MAX_TRAIN_TOKENS.value,
      'shard_tokens': _SHARD_TOKENS.value,
      'revisions': {given: part.revision for given, part in splits.items()},
      'libraries': {name: importlib.metadata.version(name) for name in libraries},
      'parts': [[part.name, part.side, part.fingerprint()] for part in parts],
  }


class _Progress:
  """A line that is redrawn on a terminal; elsewhere a plain line now and then."""

  def __init__(self):
    self._console = Console(stderr=True)
    self._live = Live(console=self._console, refresh_per_second=4, transient=True)
    self._begun: tuple[float, float] | None = None  # when packing began, and the work done by then
    self._last_line = time.monotonic() if not self._console.is_terminal else 0.0

  def __enter__(self) -> '_Progress':
    if self._console.is_terminal:
      self._live.start()
    return self

  def __exit__(self, *_) -> None:
    if self._console.is_terminal:
      self._live.stop()

  def show(self, packer: packing.Packer) -> None:
    """Redraws, if it is time."""
    now, fraction = time.monotonic(), packer.fraction()
    if packer.doing == 'packing' and self._begun is None:
      self._begun, self._first_tokens = (now, fraction or 0.0), sum(packer.tokens.values())
    if now - self._last_line < (0.25 if self._console.is_terminal else PLAIN_SECONDS):
      return
    self._last_line = now
    facts = [packer.doing]
    if self._begun:
      seconds = max(now - self._begun[0], 1e-9)
      facts += [
          f'{packer.documents["train"] + packer.documents["validation"]:,} documents',
          f'{sum(packer.tokens.values()):,} tokens',
          f'{packer.text_bytes / 1e6:,.0f} MB of text',
          f'{(sum(packer.tokens.values()) - self._first_tokens) / seconds:,.0f} tokens/s',
      ]
      gained = (fraction or 0.0) - self._begun[1]
      if gained > 0:
        facts.append(progress.time_left((1 - fraction) / gained * seconds))
    if self._console.is_terminal:
      self._live.update(progress.bar(fraction, ' · '.join(facts)))
    else:
      part = '' if fraction is None else f'{fraction:4.0%}  '
      print(part + ', '.join(facts), file=sys.stderr, flush=True)


if __name__ == '__main__':
  app.run(main, FLAGS)
