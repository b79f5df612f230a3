"""launch.import_runs, and the other programs on what it writes."""

import json

import pandas as pd
import pytest

import stability
from launch import alarms, control, import_runs, predict, report, work
from launch.common import app
from stability.analysis import alarm_log
from stability.analysis import results as results_lib
from stability.storage import run_files, sweeps

SIZES, RATES = (9216, 36864, 147456), (1e-3, 1e-2, 1e-1)


def run(program, *arguments):
  command = ['program', *map(str, arguments)]
  return app.execute(program.main, program.FLAGS, command, words=program is control)


def export(**change):
  """A table as W&B exports it."""
  rows = [
      {
          'Name': f'{size}-{norm}-{rate}',
          'State': 'finished',
          'config.lr': rate,
          'config.num_params': size,
          'config.qk_norm': norm,
          'summary.val/loss': 2 + rate * (30 if norm else 1),
      }
      for size in SIZES
      for norm in (False, True)
      for rate in RATES
  ]
  return pd.DataFrame(rows).assign(**change)


def logs(runs, steps=(0, 10, 20)):
  rows = [
      {'run': name, '_step': step, 'train/loss': 5 - step / 10, 'max_attn_logit': step + 1.0}
      for name in runs['Name']
      for step in steps
  ]
  return pd.DataFrame(rows)


@pytest.fixture
def files(tmp_path):
  runs = export()
  runs.to_csv(tmp_path / 'runs.csv', index=False)
  logs(runs).to_csv(tmp_path / 'logs.csv', index=False)
  return tmp_path


def import_(folder, *flags):
  return run(import_runs, f'--runs={folder / "runs.csv"}', f'--curves={folder / "logs.csv"}',
             f'--workdir={folder / "w"}', *flags)  # fmt: skip


@pytest.mark.slow
def test_programs_read_an_imported_workdir(files, capsys):
  workdir = files / 'w'
  assert import_(files) == 0
  assert 'learning_rate is the column config.lr' in capsys.readouterr().out
  stored = json.loads((workdir / 'sweep.json').read_text())
  assert stored['origin'] == 'imported' and len(stored['sources']['files']) == 2
  assert run(report, f'--workdir={workdir}') == 0
  assert 'Alarms: not looked for yet; python -m launch.alarms' in capsys.readouterr().out
  assert run(alarms, f'--workdir={workdir}') == 0
  assert not alarm_log.are_pending(workdir)
  table = pd.read_csv(workdir / 'report' / 'lr_sensitivity.csv')
  assert list(table['parameters'].unique()) == list(SIZES)
  assert set(table['qk_norm']) == {True, False}
  claims = pd.read_csv(workdir / 'report' / 'claims.csv')
  assert (claims['n'] == 0).all()  # nothing is judged on what is not known
  assert run(predict, f'--workdir={workdir}', '--target=4.8B') == 0
  answers = pd.read_csv(workdir / 'report' / 'answers.csv')
  assert list(answers['qk_norm']) == [False, True] and list(answers['usable']) == [False, False]
  assert run(control, f'--workdir={workdir}') == 0
  name = '9216-False-0.001'
  capsys.readouterr()
  assert run(control, f'--run={workdir / "runs" / name}') == 0
  assert 'step 20 of 20' in capsys.readouterr().out
  curves = results_lib.load_curves(workdir)
  assert curves[results_lib.LOGIT].max() == 21.0


# Final losses published with arXiv 2601.02031 at two sizes, without z-loss and with it, and their
# LR sensitivity, computed as the plain mean.
PUBLISHED = {
    (16, 0.0): ((3.961, 3.881, 3.850, 3.841, 3.857, 4.269, 5.065), 0.262),
    (16, 1e-4): ((3.961, 3.878, 3.848, 3.836, 3.841, 3.854, 3.955), 0.046),
    (221, 0.0): ((3.090, 3.050, 3.050, 3.076, 3.153, 3.305, 5.099), 0.353),
    (221, 1e-4): ((3.089, 3.050, 3.049, 3.069, 3.091, 3.173, 3.478), 0.094),
}
PUBLISHED_RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
NAMES_OF = {  # of run, state, parameters, learning rate, z-loss, final loss
    'wandb': ('Name', 'State', 'config.params', 'config.lr', 'config.z_loss', 'summary.eval/loss'),
    'mlflow': ('run_id', 'status', 'params.size', 'params.lr', 'params.z', 'metrics.eval_loss'),
    'jsonl': ('name', 'state', 'num_params', 'learning_rate', 'z_loss', 'final_loss'),
}


@pytest.mark.parametrize('tool', NAMES_OF)
def test_published_losses(tool, tmp_path, capsys):
  rows = [
      (f'{size}-{z_loss}-{rate}', 'FINISHED' if tool == 'mlflow' else 'finished', size * 10**6,
       rate, z_loss, loss)
      for (size, z_loss), (losses, _) in PUBLISHED.items()
      for rate, loss in zip(PUBLISHED_RATES, losses)
  ]  # fmt: skip
  table = pd.DataFrame(rows, columns=NAMES_OF[tool])
  file = tmp_path / f'runs.{"jsonl" if tool == "jsonl" else "csv"}'
  if tool == 'jsonl':
    table.to_json(file, orient='records', lines=True)
  else:
    table.to_csv(file, index=False)
  workdir = tmp_path / 'w'
  mapping = [f'--map=parameters={NAMES_OF[tool][2]}']
  flags = [f'--runs={file}', f'--workdir={workdir}', '--initial_loss=10.83', '--loss_unit=nats']
  assert run(import_runs, *flags, *mapping) == 0
  assert capsys.readouterr().out.splitlines()[-2:] == [
      f'Imported 28 runs into {workdir}. Next:',
      f'  python -m launch.report --workdir={workdir}',
  ]
  assert run(report, f'--workdir={workdir}') == 0
  found = pd.read_csv(workdir / 'report' / 'lr_sensitivity.csv')
  assert len(found) == len(PUBLISHED)
  for row in found.itertuples(index=False):
    _, expected = PUBLISHED[row.parameters // 10**6, float(row[0])]
    assert row.lr_sensitivity == pytest.approx(expected, abs=1e-3)


def test_configs_are_not_completed(files):
  import_(files)
  config = sweeps.read_sweep(files / 'w').runs['9216-False-0.001']
  assert config == {'qk_norm': 'False', 'optimizer': {'learning_rate': 0.001}, 'seed': 0}


def test_training_is_refused(files, capsys):
  import_(files)
  workdir = files / 'w'
  for program, *flags in (
      (work, f'--workdir={workdir}'),
      (control, f'--run={workdir}/runs/9216-False-0.001', 'stop'),
  ):
    capsys.readouterr()
    assert run(program, *flags) == 2
    assert 'were imported and cannot be trained here' in capsys.readouterr().err


def test_update(files, capsys):
  runs = export()
  runs.loc[0, 'State'] = 'running'
  runs.iloc[:-1].to_csv(files / 'runs.csv', index=False)
  logs(runs.iloc[:-1], (0, 10)).to_csv(files / 'logs.csv', index=False)
  assert import_(files) == 0
  first = files / 'w' / 'runs' / runs.loc[0, 'Name']
  assert run_files.read_result(first) is None and len(run_files.read_metrics(first)) == 2
  export().to_csv(files / 'runs.csv', index=False)
  logs(runs).to_csv(files / 'logs.csv', index=False)
  assert import_(files) == 0
  assert run_files.read_result(first).status == 'done'
  assert len(run_files.read_metrics(first)) == 3
  assert len(sweeps.read_sweep(files / 'w').runs) == len(runs)
  for changed, message in (
      (export().iloc[1:], 'is no longer among them'),
      (export(**{'config.num_params': 7}), 'have the same parameters'),
      (export(**{'config.lr': [*RATES[::-1]] * 6}), 'had optimizer.learning_rate=0.001, now 0.1'),
  ):
    changed.to_csv(files / 'runs.csv', index=False)
    before = (files / 'w' / 'sweep.json').read_bytes()
    capsys.readouterr()
    assert import_(files) == 2
    assert message in capsys.readouterr().err
    assert (files / 'w' / 'sweep.json').read_bytes() == before


def test_alarms_of_other_rows(files, capsys):
  """Alarms of runs whose metrics have changed are removed, until launch.alarms has looked again."""
  workdir, runs = files / 'w', export()
  assert import_(files) == 0 and alarm_log.are_pending(workdir)
  assert run(alarms, f'--workdir={workdir}') == 0 and not alarm_log.are_pending(workdir)
  assert import_(files) == 0 and not alarm_log.are_pending(workdir)  # nothing has changed
  run_dir = next(workdir.glob('runs/*'))
  rows = (run_dir / 'metrics.jsonl').read_text()
  (run_dir / 'metrics.jsonl').write_text('')  # launch.alarms reads no runs without rows
  (run_dir / 'alarms.jsonl').unlink()
  assert not alarm_log.are_pending(workdir)
  (run_dir / 'metrics.jsonl').write_text(rows)
  assert alarm_log.are_pending(workdir)
  assert run(alarms, f'--workdir={workdir}') == 0
  frame = logs(runs, (0, 10, 20, 30))
  changed = runs.loc[0, 'Name']
  frame[(frame['run'] == changed) | (frame['_step'] < 30)].to_csv(files / 'logs.csv', index=False)
  assert import_(files) == 0 and alarm_log.are_pending(workdir)
  kept = {path.parent.name for path in workdir.glob('runs/*/alarms.jsonl')}
  assert kept == {*runs['Name']} - {changed}
  assert run(alarms, f'--workdir={workdir}') == 0 and not alarm_log.are_pending(workdir)


def test_warnings_come_last(files, capsys):
  with (files / 'logs.csv').open('a') as file:
    file.write('9216-False-0.001,3')
  assert import_(files) == 0
  lines = capsys.readouterr().out.splitlines()
  first = next(i for i, line in enumerate(lines) if line.startswith('Warning: '))
  assert 'is cut off' in lines[first]
  assert all(line.startswith('Warning: ') for line in lines[first:-2])


def test_update_of_a_run_that_was_trained_again(files, capsys):
  runs = export()
  runs.loc[0, 'State'] = 'crashed'
  again = runs.iloc[[0]].assign(Name='again', State='running')
  for table in (runs, pd.concat([runs, again]), pd.concat([runs, again.assign(State='finished')])):
    table.to_csv(files / 'runs.csv', index=False)
    assert import_(files, '--initial_loss=5') == 0
  found = {path.name for path in (files / 'w' / 'runs').iterdir()}
  assert found == {*runs['Name'][1:], 'again'} == {*sweeps.read_sweep(files / 'w').runs}
  out = capsys.readouterr().out
  assert 'left out, trained again' in out and 'steps are the column _step' in out


def test_update_with_a_run_that_lacks_a_setting(files):
  runs = export(**{'config.wd': [0.1] * 9 + [1e-2] * 9})
  flags = ('--initial_loss=5', '--group_by=qk_norm,wd')
  more = runs.assign(Name=runs['Name'] + '-none', **{'config.wd': None})
  for table in (runs, pd.concat([runs, more])):
    table.to_csv(files / 'runs.csv', index=False)
    assert import_(files, *flags) == 0
  values = {config['wd'] for config in sweeps.read_sweep(files / 'w').runs.values()}
  assert values == {0.1, 0.01, 'unset'}
  # Text makes text of the numbers, which are the same settings.
  text = pd.concat([runs, more.assign(**{'config.wd': 'cosine'})])
  text.to_csv(files / 'runs.csv', index=False)
  assert import_(files, *flags) == 2  # the value of the later runs has changed
  for table in (runs, text):
    table.to_csv(files / 'runs.csv', index=False)
    assert import_(files, *flags, f'--workdir={files / "v"}') == 0


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--loss_unit=hartleys'], 'must be nats or bits'),
        (['--step_unit=epochs'], 'must be steps or tokens'),
        (['--map=x'], 'must be NAME=COLUMN'),
        (['--map=seed=sed'], '--map=seed=sed: no such column'),
        (['--map=learning_rte=lr'], 'learning_rte=lr: no such name; the nearest is learning_rate'),
        (['--group_by=nothing'], 'has no such column'),
        (['--initial_loss=nan'], 'must be a number from'),
    ],
)
def test_bad_flags(files, capsys, flags, message):
  assert import_(files, *flags) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1
  assert not (files / 'w').exists()


def test_other_folders_are_refused(files, capsys):
  (files / 'w').mkdir()
  (files / 'w' / 'notes.txt').write_text('')
  assert import_(files) == 2
  assert 'is not empty and holds no runs' in capsys.readouterr().err
  assert run(import_runs, f'--workdir={files / "v"}') == 2
  assert '--runs, --curves: one of them must be given' in capsys.readouterr().err


def test_from_frames():
  runs = export()
  experiment = stability.from_frames(runs, logs(runs))
  assert len(experiment.lr_sensitivity()) == 2 * len(SIZES)
  assert len(experiment.curves()) == 3 * len(runs)
  assert experiment.runs['status'].eq('done').all()
