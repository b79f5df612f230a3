"""Runs of a workdir -> FOLDER/wandb/offline-run-*, which `wandb sync` uploads."""

import os
from collections.abc import Iterable
from pathlib import Path

from stability.errors import BadInput
from stability.exporting.finished import FinishedRun

PACKAGE = 'wandb'
PROJECT = 'stability'


def write(runs: Iterable[FinishedRun], folder: Path, final: Path) -> None:
  """Writes the runs; nothing is sent. Raises BadInput for what W&B refuses.

  W&B knows two outcomes of a run that has ended, finished and failed. The summary has the status.
  """
  del final  # the files hold no path that is read
  os.environ['WANDB_ERROR_REPORTING'] = 'false'
  import wandb

  settings = wandb.Settings(
      mode='offline',
      silent=True,
      console='off',
      disable_git=True,
      save_code=False,
      x_disable_machine_info=True,
      x_disable_meta=True,
      x_disable_stats=True,
      x_save_requirements=False,
  )
  try:
    for run in runs:
      written = wandb.init(
          project=PROJECT,
          group=run.sweep,
          name=run.name,
          id=run.id,
          config=run.config,
          dir=str(folder),
          settings=settings,
          reinit='create_new',
      )
      for step, row in run.metrics():
        written.log(row, step=step)
      written.summary.update(run.summary() | run.text())
      written.finish(exit_code=1 if run.result.status == 'failed' else 0)
  except wandb.errors.Error as error:
    raise BadInput(f'--to=wandb: {error}') from error
  finally:
    wandb.teardown()  # waits for the process that writes the files
