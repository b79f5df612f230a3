"""Alarms of a run of another trainer, from the JSON lines that it appends to a file.

  python tail_jsonl.py FILE [SECONDS]    ends if the file has not grown for so long; default 600
"""

import json
import sys
import time

import stability

# Their name -> the name here; what is not named here is not read.
NAMES = {'iter': 'step', 'train/loss': 'loss', 'max_attn_logit': 'block_0/attention_logit_max'}


def follow(path, patience):
  """Yields the objects in a file as they are appended; a line without a newline is not whole."""
  with open(path) as file:
    line, deadline = '', time.monotonic() + patience
    while time.monotonic() < deadline:
      part = file.readline()
      line += part
      if part:
        deadline = time.monotonic() + patience
      if line.endswith('\n') and line.strip():
        yield json.loads(line)
        line = ''
      elif not part:
        time.sleep(min(1.0, patience / 10))


monitor = stability.Monitor()
for found in follow(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 600.0):
  row = {NAMES[name]: value for name, value in found.items() if name in NAMES}
  if 'step' in row and row['step'] < monitor.last_row.get('step', 0):  # back at a checkpoint
    monitor = stability.Monitor()
  for alarm in monitor.observe(row) if 'step' in row else []:
    print(f'step {alarm.step}: {alarm.rule}: {alarm.message}', flush=True)
for rule, needs in monitor.lacking.items():
  print(f'{rule} needs {needs}')
