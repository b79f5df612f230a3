"""A worker that speaks the protocol and trains nothing: python stub_worker.py PLAN ...

PLAN is a JSON file: run -> what happens at the worker's first, second ... try of the run; the last
entry is repeated. A run without a plan is ok. Each try adds a line to the run's tries.jsonl.

  ok      the run is finished
  freeze  the worker is stopped
  stuck   the worker reports no progress and is stopped
  kill    the worker is killed
  exit    the worker exits with an error
  saved   the worker exits after saving
  wait    the worker waits to be told to end, and exits after saving
  large   the same, and takes 3 s to reach a checkpoint of 9 GB
  break   the worker waits to be told to end, and exits with an error
  full    the same, since the disk is full
  reach   the worker reaches a checkpoint and is killed
  N       the worker is killed if it has more than N members
"""

import errno
import json
import os
import pathlib
import signal
import sys
import time


def main() -> None:
  plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
  runs = pathlib.Path(sys.argv[2].removeprefix('--workdir=')) / 'runs'
  like = None
  while True:
    say({'like': like})
    answer = listen('run')
    like = answer['run']
    if like is None:
      return
    tries = runs / like / 'tries.jsonl'
    with tries.open('a') as file:
      file.write(json.dumps(answer | {'pid': os.getpid(), 'time': time.time()}) + '\n')
    planned = plan.get(like, ['ok'])
    number = len(tries.read_text().splitlines())
    what = planned[min(number, len(planned)) - 1]
    if what == 'reach':
      (runs / like / 'checkpoints' / str(number)).mkdir(parents=True)
    elif what == 'large':
      listen('stop')
      say({'saving': [9_000_000_000]})
      time.sleep(3)
      (runs / like / 'checkpoints' / str(number)).mkdir(parents=True)
      os._exit(75)
    elif what == 'full':
      listen('stop')
      say({'cannot_write': [errno.ENOSPC, os.strerror(errno.ENOSPC), str(runs / like)]})
      os._exit(1)
    act(what, answer.get('members'))
    result = {'status': 'done', 'initial_loss': 5.0, 'final_loss': 2.0, 'steps': 1, 'tokens': 1}
    whole = runs / like / '.result'
    whole.write_text(json.dumps(result | {'seconds': 0.0, 'error': None}))
    whole.rename(runs / like / 'result.json')


def act(what: str | int, max_members: int | None) -> None:
  members = max_members or 8
  beat(4000.0 if what == 'stuck' else 0.0, members if what != 'ok' else 1)
  if what in ('freeze', 'stuck'):
    os.kill(os.getpid(), signal.SIGSTOP)
  elif what == 'exit':
    print('some last words', file=sys.stderr, flush=True)
    os._exit(3)
  elif what == 'saved':
    os._exit(75)
  elif what in ('wait', 'break'):
    listen('stop')
    os._exit(75 if what == 'wait' else 1)
  elif what in ('kill', 'reach'):
    beat(0.0, 1)
    os.kill(os.getpid(), signal.SIGKILL)
  elif isinstance(what, int) and members > what:
    os.kill(os.getpid(), signal.SIGKILL)


def beat(seconds: float, members: int) -> None:
  say({'beat': seconds, 'members': members, 'phase': 'training'})


def say(message: dict) -> None:
  print(json.dumps(message), flush=True)


def listen(key: str) -> dict:
  for line in sys.stdin:
    if key in (message := json.loads(line)):
      return message
  os._exit(1)


if __name__ == '__main__':
  main()
