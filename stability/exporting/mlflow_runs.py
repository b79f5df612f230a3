"""Runs of a workdir -> FOLDER/mlruns, a file store of MLflow with one experiment."""

import math
import os
import posixpath
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from stability import config as config_lib
from stability.errors import BadInput
from stability.exporting.finished import FinishedRun

PACKAGE = 'mlflow'
_STATUSES = {'done': 'FINISHED', 'diverged': 'FINISHED', 'failed': 'FAILED', 'stopped': 'KILLED'}
_FORBIDDEN = re.compile(r'[^\w\-./ :]')  # in the name of a metric or parameter
_BATCH = 1000  # most metrics in a call
_PARAMS = 100  # most parameters in a call
_MAX_CHARACTERS = 5000  # of a tag; the end of a longer one is kept


def write(runs: Iterable[FinishedRun], folder: Path, final: Path) -> None:
  """Writes the runs to a folder that will be renamed to `final`; nothing is sent.

  Raises BadInput for what MLflow refuses.
  """
  # MLflow refuses file stores unless it is told otherwise.
  os.environ['MLFLOW_ALLOW_FILE_STORE'] = 'true'
  os.environ['MLFLOW_DISABLE_TELEMETRY'] = 'true'
  import mlflow

  try:
    _write(runs, folder, final)
  except mlflow.exceptions.MlflowException as error:
    raise BadInput(f'--to=mlflow: {error}') from error


def _write(runs: Iterable[FinishedRun], folder: Path, final: Path) -> None:
  import mlflow
  from mlflow.entities import Metric, Param

  client, experiment = mlflow.MlflowClient(tracking_uri=(folder / 'mlruns').as_uri()), None
  for run in runs:
    if experiment is None:
      artifacts = (final / 'mlruns' / 'artifacts').absolute().as_uri()
      experiment = client.create_experiment(run.sweep, artifact_location=artifacts)
      shutil.rmtree(folder / 'mlruns' / '0')  # the experiment Default, which holds nothing
    started = int(run.started * 1000)
    tags = {name: value[-_MAX_CHARACTERS:] for name, value in run.text().items()}
    written = client.create_run(
        experiment, start_time=started, run_name=run.name, tags={'sweep': run.sweep, **tags}
    )
    config = config_lib.flatten(run.config)
    names = _names(config)
    params = [Param(names[name], str(value)) for name, value in config.items()]
    for start in range(0, len(params), _PARAMS):
      client.log_batch(written.info.run_id, params=params[start : start + _PARAMS])
    rows = list(run.metrics())
    names = _names(dict.fromkeys(name for _, row in rows for name in row))
    metrics = []
    for step, row in rows:
      seconds = row.get('seconds', 0.0)
      at = started + (int(1000 * seconds) if math.isfinite(seconds) else 0)
      metrics += [Metric(names[name], value, at, step) for name, value in row.items()]
    ended = started + int(1000 * (run.result.seconds or 0))
    last = {metric.key for metric in metrics if metric.step == run.result.steps}
    metrics += [
        Metric(name, value, ended, run.result.steps or 0)
        for name, value in run.summary().items()
        if name not in last  # tokens and seconds
    ]
    for start in range(0, len(metrics), _BATCH):
      client.log_batch(written.info.run_id, metrics=metrics[start : start + _BATCH])
    client.set_terminated(written.info.run_id, _STATUSES[run.result.status], end_time=ended)


def _names(names: Iterable[str]) -> dict[str, str]:
  """The names that MLflow allows, by our names; of equal ones, the later get a number."""
  found: dict[str, str] = {}
  for name in names:
    allowed = _FORBIDDEN.sub('_', name)
    if posixpath.normpath(allowed) != allowed or allowed[0] in './':
      allowed = re.sub(r'/|^\.+', '_', allowed)  # names are paths
    first, number = allowed, 1
    while allowed in found.values():
      number += 1
      allowed = f'{first}_{number}'
    found[name] = allowed
  return found
