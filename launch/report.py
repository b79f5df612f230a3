"""Writes the report on a sweep, finished or not, or on the results of any other trainer.

  python -m launch.report --workdir=DIR[,DIR2...] [--output=FOLDER]
  python -m launch.report --results=FILE.csv --output=DIR [--group_by=a,b] [--initial_loss=X]
      [--window=LOW,HIGH ...] [--window_where=COLUMN=VALUE ...] [--not_comparable=COLUMN]

The report on a sweep is written to its DIR, or, with --output, to FOLDER, and then nothing is
written to DIR, which may be read-only. The reports on several sweeps go to folders of FOLDER that
have the names of the sweeps' folders.

FILE.csv has a row per run with learning_rate, final_loss and, unless the flag is given,
initial_loss; parameters, seed and status are optional. A run with neither final_loss nor status
has diverged. Each combination of values in the columns of --group_by is an intervention; the
default is all columns with a dot in their name.

With --window, LR sensitivity is computed within each window of learning rates, ends included, and
the lowest value counts; --window_where limits this to rows with the given values.
--not_comparable names a column that changes what a learning rate means, so that LR sensitivity is
not computed. For sweeps, the function get_report of the config file replaces these flags
(stability/analysis/windows.py).
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import errno
from pathlib import Path

from absl import flags
from rich.console import Console

from stability.analysis import windows
from stability.errors import BadInput, CannotWrite
from stability.storage import results_csv, sweeps

FLAGS = flags.FlagValues()
_WORKDIR = path_flags.define_list('workdir', 'folders of sweeps, separated by commas', FLAGS)
_RESULTS = path_flags.define('results', None, 'CSV file with a row per run', FLAGS)
_OUTPUT = path_flags.define('output', None, 'folder for the report; default: the workdir', FLAGS)
_GROUP_BY = flags.DEFINE_list(
    'group_by', None, 'columns of --results that identify an intervention', flag_values=FLAGS
)
_INITIAL_LOSS = flags.DEFINE_float(
    'initial_loss', None, 'initial loss of every run in --results, in nats', flag_values=FLAGS
)
_WINDOW = flags.DEFINE_multi_string(
    'window', None, 'LOW,HIGH: range of learning rates; repeatable', flag_values=FLAGS
)
_WINDOW_WHERE = flags.DEFINE_multi_string(
    'window_where', None, 'COLUMN=VALUE: rows that --window is for; repeatable', flag_values=FLAGS
)
_NOT_COMPARABLE = flags.DEFINE_string(
    'not_comparable', None, 'column that changes what a learning rate means', flag_values=FLAGS
)


ONLY_WITH_RESULTS = ('group_by', 'initial_loss', 'window', 'window_where', 'not_comparable')
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def main() -> None:
  """Writes the report and prints its summary."""
  if bool(_WORKDIR.value) == bool(_RESULTS.value):
    raise BadInput('--workdir, --results: exactly one of them must be given')
  from stability.analysis import results as results_lib
  from stability.report import page, terminal

  if _RESULTS.value:
    if not _OUTPUT.value:
      raise BadInput('--output: missing, must be a folder for the report on --results')
    results = results_lib.load_csv(
        Path(_RESULTS.value),
        group_by=_GROUP_BY.value,
        initial_loss=_INITIAL_LOSS.value,
        windows=_windows(),
        window_where=_window_where(),
        not_comparable=_NOT_COMPARABLE.value,
    )
    path = page.write_results_report(results, Path(_OUTPUT.value))
    terminal.print_results_summary(Console(), results, path)
  else:
    for name in ONLY_WITH_RESULTS:
      if FLAGS[name].present:
        raise BadInput(f'--{name}: can only be used with --results')
    for workdir, output in _outputs().items():
      path = _write(workdir, output)
      terminal.print_summary(Console(), workdir, path)


def _outputs() -> dict[Path, Path | None]:
  """The folder for the report on each workdir; None stands for the workdir."""
  workdirs = list(dict.fromkeys(map(Path, _WORKDIR.value)))
  for workdir in workdirs:
    sweeps.read_sweep(workdir)  # raises BadInput before anything is written
  if not _OUTPUT.value or len(workdirs) == 1:
    return dict.fromkeys(workdirs, Path(_OUTPUT.value) if _OUTPUT.value else None)
  found: dict[Path, Path] = {}
  for workdir in workdirs:
    output = Path(_OUTPUT.value) / workdir.resolve().name
    if output in found.values():
      raise BadInput(f'--workdir: several folders are named {output.name}; report on one at a time')
    found[workdir] = output
  return found


def _write(workdir: Path, output: Path | None) -> Path:
  """Writes the report on a sweep; BadInput if that needs --output. Returns the path of the page."""
  from stability.report import page

  try:
    results_csv.write_results(workdir, output)
    return page.write_report(workdir, output)
  except CannotWrite as error:
    if output or error.errno not in _READ_ONLY:
      raise
    raise BadInput(
        f'--workdir={workdir}: cannot be written: {error.strerror}; name a folder for the report'
        ' with --output'
    ) from error


def _windows() -> list[tuple[float, float]]:
  """The values of --window."""
  found = []
  for text in _WINDOW.value or []:
    try:
      low, high = map(float, text.split(','))
    except ValueError:
      raise BadInput(f'--window={text}: must be LOW,HIGH, two learning rates') from None
    windows.check_window((low, high), f'--window={text}')
    found.append((low, high))
  return found


def _window_where() -> dict[str, str]:
  """The values of --window_where."""
  if _WINDOW_WHERE.value and not _WINDOW.value:
    raise BadInput('--window_where: can only be used with --window')
  found = {}
  for text in _WINDOW_WHERE.value or []:
    column, equals, value = text.partition('=')
    if not equals:
      raise BadInput(f'--window_where={text}: must be COLUMN=VALUE')
    found[column] = value
  return found


if __name__ == '__main__':
  app.run(main, FLAGS)
