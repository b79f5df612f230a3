"""The files of metrics: equal contents, resumes, and what TensorBoard shows."""

import errno
import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams.api_pb2 import DataType
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from stability.storage import events, metrics, run_files


def line(step, **more):
  return {'step': step, 'loss': 5.0 - step / 100, 'block_0/attention_logit_max': 2.0 * step} | more


def write(run, steps, *, resume_from=0, result=None, hparams=None):
  run.mkdir(parents=True, exist_ok=True)
  writer = metrics.MetricsWriter(run, resume_from, hparams or {'seed': 0})
  for step in steps:
    writer.write(line(step))
  writer.flush()
  writer.close(result)


def scalars(run, tag):
  """(step, value) of each point, as TensorBoard's own loader finds them."""
  found = event_accumulator.EventAccumulator(str(run), purge_orphaned_data=True).Reload()
  return [(event.step, event.value) for event in found.Scalars(tag)]


def test_both_files_have_the_rows(tmp_path):
  write(tmp_path, [10, 20])
  assert run_files.read_metrics(tmp_path) == [line(10), line(20)]
  assert scalars(tmp_path, 'block_0/attention_logit_max') == [(10, 20.0), (20, 40.0)]
  steps, losses = zip(*scalars(tmp_path, 'loss'))
  assert steps == (10, 20) and losses == pytest.approx((4.9, 4.8))


def test_overview_comes_first(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, 0, {})
  writer.write(line(10, **{'activation_rms/embedding': 1.0, 'block_1/attention_logit_max': 50.0}))
  writer.write({'step': 20, 'loss': 4.8})  # not a probed step
  writer.close()
  found = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
  tags = sorted(found.Tags()['scalars'])
  assert tags[:2] == ['0_overview/attention_logit_max', '0_overview/loss']
  assert scalars(tmp_path, '0_overview/attention_logit_max') == [(10, 50.0)]
  assert scalars(tmp_path, '0_overview/loss') == scalars(tmp_path, 'loss')


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([None, 2, 0.5], 'FLOAT64'),
        ([None, True, False], 'BOOL'),
        ([None, 'a.txt'], 'STRING'),
        ([1, True], 'STRING'),
        (['none', 3], 'STRING'),
    ],
)
def test_column_type(values, expected):
  for found in (values, values[::-1]):  # whichever run comes first
    (value,) = events.experiment([{'field': v} for v in found]).value
    content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    (column,) = content.experiment.hparam_infos
    assert (column.name, DataType.Name(column.type)) == ('field', f'DATA_TYPE_{expected}')


def test_highest_logit_of_a_resumed_run(tmp_path):
  """It is that of all rows, also those of earlier starts, and of finite values alone."""
  write(tmp_path, [10, 90])
  result = run_files.Result('diverged', steps=95)
  writer = metrics.MetricsWriter(tmp_path, 90, {})
  writer.write(line(95, **{'block_0/attention_logit_max': math.nan}))
  writer.close(result)
  assert scalars(tmp_path, 'result/attention_logit_max') == [(95, 180.0)]


def test_nonfinite_values(tmp_path):
  writer = metrics.MetricsWriter(tmp_path, 0, {})
  writer.write(line(10, loss=math.nan, log_z=math.inf))
  writer.close()
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(text, parse_constant=pytest.fail) == line(10, loss=None, log_z=None)
  assert math.isnan(scalars(tmp_path, 'loss')[0][1])


def test_resume_replaces_later_rows(tmp_path):
  write(tmp_path, [10, 20, 30])
  write(tmp_path, [30, 40], resume_from=20)
  assert run_files.read_metrics(tmp_path) == [line(step) for step in (10, 20, 30, 40)]
  assert [step for step, _ in scalars(tmp_path, 'loss')] == [10, 20, 30, 40]


def test_restart_replaces_all_rows(tmp_path):
  write(tmp_path, [10, 20])
  write(tmp_path, [10])
  assert run_files.read_metrics(tmp_path) == [line(10)]
  assert [step for step, _ in scalars(tmp_path, 'loss')] == [10]


def test_writers_of_one_second_have_files_of_their_own(tmp_path, monkeypatch):
  monkeypatch.setattr(time, 'time', lambda: 1_700_000_000.0)
  for n in range(3):
    write(tmp_path, [10 * (n + 1)], resume_from=10 * n)
  assert len(list(tmp_path.glob('events.out.tfevents.*'))) == 3
  assert [step for step, _ in scalars(tmp_path, 'loss')] == [10, 20, 30]


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  """Two runs with different fields, and the experiment summary in the workdir."""
  workdir = tmp_path_factory.mktemp('sweep')
  runs = {'none': (0.1, None, 3.0), 'layernorm': (0.3, 2, 2.0)}
  swept = {
      norm: {'model.qk_norm': norm, 'optimizer.learning_rate': rate, 'parallel.microbatches': parts}
      for norm, (rate, parts, _) in runs.items()
  }
  metrics.write_experiment(workdir, swept.values())
  for norm, (_, _, final) in runs.items():
    write(
        workdir / 'runs' / norm,
        [10, 20],
        result=run_files.Result(
            'done' if norm == 'layernorm' else 'diverged',
            initial_loss=5.5,
            final_loss=final,
            parameters=9_000,
            steps=20,
        ),
        hparams=swept[norm],
    )
  return workdir


@pytest.fixture(scope='module')
def server(sweep):
  """The address of a TensorBoard over the sweep."""
  program = 'from tensorboard.main import run_main; run_main()'
  arguments = [f'--logdir={sweep}', '--port=0', '--bind_all=false', '--load_fast=false']
  process = subprocess.Popen(
      [sys.executable, '-c', program, *arguments[:2], arguments[3]],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
  )
  try:
    for text in process.stdout:
      found = re.search(r'http://\S+', text)
      if found:
        yield found.group().rstrip('/')
        break
    else:
      pytest.fail('TensorBoard did not start')
  finally:
    process.kill()
    process.wait()


def ask(url, body=None):
  """The JSON that TensorBoard answers with once it has loaded the runs."""
  for _ in range(60):
    try:
      data = None if body is None else json.dumps(body).encode()
      request = urllib.request.Request(url, data, {'Content-Type': 'application/json'})
      with urllib.request.urlopen(request, timeout=10) as answer:
        value = json.load(answer)
      if value:
        return value
    except urllib.error.HTTPError as error:
      if error.code not in (400, 404):  # until it has loaded the runs
        raise
    time.sleep(0.5)
  return pytest.fail(f'no answer from {url}')


def test_tensorboard_scalars(server):
  query = urllib.parse.urlencode({'run': 'runs/none', 'tag': 'loss'})
  points = ask(f'{server}/data/plugin/scalars/scalars?{query}')
  assert [(step, round(value, 3)) for _, step, value in points] == [(10, 4.9), (20, 4.8)]


def test_hparams_columns(server):
  experiment = ask(f'{server}/data/plugin/hparams/experiment', {'experimentName': ''})
  columns = {info['name']: info['type'] for info in experiment['hparamInfos']}
  assert columns == {
      'model.qk_norm': 'DATA_TYPE_STRING',
      'optimizer.learning_rate': 'DATA_TYPE_FLOAT64',
      'parallel.microbatches': 'DATA_TYPE_FLOAT64',
  }
  titles = [info['displayName'] for info in experiment['metricInfos']]
  assert titles == [
      'status: 0 done, 1 diverged, 2 stopped',
      'parameters',
      'initial_loss',
      'final_loss',
      'highest attention logit',
  ]


def session_groups(server, **request):
  """What the dashboard shows: the fields and metrics of each run, by model.qk_norm."""
  sort = {'metric': {'tag': 'result/attention_logit_max'}, 'order': 'ORDER_DESC'}
  request = {
      'experimentName': '',
      'allowedStatuses': ['STATUS_SUCCESS', 'STATUS_FAILURE'],
      'colParams': [sort],
      'startIndex': 0,
      'sliceSize': 10,
  } | request
  answer = ask(f'{server}/data/plugin/hparams/session_groups', request)
  return {
      group['hparams']['model.qk_norm']: group['hparams']
      | {value['name']['tag']: value['value'] for value in group['metricValues']}
      for group in answer['sessionGroups']
  }


def test_hparams_dashboard(server):
  found = session_groups(server)
  assert found['none'] == {
      'model.qk_norm': 'none',
      'optimizer.learning_rate': 0.1,
      'result/status': 1.0,
      'result/parameters': 9_000.0,
      'initial_loss': 5.5,
      'final_loss': 3.0,
      'result/attention_logit_max': 40.0,
  }
  assert found['layernorm']['parallel.microbatches'] == 2.0
  assert found['layernorm']['result/status'] == 0.0
  assert set(session_groups(server, allowedStatuses=['STATUS_FAILURE'])) == {'none'}


# TensorBoard's file is a convenience.


@pytest.fixture
def warned(caplog):
  return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize('call', ['__init__', 'write_event', 'flush', 'close'])
@pytest.mark.parametrize(
    'error',
    [
        *(
            OSError(code, os.strerror(code))
            for code in (
                *(errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO),
                *(errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE),
            )
        ),
        ValueError('of tensorboardX'),
        AttributeError('of protobuf'),
    ],
    ids=str,
)
def test_event_file_that_fails(call, error, tmp_path, warned, monkeypatch):
  """One warning; the rows are complete."""

  def fail(*_, **__):
    raise error

  monkeypatch.setattr(events.EventsWriter, call, fail)
  write(tmp_path, [10, 20])
  assert run_files.read_metrics(tmp_path) == [line(10), line(20)]
  (message,) = warned()
  assert message == f'{tmp_path}: TensorBoard will lack later events: {error}'


def test_event_file_of_a_sweep_that_fails(tmp_path, warned, monkeypatch):
  monkeypatch.setattr('socket.gethostname', lambda: 1 / 0)  # a part of the file's name
  metrics.write_experiment(tmp_path, [{'seed': 0}])
  (message,) = warned()
  assert message.startswith(f'{tmp_path}: TensorBoard will lack')
