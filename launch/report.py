"""Writes the report on a sweep, finished or not, on several, or on another trainer's results.

  python -m launch.report --workdir=DIR [--output=FOLDER]
  python -m launch.report --workdir=DIR,DIR2[,...] --output=FOLDER
  python -m launch.report --results=FILE.csv --output=DIR [--group_by=a,b] [--initial_loss=X]
      [--window=LOW,HIGH ...] [--window_where=COLUMN=VALUE ...] [--not_comparable=COLUMN]

The report on a sweep is written to its DIR, or, with --output, to FOLDER, and then nothing is
written to DIR, which may be read-only. The report on several sweeps compares them on one page, with
the sweep as an intervention: those after the first with the first, over pairs of runs of equal
size, learning rate and seed.

For a paper:

  --figures=NAME,...           the figures to draw, by the names of their files
  --figure_format=pdf          also write them in this format; text stays text in SVG and PDF
  --figure_width_in=3.25       the width of the files, in inches; narrow ones have smaller fonts
  --labels=FILE.json           labels for figures and tables: {"none": "no QK-norm", ...}; the keys
                               are fields (qk_norm), values (none), pairs (qk_norm=none), arms
                               (qk_norm=none, eps=1e-8) or texts of axes (learning rate)
  --interval=0.95              the confidence level of the intervals of LR sensitivity
  --latex                      also write lr_sensitivity.tex

Where the points of a sweep carry the label `arm`, the page has a leaderboard of the arms. --costs
is a CSV file of launch.benchmarks.arms with their time and memory; without it, the time is that of
the runs.

FILE.csv has a row per run with learning_rate, final_loss and, unless the flag is given,
initial_loss; parameters, seed and status are optional. A run with neither final_loss nor status has
diverged. Forks (rows with forked_from in results.csv) are left out. Each combination of
values in the columns of --group_by is an intervention; the default is all columns with a dot in
their name.

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
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from stability.analysis import windows
from stability.errors import BadInput, CannotWrite
from stability.storage import files, results_csv, sweeps

if TYPE_CHECKING:  # importing pandas takes a second, which --help and bad flags need not wait for
  import pandas as pd

  from stability.report.options import Options

FLAGS = flags.FlagValues()
_WORKDIR = path_flags.define_list('workdir', 'folders of sweeps, separated by commas', FLAGS)
_RESULTS = path_flags.define('results', None, 'CSV file with a row per run', FLAGS)
_OUTPUT = path_flags.define('output', None, 'folder for the report; default: the workdir', FLAGS)
_FIGURES = flags.DEFINE_list('figures', None, 'names of the figures to draw', flag_values=FLAGS)
_FIGURE_FORMAT = flags.DEFINE_string(
    'figure_format', None, 'also write the figures as pdf, svg or png, for a paper', FLAGS
)
_FIGURE_WIDTH = flags.DEFINE_float(
    'figure_width_in', None, "width of the figures' files, in inches", flag_values=FLAGS
)
_LABELS = path_flags.define('labels', None, 'JSON file of labels for figures and tables', FLAGS)
_INTERVAL = flags.DEFINE_float(
    'interval', 0.9, 'confidence level of the intervals of LR sensitivity', flag_values=FLAGS
)
_LATEX = flags.DEFINE_bool('latex', False, 'also write lr_sensitivity.tex', flag_values=FLAGS)
_COSTS = path_flags.define('costs', None, 'CSV file with the cost of arms over the baseline', FLAGS)
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
_SWEEP_FOLDERS = ('runs', 'data', 'forks', 'extensions')  # of a workdir
_WIDTHS = (2, 20)  # inches


def main() -> None:
  """Writes the report and prints its summary."""
  if bool(_WORKDIR.value) == bool(_RESULTS.value):
    raise BadInput('--workdir, --results: exactly one of them must be given')
  if _RESULTS.value and not _OUTPUT.value:
    raise BadInput('--output: missing, must be a folder for the report on --results')
  for name in ONLY_WITH_RESULTS:
    if not _RESULTS.value and FLAGS[name].present:
      raise BadInput(f'--{name}: can only be used with --results')
  from stability.report import labels

  workdirs = [] if _RESULTS.value else _workdirs()
  output = Path(_OUTPUT.value) if _OUTPUT.value else None
  if output is not None:
    _check_output(output, workdirs)
  for folder in [output] if output is not None else workdirs:
    files.refuse_links(folder)
  options = _options()
  with labels.replaced(_labels()):
    if _RESULTS.value:
      _report_on_results(output, options)
    elif len(workdirs) == 1:
      _report_on_sweep(workdirs[0], output, options)
    else:
      _report_on_sweeps(workdirs, output, options)


def _report_on_results(output: Path, options: 'Options') -> None:
  from stability.analysis import results_table
  from stability.report import page, terminal

  results = results_table.load_csv(
      Path(_RESULTS.value),
      group_by=_GROUP_BY.value,
      initial_loss=_INITIAL_LOSS.value,
      windows=_windows(),
      window_where=_window_where(),
      not_comparable=_NOT_COMPARABLE.value,
  )
  path = page.write_results_report(results, output, options)
  terminal.print_results_summary(Console(), results, path, options)


def _report_on_sweep(workdir: Path, output: Path | None, options: 'Options') -> None:
  """Writes the report on a sweep; BadInput if that needs --output."""
  from stability.report import page, terminal

  try:
    path = page.write_report(workdir, output, options)
    results_csv.write_results(workdir, output)
  except CannotWrite as error:
    if output or error.errno not in _READ_ONLY:
      raise
    raise BadInput(
        f'--workdir={workdir}: cannot be written: {error.strerror}; name a folder for the report'
        ' with --output'
    ) from error
  terminal.print_summary(Console(), workdir, path, options)


def _report_on_sweeps(workdirs: list[Path], output: Path, options: 'Options') -> None:
  from stability.report import comparison_page, terminal

  compared = comparison_page.compare(_names(workdirs), options)
  path = comparison_page.write_comparison(compared, output, options)
  terminal.print_comparison(Console(), compared, path)


def _workdirs() -> list[Path]:
  """The values of --workdir, checked before anything is written."""
  workdirs = list(map(Path, _WORKDIR.value))
  found: dict[Path, Path] = {}
  for workdir in workdirs:
    sweeps.read_sweep(workdir)  # raises BadInput
    same = found.setdefault(workdir.resolve(), workdir)
    if same is not workdir:
      also = '' if same == workdir else f', also as {same}'
      raise BadInput(f'--workdir={workdir}: is given twice{also}')
  if len(workdirs) > 1 and not _OUTPUT.value:
    raise BadInput('--output: missing, must be a folder for the report on several sweeps')
  return workdirs


def _check_output(output: Path, workdirs: list[Path]) -> None:
  """Raises BadInput if the report would be mixed with the files of a sweep."""
  folder = output.resolve()
  if (folder / 'sweep.json').exists():
    raise BadInput(f'--output={output}: is the folder of a sweep; name another one')
  for workdir in workdirs:
    if folder.is_relative_to(workdir.resolve()):
      inside = folder.relative_to(workdir.resolve()).parts[0]
      if len(workdirs) > 1 or inside in _SWEEP_FOLDERS:
        raise BadInput(f'--output={output}: is inside of the sweep {workdir}; name another folder')


def _names(workdirs: list[Path]) -> dict[str, Path]:
  """Name -> workdir: the end of its path that distinguishes it from the others."""
  parts = [workdir.resolve().parts for workdir in workdirs]
  for length in range(1, max(map(len, parts)) + 1):
    names = ['/'.join(of_workdir[-length:]) for of_workdir in parts]
    if len(set(names)) == len(names):
      break
  return dict(zip(names, workdirs, strict=True))


def _options() -> 'Options':
  """The values of the flags that choose what is drawn and written."""
  from stability.report import figure_files
  from stability.report.options import Options

  kind, width = _FIGURE_FORMAT.value, _FIGURE_WIDTH.value
  if kind is not None and kind not in figure_files.FORMATS:
    allowed = ', '.join(figure_files.FORMATS)
    raise BadInput(f'--figure_format={kind}: must be one of {allowed}')
  low, high = _WIDTHS
  if width is not None and not low <= width <= high:
    raise BadInput(f'--figure_width_in={width:g}: must be from {low} to {high} inches')
  if not 0 < _INTERVAL.value < 1:
    raise BadInput(f'--interval={_INTERVAL.value:g}: must be between 0 and 1, such as 0.95')
  if _FIGURES.value == [] or '' in (_FIGURES.value or []):
    raise BadInput('--figures: must be names of figures, separated by commas')
  figures = tuple(_FIGURES.value or ())
  return Options(figures, kind, width, _INTERVAL.value, _LATEX.value, _costs())


def _costs() -> 'pd.DataFrame | None':
  """The content of --costs."""
  if not _COSTS.value:
    return None
  import pandas as pd

  names = ['arm', 'width', 'seconds', 'bytes']
  try:
    found = pd.read_csv(_COSTS.value, dtype={'arm': str} | dict.fromkeys(names[1:], float))
  except (OSError, ValueError) as error:
    raise BadInput(f'--costs={_COSTS.value}: cannot be read: {error}') from error
  for name in names:
    if name not in found:
      raise BadInput(f'--costs={_COSTS.value}: has no column {name}; it needs {", ".join(names)}')
  return found[names]


def _labels() -> dict[str, str]:
  """The content of --labels."""
  if not _LABELS.value:
    return {}
  try:
    found = files.read_json(Path(_LABELS.value))
  except BadInput as error:
    raise BadInput(f'--labels={error}') from None
  for name, label in found.items():
    if not isinstance(label, str) or not label.strip():
      raise BadInput(
          f'--labels={_LABELS.value}: {name!r}: must be a string, the label, not {label!r}'
      )
  return found


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
