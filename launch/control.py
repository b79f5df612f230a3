"""Shows running runs and their alarms, and steps in.

  python -m launch.control --workdir=DIR                 lists the runs of a sweep
  python -m launch.control --run=DIR/runs/NAME           shows one: curves, alarms, what may help
  python -m launch.control --run=DIR/runs/NAME ask       shows it and asks what to do
  python -m launch.control --run=DIR/runs/NAME ACTION [--why=TEXT]

    pause                            it leaves its device, for as long as you like
    continue                         a paused one goes on
    stop                             it ends here, with a result
    checkpoint                       saves it now
    set FIELD=VALUE ...              hyperparameters, say optimizer.learning_rate=1e-3
    skip STEPS                       leaves out that much of the data
    rewind STEP [skip=STEPS] [FIELD=VALUE ...]
                                     back to a checkpoint, or to 0; a paused run goes on from there
    fork [FIELD=VALUE ...]           a second run from here, beside this one

  python -m launch.control --run=DIR/runs/NAME --workdir=NEW replay
                                     trains it again, with its actions, and compares the numbers

A request is a file in the run's folder. Its trainer takes it at the run's next stop (a logged step,
a probe or a checkpoint) and writes into actions.jsonl what was done and when, or why it was not.
"""

import getpass
import math
import os
import time
from pathlib import Path

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.common import app
from stability.control import actions
from stability.control.actions import Json
from stability.errors import BadInput
from stability.report import terminal_plot
from stability.storage import run_files, sweeps

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS, required=False)
_RUN = flags.DEFINE_string('run', None, 'folder of a run, DIR/runs/NAME', flag_values=FLAGS)
_WHY = flags.DEFINE_string('why', '', 'the reason, for the record', flag_values=FLAGS)

ANSWER_SECONDS = 15  # that a request is waited upon; it stays there for the trainer to take
SHOWN = 5  # of a run's alarms and actions


def main(*words: str) -> int | None:
  """Lists, shows, asks, or hands in an action."""
  replay = words[:1] == ('replay',)
  if bool(_WORKDIR.value) == bool(_RUN.value) and not (replay and _RUN.value):
    raise BadInput('--workdir, --run: one of them must be given, and not both')
  console = Console()
  if not _RUN.value:
    if words:
      raise BadInput(f'{words[0]!r}: an action needs --run=DIR/runs/NAME')
    list_runs(Path(_WORKDIR.value), console)
    return None
  run = _checked_run(Path(_RUN.value))
  if replay:
    if not _WORKDIR.value or len(words) > 1:
      raise BadInput('replay: needs --workdir=NEW, a new folder, and nothing else')
    from launch.common import replay as replay_lib

    return replay_lib.replay(run, Path(_WORKDIR.value), console)
  if not words or words == ('ask',):
    show(run, console)
    if not words:
      return None
    words = _ask(console)
    if not words:
      return None
  hand_in(run, words, console)
  return None


def _checked_run(run: Path) -> Path:
  run = Path(os.path.abspath(run))  # without any ..
  if run.parent.name != 'runs' or not (run / 'config.json').is_file():
    raise BadInput(f'--run={_RUN.value}: must be the folder of a run, DIR/runs/NAME')
  return run


# Looking.


def list_runs(workdir: Path, console: Console) -> None:
  """A line for each run: how far it is, its loss, its alarms and actions."""
  table = Table(box=box.SIMPLE_HEAD)
  for name in ('run', 'status', 'step', 'loss', 'alarms', 'last alarm', 'actions'):
    table.add_column(name, overflow='fold', min_width=30 if name == 'run' else 4)
  for name in [*sweeps.read_sweep(workdir).runs, *sweeps.read_forks(workdir)]:
    run = run_files.run_dir(workdir, name)
    raised = actions.read_alarms(run)
    row = run_files.last_metrics(run) or {}
    loss = row.get('loss')
    table.add_row(
        Text(name),
        status(run),
        str(row.get('step', '')),
        '' if loss is None else f'{loss:.3f}',
        str(len(raised) or ''),
        Text(f'{raised[-1]["rule"]} at step {raised[-1]["step"]}' if raised else ''),
        str(len(actions.done(actions.read(run))) or ''),
    )
  console.print(table)


def status(run: Path) -> str:
  """A result's status, or paused, started or waiting."""
  result = run_files.read_result(run)
  if result is not None:
    return result.status
  if actions.is_paused(actions.done(actions.read(run))):
    return 'paused'
  return 'started' if (run / 'metrics.jsonl').exists() else 'waiting'


def show(run: Path, console: Console) -> None:
  """Loss and attention logit over training, the alarms, what may help, and what was done."""
  config = run_files.read_config(run)
  rows = run_files.read_metrics(run)
  raised = actions.read_alarms(run)
  records = actions.read(run)
  marks = {r['step']: '*' for r in actions.done(records)} | {a['step']: '!' for a in raised}
  steps = config['schedule']['steps']
  say = lambda line='': console.print(_harmless(line), markup=False, highlight=False)  # noqa: E731
  say(f'{run.name}: {status(run)}, step {rows[-1]["step"] if rows else 0} of {steps}')
  say('\nloss (! alarm, * action)')
  say(terminal_plot.plot([(row['step'], _number(row.get('loss'))) for row in rows], marks, steps))
  logits = [
      (row['step'], math.log10(max(map(_number, found))))
      for row in rows
      if (found := [v for key, v in row.items() if key.endswith('/attention_logit_max')])
  ]
  if logits:
    say('\nhighest attention logit, power of ten')
    say(terminal_plot.plot(logits, marks, steps))
  if raised:
    say('\nalarms')
  for alarm in raised[-SHOWN:]:
    say(f'  step {alarm["step"]}: {alarm["seen"]} ({alarm["sure"]:.0%} of such runs were unstable)')
  if raised:
    say('\nwhat may help')
    for suggested in raised[-1]['suggested']:
      say(f'  {actions.words_of(suggested)}')
  if records:
    say('\nactions')
  for record in records[-SHOWN:]:
    why = f': {record["why"]}' if record['why'] else ''
    by = f'(by {record["by"] or "?"}{why})'
    say(f'  step {record["step"]}: {actions.told(record)} {by}')


def _harmless(text: str) -> str:
  """Without what a terminal would obey: anybody may have written the reason of a request."""
  return ''.join(
      c if c.isprintable() or c == '\n' else c.encode('unicode_escape').decode() for c in text
  )


def _number(value: float | None) -> float:
  return float('nan') if value is None else value


# Stepping in.


def _ask(console: Console) -> tuple[str, ...]:
  """What a person types; nothing: leave it as it is."""
  console.print(f'\n{", ".join(actions.FIELDS)}, or nothing', markup=False, highlight=False)
  try:
    return tuple(input('action: ').split())
  except EOFError:
    return ()


def parse(words: tuple[str, ...]) -> Json:
  """The action that words stand for; actions.check says whether it is a good one."""
  name, *rest = words
  if name not in actions.FIELDS:
    raise BadInput(f'{name!r}: must be one of {", ".join(actions.FIELDS)}, ask, replay')
  action: Json = {'action': name}
  if name in ('rewind', 'skip'):
    key = 'to' if name == 'rewind' else 'steps'
    if not rest or not rest[0].isdecimal():
      raise BadInput(f'{name}: needs a number of steps, say: {name} 100')
    action[key] = int(rest.pop(0))
  changes = {}
  for word in rest:
    field, equals, value = word.partition('=')
    if not equals or 'changes' not in actions.FIELDS[name]:
      raise BadInput(f'{name}: takes no {word!r}')
    if field == 'skip' and name == 'rewind' and value.isdecimal():
      action['skip'] = int(value)
    else:
      changes[field] = _parsed(field, value)
  return action | ({'changes': changes} if changes else {})


def _parsed(field: str, text: str) -> float | int:
  try:
    return int(text)
  except ValueError:
    pass
  try:
    return float(text)
  except ValueError:
    raise BadInput(f'{field}={text}: must be a number') from None


def hand_in(run: Path, words: tuple[str, ...], console: Console) -> None:
  """Writes the request and waits a little for what becomes of it."""
  action = parse(words)
  result = run_files.read_result(run)
  if result is not None and result.status != 'failed':
    raise BadInput(f'--run={_RUN.value}: has ended ({result.status}); nothing can be done to it')
  done = actions.done(actions.read(run))
  config = actions.current(run_files.read_config(run), done)
  step = (run_files.last_metrics(run) or {'step': 0})['step']
  checked = actions.check(action, config, step, actions.skipped(done))
  path = actions.request(run, checked, getpass.getuser(), _WHY.value)
  say = lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
  deadline = time.monotonic() + ANSWER_SECONDS
  while time.monotonic() < deadline:
    for record in reversed(actions.read(run)):
      if record.get('request') == path.name:
        if 'refused' in record:
          raise BadInput(record['refused'])
        say(f'taken at step {record["step"]}: {actions.told(record)}')
        return
    if (result := run_files.read_result(run)) is not None and result.status != 'failed':
      path.unlink(missing_ok=True)  # it ended while this was written: nobody will look
      raise BadInput(f'--run={_RUN.value}: has ended ({result.status}); nothing was done to it')
    time.sleep(0.2)
  say(f'asked for; the run has not come to its next stop, or nobody trains it now: {path}')


if __name__ == '__main__':
  app.run(main, FLAGS, words=True)
