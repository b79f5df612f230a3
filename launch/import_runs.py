"""Imports the runs of other trainers into a workdir that every other program reads.

  python -m launch.import_runs --runs=FILE [--curves=FILE or FOLDER] --workdir=DIR
      [--map=NAME=COLUMN,...] [--group_by=COLUMN,...] [--initial_loss=X]
      [--loss_unit=nats|bits] [--step_unit=steps|tokens]

--runs is a CSV or JSON file with a row per run: an export of Weights & Biases, MLflow or
TensorBoard's HParams, or any table. --curves has the logged steps of the runs: CSV (a row per step,
a row per step and metric, or a column per run as in chart exports) or JSON with a column `run`, or
a folder with a file per run, TensorBoard's event files included (pip install tensorboard). One of
the two is enough if it has the learning rates and the losses. JSON has an object per line or is an
array; files may end in .gz.

Columns are recognised by the names that these tools and common trainers use, and what was
recognised is printed. --map names others: learning_rate, final_loss, initial_loss, parameters,
seed, run, id, status, steps, tokens, model.width, model.depth in --runs, and step, loss,
gradient_norm, log_z, block_0/attention_logit_max or any other probe in --curves; --map=NAME= says
that no column is it. parameters are those in the matrices of the blocks, without embedding and
head. By default, every setting that varies on its own defines interventions;
--group_by names the columns instead.

Where the seed differs in every run, as it does in sweeps that draw it, the runs of each size,
intervention and learning rate are numbered instead, since learning rates are compared by seed.

--initial_loss is of runs for which neither a column nor the curve at step 0 or 1 has one. Damaged
lines, rows without a step and files of --curves that cannot be used are left out. Warnings, which
come last, name them.

The same command updates the workdir later, with new runs and new rows.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
from pathlib import Path

from absl import flags

from stability.errors import BadInput

FLAGS = flags.FlagValues()
_RUNS = path_flags.define('runs', None, 'CSV or JSON file with a row per run', FLAGS)
_CURVES = path_flags.define('curves', None, 'file or folder of per-step logs', FLAGS)
_WORKDIR = app.define_workdir(FLAGS)
_MAP = flags.DEFINE_list('map', [], 'NAME=COLUMN: the column of a quantity', flag_values=FLAGS)
_GROUP_BY = flags.DEFINE_list(
    'group_by', None, 'columns that identify an intervention', flag_values=FLAGS
)
_INITIAL_LOSS = flags.DEFINE_float(
    'initial_loss',
    None,
    'initial loss of runs without one, in the unit of the losses',
    flag_values=FLAGS,
)
_LOSS_UNIT = flags.DEFINE_string(
    'loss_unit', None, 'unit of the losses: nats or bits; default: nats', flag_values=FLAGS
)
_STEP_UNIT = flags.DEFINE_string(
    'step_unit', None, 'what steps count: steps or tokens; default: steps', flag_values=FLAGS
)


def main() -> None:
  """Imports the runs and prints what was recognised."""
  if not _RUNS.value and not _CURVES.value:
    raise BadInput('--runs, --curves: one of them must be given')
  from stability import importing
  from stability.importing import columns, options
  from stability.importing.runs import Caution, count

  chosen = options.Options(
      mapping=columns.parse_map(_MAP.value),
      initial_loss=_INITIAL_LOSS.value,
      group_by=None if _GROUP_BY.value is None else tuple(_GROUP_BY.value),
      loss_unit=_LOSS_UNIT.value,
      step_unit=_STEP_UNIT.value,
  )
  workdir = Path(_WORKDIR.value)
  runs = Path(_RUNS.value) if _RUNS.value else None
  curves = Path(_CURVES.value) if _CURVES.value else None
  imported = importing.import_files(runs, curves, workdir, chosen)
  for note in imported.notes:
    if not isinstance(note, Caution):
      print(note)
  for note in imported.notes:
    if isinstance(note, Caution):
      print(f'Warning: {note}')
  print(f'Imported {count(len(imported.runs))} into {workdir}. Next:')
  print(f'  python -m launch.report --workdir={workdir}')


if __name__ == '__main__':
  app.run(main, FLAGS)
