"""Writes the runs of a sweep in the offline format of Weights & Biases or MLflow.

  python -m launch.export --workdir=DIR --to=wandb --output=FOLDER
  python -m launch.export --workdir=DIR --to=mlflow --output=FOLDER

Each run that has ended is exported with its config, the logged rows by step, its result and its
status, under its name and in a group named after DIR. Nothing is sent anywhere. FOLDER must be new
or empty; to export what has ended since, name another one. The package of the tool is needed: pip
install -e '.[wandb]' or '.[mlflow]'. To use what was written:

  wandb sync FOLDER/wandb/offline-run-*
  MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri FOLDER/mlruns

A run that is exported twice has the same id in W&B, which then has it once. W&B shows failed runs
as failed and all others as finished, MLflow stopped ones as killed; `status` has the outcome.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import importlib.util
import os
import secrets
import shutil
from pathlib import Path

from absl import flags

from stability.errors import BadInput, writing
from stability.exporting import finished, mlflow_runs, wandb_runs
from stability.storage import sweeps

FORMATS = {'wandb': wandb_runs, 'mlflow': mlflow_runs}

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_TO = flags.DEFINE_enum('to', None, list(FORMATS), 'the tool', flag_values=FLAGS)
_OUTPUT = path_flags.define('output', None, 'folder to write, new or empty', FLAGS)


def main() -> None:
  """Exports the runs."""
  if not _TO.value:
    raise BadInput(f'--to: missing, must be {" or ".join(FORMATS)}')
  if not _OUTPUT.value:
    raise BadInput('--output: missing, must be a folder')
  written_by, workdir, output = FORMATS[_TO.value], Path(_WORKDIR.value), Path(_OUTPUT.value)
  _check_installed(written_by.PACKAGE)
  sweeps.read_sweep(workdir)
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise BadInput(f'--output={output}: is not an empty folder; choose a new one')
  ended, unfinished = finished.count(workdir)
  if not ended:
    raise BadInput(f'--workdir={workdir}: none of its {unfinished} runs has ended')
  temporary = output.absolute().with_name(f'.{output.name}.{secrets.token_hex(4)}')
  with writing(temporary):
    temporary.mkdir(parents=True)
  try:
    with writing(output):
      written_by.write(finished.runs(workdir), temporary, output)
      os.replace(temporary, output)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  left = f'; left out: {unfinished:,} without a result' if unfinished else ''
  print(f'{output}: {ended:,} runs{left}')


def _check_installed(package: str) -> None:
  # A folder of this name, such as one that W&B makes, has no origin.
  spec = importlib.util.find_spec(package)
  if spec is None or spec.origin is None:
    raise BadInput(
        f"--to={package}: needs the package {package}: pip install -e '.[{package}]'"
    )


if __name__ == '__main__':
  app.run(main, FLAGS)
