"""Shows runs in training and their alarms, and acts on them.

  python -m launch.control --workdir=DIR                 lists the runs of a sweep
  python -m launch.control --run=DIR/runs/NAME           shows a run: curves, alarms, what may help
  python -m launch.control --run=DIR/runs/NAME ask       shows it and asks what to do
  python -m launch.control --run=DIR/runs/NAME ACTION [--why=TEXT]

    pause                            the run leaves its device until it is continued
    continue                         resumes a paused run
    stop                             ends the run here, with a result
    checkpoint                       saves a checkpoint now
    set FIELD=VALUE ...              changes hyperparameters, say optimizer.learning_rate=1e-3
    skip STEPS                       leaves out the data of the next STEPS steps
    rewind STEP [skip=STEPS] [FIELD=VALUE ...]
                                     returns to a checkpoint, or to step 0; also resumes the run
    fork [FIELD=VALUE ...]           starts another run from here; this one continues

  python -m launch.control --run=DIR/runs/NAME --workdir=NEW replay
                                     trains the run again, with its actions, and compares

This program requests an action by writing a file to the run's folder. At the run's next stop (a
logged step, a probe or a checkpoint), the run's trainer takes the action and records it in
actions.jsonl, or records there why it refuses the request.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, display, path_flags, user

# isort: split
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from rich.console import Console
from rich.text import Text

from stability.control import actions, records, requests
from stability.control.actions import ARGUMENTS, Action
from stability.control.alarms import read_alarms
from stability.control.history import finite
from stability.errors import BadInput
from stability.report import terminal_plot
from stability.storage import run_files, sweeps

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS, required=False)
_RUN = path_flags.define('run', None, 'folder of a run, DIR/runs/NAME', FLAGS)
_WHY = flags.DEFINE_string('why', '', 'reason for the action, which is recorded', flag_values=FLAGS)

ANSWER_SECONDS = 15  # how long to wait for the trainer's answer to a request
POLL_SECONDS = 0.2
MAX_SHOWN = 5  # maximum number of alarms, and of actions, to show of a run


def main(*words: str) -> int | None:
  """Lists runs, shows one, or requests an action."""
  is_replay = words[:1] == ('replay',)
  if bool(_WORKDIR.value) == bool(_RUN.value) and not (is_replay and _RUN.value):
    raise BadInput('--workdir, --run: exactly one of them must be given')
  console = display.console()
  if not _RUN.value:
    if words:
      raise BadInput(f'{words[0]!r}: an action needs --run=DIR/runs/NAME')
    list_runs(Path(_WORKDIR.value), console)
    return None
  run = _check_run(_RUN.value)
  if is_replay:
    if not _WORKDIR.value or len(words) > 1:
      raise BadInput('replay: needs --workdir=NEW, a new folder, and nothing else')
    from launch.common import replay

    return replay.replay(run, Path(_WORKDIR.value), console)
  if not words or words == ('ask',):
    show(run, console)
    words = _ask(console) if words else ()
  if words:
    request(run, parse(words), _WHY.value, console)
  return None


def _check_run(path: str) -> Path:
  """The folder of a run; BadInput if the path is anything else."""
  run = Path(os.path.abspath(path))  # without any ..
  if run.parent.name != 'runs' or not (run / 'config.json').is_file():
    raise BadInput(f'--run={path}: must be the folder of a run, DIR/runs/NAME')
  return run


# Runs and their state.


_MIN_WIDTHS = {'run': 20, 'status': 8, 'step': 4, 'loss': 5}  # the others wrap at 80 columns


def list_runs(workdir: Path, console: Console) -> None:
  """Prints a row per run: its progress and loss, its alarms and actions."""
  names = ('run', 'status', 'step', 'loss', 'alarms', 'actions', 'last alarm')
  table = display.table(names, left=names)
  for name, column in zip(names, table.columns, strict=True):
    column.min_width = _MIN_WIDTHS.get(name)
  for name in [*sweeps.read_sweep(workdir).runs, *sweeps.read_forks(workdir)]:
    run = run_files.run_dir(workdir, name)
    alarms = read_alarms(run)
    row = run_files.last_metrics(run) or {}
    loss = row.get('loss')
    table.add_row(
        Text(name),
        status(run),
        str(row.get('step', '')),
        '' if loss is None else f'{loss:.3f}',
        str(len(alarms) or ''),
        str(len(records.read_taken(run)) or ''),
        Text(f'{alarms[-1].rule} at step {alarms[-1].step}' if alarms else ''),
    )
  console.print(table)


def status(run: Path) -> str:
  """The status of a run's result; of a run without one: paused, started or waiting."""
  result = run_files.read_result(run)
  if result is not None:
    return result.status
  if records.is_paused(records.read_taken(run)):
    return 'paused'
  return 'started' if (run / 'metrics.jsonl').exists() else 'waiting'


def show(run: Path, console: Console) -> None:
  """Prints a run's curves of loss and attention logit, its alarms, suggestions and actions."""
  for text in _description(run):
    console.print(_printable(text), markup=False, highlight=False)


def _description(run: Path) -> Iterator[str]:
  rows = run_files.read_metrics(run)
  alarms, history = read_alarms(run), records.read_records(run)
  steps = _planned_steps(run, rows)
  yield f'{run.name}: {status(run)}, step {rows[-1]["step"] if rows else 0} of {steps}'

  marks = {record.step: '*' for record in history if record.action is not None}
  marks |= {alarm.step: '!' for alarm in alarms}
  losses = [(row['step'], finite(row, 'loss')) for row in rows]
  yield '\nloss (! alarm, * action)'
  yield terminal_plot.plot(losses, marks, steps)
  logits = [(row['step'], run_files.highest(row, 'attention_logit_max')) for row in rows]
  powers = [(step, math.log10(logit)) for step, logit in logits if logit > 0]
  if powers:
    yield '\nhighest attention logit, power of ten'
    yield terminal_plot.plot(powers, marks, steps)

  if alarms:
    yield '\nalarms'
    hidden = max(len(alarms) - MAX_SHOWN, 0)
    for number, alarm in enumerate(alarms[:1] + alarms[1 + hidden :]):
      if hidden and number == 1:
        yield f'  ... {hidden} more'
      probability = f'unstable with a probability of {alarm.probability:.0%}'
      yield f'  step {alarm.step}: {alarm.message} ({probability})'
  has_ended = run_files.read_result(run) is not None
  if alarms and alarms[-1].suggestions and not has_ended:  # imported runs have none
    yield '\nwhat may help'
    for action in alarms[-1].suggestions:
      yield f'  {action}'
  if saved := run_files.checkpoint_steps(run):
    yield f'\ncheckpoints: {", ".join(map(str, [0, *saved]))}'
  if history:
    yield '\nactions'
    for record in history[-MAX_SHOWN:]:
      why = f': {record.why}' if record.why else ''
      yield f'  step {record.step}: {record} (by {record.by or "?"}{why})'


def _planned_steps(run: Path, rows: list[dict]) -> int:
  """The steps of a run; of an imported one, whose config may lack them, those logged so far."""
  if sweeps.is_imported(run.parents[1]):
    return rows[-1]['step'] if rows else 0
  return run_files.read_config(run)['schedule']['steps']


def _printable(text: str) -> str:
  """The text with control characters escaped: anybody may have written the reason of a request."""
  return ''.join(
      c if c.isprintable() or c == '\n' else c.encode('unicode_escape').decode() for c in text
  )


# Actions.


def _ask(console: Console) -> tuple[str, ...]:
  """The words of the action that a person types; empty if the run is to be left as it is."""
  console.print(f'\n{", ".join(ARGUMENTS)}, or nothing', markup=False, highlight=False)
  try:
    return tuple(input('action: ').split())
  except EOFError:
    return ()


def parse(words: tuple[str, ...]) -> Action:
  """Parses the words of an action; actions.check decides whether it is allowed."""
  kind, *rest = words
  if kind not in ARGUMENTS:
    raise BadInput(f'{kind!r}: must be one of {", ".join(ARGUMENTS)}, ask, replay')
  asked, changes = {'action': kind}, {}
  if kind in ('rewind', 'skip'):
    if not rest or not rest[0].isdecimal():
      raise BadInput(f'{kind}: needs a number of steps, for example: {kind} 100')
    asked['to' if kind == 'rewind' else 'steps'] = int(rest.pop(0))
  for word in rest:
    field, equals, value = word.partition('=')
    if not equals or 'changes' not in ARGUMENTS[kind]:
      raise BadInput(f'{kind}: takes no {word!r}')
    if field == 'skip' and kind == 'rewind':
      if not value.isdecimal():
        raise BadInput(f'skip={value}: must be a whole number, 0 or more')
      asked['skip'] = int(value)
    else:
      changes[field] = _parse_number(field, value)
  return Action.from_json(asked | ({'changes': changes} if changes else {}))


def _parse_number(field: str, text: str) -> float | int:
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      pass
  raise BadInput(f'{field}={text}: must be a number')


def request(
    run: Path, action: Action, why: str, console: Console, seconds: float = ANSWER_SECONDS
) -> None:
  """Requests an action and waits some seconds for the trainer's answer.

  Raises BadInput if the action is not allowed on the run or the trainer refuses it.
  """
  sweeps.refuse_imported(run.parents[1])
  if ended := _ended(run):
    raise BadInput(f'{ended}; it takes no actions')
  taken = records.read_taken(run)
  config = records.current_config(run_files.read_config(run), taken)
  # A checkpoint may be newer than the last row.
  logged = (run_files.last_metrics(run) or {'step': 0})['step']
  step = max([logged, *run_files.checkpoint_steps(run)])
  action = actions.check(action, config, step, records.skipped_steps(taken))
  path = requests.write_request(run, action, user.name(), why)
  deadline = time.monotonic() + seconds
  while time.monotonic() < deadline:
    for record in reversed(records.read_records(run)):
      if record.request == path.name:
        if record.refused:
          raise BadInput(record.refused)
        display.line(console, f'taken at step {record.step}: {record}')
        return
    if ended := _ended(run):
      path.unlink(missing_ok=True)  # no trainer will read it
      raise BadInput(f'{ended} before it took the action')
    time.sleep(POLL_SECONDS)
  display.line(
      console,
      f'requested; the run has not reached its next stop, or nobody is training it: {path}',
  )


def _ended(run: Path) -> str | None:
  """A sentence that says that a run has ended; None if it is or will be trained."""
  result = run_files.read_result(run)
  if result is None or result.status == 'failed':
    return None
  return f'--run={run}: the run has ended ({result.status})'


if __name__ == '__main__':
  app.run(main, FLAGS, words=True)
