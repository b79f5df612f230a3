"""Records what the programs compute on tiny sweeps of every variant; compares two recordings.

  python tests/helpers/record.py record --output=DIR [--repo=PATH] [--only=NAME,...]
  python tests/helpers/record.py compare --output=DIR --against=OTHER_DIR [--rtol=0]

`record` writes a config file for each sweep into DIR/configs, runs the programs of the repository
(default: this one) in DIR/work, and stores the values of their files, without wall-clock values, as
DIR/values/NAME.json. Existing values are kept, so a stopped recording can be resumed. `compare`
prints, for each workdir and kind of file, how many values differ and the largest difference,
relative to the larger value. Its exit code is 1 if a number differs by more than rtol, or if a text
differs or a value is missing.

This file imports nothing of the package. It works on any version with the same programs, flags,
configs.base.get_config, field names and workdir files. Each program has one core and one worker on
any machine.
"""

import argparse
import csv
import itertools
import json
import math
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLOCK = ('seconds', 'tokens_per_second', 'time')
RUN_FILES = ('metrics.jsonl', 'result.json', 'alarms.jsonl', 'actions.jsonl')
TABLES = ('lr_sensitivity.csv', 'claims.csv', 'predictions.csv', 'predictions_held_out.csv')


def points(text: str) -> list[dict[str, Any]]:
  """Points written as `FIELD=VALUE,VALUE FIELD=VALUE; ...`: every combination within each `;`."""
  found = []
  for part in text.split(';'):
    fields = [word.split('=') for word in part.split()]
    combinations = itertools.product(*(listed.split(',') for _, listed in fields))
    found += [{f: parsed(v) for (f, _), v in zip(fields, values)} for values in combinations]
  return found


def parsed(text: str) -> Any:
  """The number that a text stands for, or the text."""
  try:
    return float(text) if set(text) & set('.en') else int(text)
  except ValueError:
    return text


(TINY,) = points("""
data.source=synthetic data.batch_size=4 data.sequence_length=16 data.validation_batches=2
model.width=32 model.depth=1 model.head_dim=16 parameterization.base_width=16
schedule.steps=20 schedule.warmup_steps=4 schedule.decay_steps=6
log.every_steps=5 probe.every_steps=10 checkpoint.every_steps=0""")
SHARED = {  # options that the runs of a sweep share, in addition to TINY
    'grid': """
data.source=text data.sequence_length=32 data.batch_size=8 model.head_dim=8 schedule.steps=40""",
    'control': """model.width=16 model.depth=2 model.qk_norm=none optimizer.learning_rate=1.0
schedule.steps=40 checkpoint.every_steps=10""",
    'train': 'data.source=text data.tokenizer=bpe data.vocabulary_size=300',
}
SWEEPS = {  # a leading `;` adds a run without changes
    # The largest size has at least four times the parameters of three others: it is held out.
    'grid': """
model.depth=1 model.width=8,16 model.qk_norm=layernorm,none optimizer.learning_rate=.001,.01,.1,1;
model.depth=2 model.width=16,32 model.qk_norm=layernorm,none
  optimizer.learning_rate=.001,.01,.1,1""",
    # In populations: more runs than slots, and runs whose neighbour is rewound.
    'layouts': """
parallel.layout=auto,single,data_parallel,sharded;
parallel.layout=population parallel.members=2 optimizer.learning_rate=1e-3,3e-3,1e-2,3e-2,1e-1;
parallel.layout=population parallel.members=1 probe.sharpness_every_steps=0,10;
parallel.layout=population parallel.members=1 model.qk_norm=none optimizer.learning_rate=1.0,1e-2
  control.on_alarm=policy schedule.steps=40 checkpoint.every_steps=10;
parallel.layout=data_parallel,sharded parallel.microbatches=2 parallel.remat=block;
parallel.layout=data_parallel probe.sharpness_every_steps=10;
parallel.layout=sharded model.dtype=bfloat16""",
    'recipe': """;
objective.z_loss=0.0,1e-2; objective.mu_loss=1e-2; optimizer.name=adafactor model.width=128;
optimizer.name=adam_atan2,stable_adamw,lion,muon,adafactor;
optimizer.learning_rate_scale=parameter_rms optimizer.name=adamw,muon;
optimizer.weight_decay=0.0,0.1; optimizer.weight_decay=0.1 optimizer.weight_decay_kind=coupled;
optimizer.clip_norm=0.0,0.1; optimizer.eps=1e-3; schedule.shape=wsd,rsqrt;
schedule.warmup_steps=0; parallel.microbatches=2; parallel.remat=block;
probe.sharpness_every_steps=10 optimizer.name=adamw,lion""",
    'model': """;
model.depth=0; model.norm=rmsnorm; model.norm_position=peri; model.dtype=bfloat16;
model.qk_norm=layernorm_model,rmsnorm,l2,none; model.qk_norm=fixed model.logit_scale=2.0;
model.attention=squared_relu; model.attention_scale=inverse; model.attention_gate=sigmoid;
model.attention_soft_cap=2.0; model.output_soft_cap=2.0; model.output_centering=mean;
model.dtype=bfloat16 model.depth=2 model.qk_norm=none model.norm=rmsnorm model.norm_position=peri
  model.attention_gate=sigmoid model.attention_soft_cap=2.0 model.output_soft_cap=2.0""",
    'parameterization': """
parameterization.name=standard,ntk,mup,mean_field
  parameterization.exponents=none,full_alignment,no_alignment;
parameterization.name=muparam_simple,muparam_intermediate,muparam_full""",
    # The last one diverges.
    'control': """
control.on_alarm=none,policy; control.on_alarm=policy control.tries=2 optimizer.learning_rate=3.0;
control.on_alarm=ask control.timeout_seconds=1 control.default_action=continue,stop,policy;
optimizer.learning_rate=1e9""",
}
OTHERS = ('train', 'made_up')  # one run on a text file with BPE; a report of a made-up CSV file
(MADE_UP,) = points("""
model.qk_norm=layernorm model.norm=layernorm model.attention_gate=none model.attention=softmax
model.attention_soft_cap=0.0 model.attention_scale=inverse_sqrt objective.z_loss=1e-4
parameterization.name=standard parameterization.exponents=none optimizer.name=adamw
optimizer.eps=1e-8 optimizer.learning_rate_scale=none optimizer.weight_decay=1e-4
optimizer.weight_decay_kind=independent schedule.shape=cosine""")
ARMS = """;
model.qk_norm=none,rmsnorm,l2,layernorm_model; model.norm=rmsnorm; model.attention_gate=sigmoid;
model.qk_norm=none model.attention_gate=sigmoid; model.qk_norm=none model.attention_soft_cap=50.0;
model.attention_scale=inverse model.qk_norm=layernorm,none; model.attention=squared_relu;
optimizer.weight_decay=0.0,1e-5; objective.z_loss=0.0 optimizer.weight_decay=0.0,1e-4;
parameterization.name=muparam_simple,muparam_intermediate,muparam_full
  model.qk_norm=layernorm,none; parameterization.exponents=full_alignment,no_alignment;
parameterization.name=ntk,mup,mean_field parameterization.exponents=none,full_alignment;
optimizer.name=adam_atan2,stable_adamw,lion,muon,adafactor; optimizer.eps=1e-6,1e-15;
optimizer.learning_rate_scale=parameter_rms; optimizer.weight_decay_kind=coupled"""
CONFIG = '''from configs import base
def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.update_from_flattened_dict({shared!r})
  return c
def get_sweep(scale='cpu'):
  return {points!r}
'''


def commands(name: str, output: Path) -> list[list[str]]:
  """The commands for a workdir, as arguments of `python -m`; writes their input files."""
  files, workdir = output / 'configs', output / 'work' / name
  to = f'--workdir={workdir}'
  (shared,) = points(SHARED.get(name, ''))
  if name == 'made_up':
    write_made_up(table := files / 'made_up.csv')
    report = f'--output={workdir / "report"}'
    return [['launch.report', f'--results={table}', report, '--initial_loss=5.5']]
  if name == 'train':
    rng = random.Random(0)
    words = [''.join(rng.choices('abcdefgh', k=rng.randint(2, 6))) for _ in range(300)]
    (text := files / 'text.txt').write_text(' '.join(rng.choices(words, k=18_000)))
    flags = [f'--config.{k}={v}' for k, v in (TINY | shared | {'data.path': text}).items()]
    return [['launch.train', '--config=configs/base.py', to, *flags], ['launch.report', to]]
  config = files / f'{name}.py'
  config.write_text(CONFIG.format(shared=TINY | shared, points=points(SWEEPS[name])))
  sweep = ['launch.sweep', f'--config={config}', to, '--workers=1']
  if name == 'grid':
    return [[*sweep, '--seeds=2'], ['launch.report', to], ['launch.predict', to]]
  return [sweep]


def write_made_up(path: Path) -> None:
  """Writes made-up results of ARMS, to which many claims apply."""
  rng = random.Random(0)
  rows = []
  for arm in points(ARMS):
    best, slope = rng.uniform(-2.7, -1.7), rng.uniform(0.05, 0.4)
    for width, rate, seed in itertools.product((8, 16, 32, 64), (-3, -2, -1.5, -1, 0), (0, 1)):
      rise = slope * width / 32 if rate > best else 0.3
      loss = 3.2 - 0.2 * math.log2(width / 16) + rise * (rate - best) ** 2 + rng.gauss(0, 0.01)
      row = {'parameters': 24 * width**2, 'model.width': width, 'model.depth': 2, 'seed': seed}
      row |= {'learning_rate': 10**rate, 'final_loss': '' if loss > 5 else round(loss, 6)}
      rows.append(row | MADE_UP | arm)
  with path.open('w', newline='') as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)


def leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
  """The paths and values in nested dicts and lists, without wall-clock values."""
  if isinstance(value, dict | list):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
      if key not in CLOCK:
        yield from leaves(inner, f'{where}/{key}')
  else:
    yield where, value


def read_table(path: Path) -> dict[str, Any]:
  """The cells of a CSV file; a row is named by its first cell and the number of its occurrence."""
  found: dict[str, Any] = {}  # path -> number or text
  seen: dict[str, int] = {}
  with path.open(newline='') as file:
    for number, row in enumerate(csv.DictReader(file)):
      first = next(iter(row.values()))
      seen[first] = seen.get(first, 0) + 1
      where = str(number) if path.name == 'results.csv' else f'{first} ({seen[first]})'
      found |= leaves({column: parsed(cell) for column, cell in row.items()}, where)
  return found


def collect(workdir: Path) -> dict[str, Any]:
  """The values of a workdir by kind of file. Runs are named by row: their names may have a hash."""
  tables = [workdir / 'results.csv', *(workdir / 'report' / name for name in TABLES)]
  values = {path.name: read_table(path) for path in tables if path.exists()}
  names = [cell for where, cell in values.get('results.csv', {}).items() if where.endswith('/run')]
  for (number, name), kind in itertools.product(enumerate(names), RUN_FILES):
    stem, suffix = kind.split('.')
    # metrics.before_action_1.jsonl holds the rows that a rewind removed.
    for path in sorted((workdir / 'runs' / name).glob(f'{stem}*.{suffix}')):
      text = path.read_text()
      content = json.loads(text if suffix == 'json' else f'[{",".join(text.splitlines())}]')
      values.setdefault(kind, {}).update(leaves(content, f'{number}/{path.stem}'))
  return {'runs': names, 'values': values}


def record(output: Path, repo: Path, names: list[str]) -> int:
  """Runs programs, each on one core, and stores missing values; returns 1 if any failed."""
  for folder in ('configs', 'values', 'logs'):
    (output / folder).mkdir(parents=True, exist_ok=True)
  stored = {name: output / 'values' / f'{name}.json' for name in names}
  waiting = iter([name for name in names if not stored[name].exists()])
  # Compiles in a third of the time. Programs add the flags of workers; these flags override them.
  xla_flags = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_', 'XLA_'))}
  environment |= {'PYTHONPATH': str(repo), 'XDG_CACHE_HOME': str(output / 'cache')}

  def serve(core: int) -> None:
    os.sched_setaffinity(0, {core})  # of this thread, and of the programs that it starts
    for name in waiting:
      started, ends = time.monotonic(), []
      shutil.rmtree(output / 'work' / name, ignore_errors=True)
      devices = f'--xla_force_host_platform_device_count={2 if name == "layouts" else 1}'
      variables = environment | {'XLA_FLAGS': f'{xla_flags} {devices}', 'JAX_PLATFORMS': 'cpu'}
      with (output / 'logs' / f'{name}.txt').open('w') as log:
        for command in commands(name, output):
          line = [sys.executable, '-m', *command]
          ends.append(subprocess.call(line, cwd=repo, env=variables, stdout=log, stderr=log))
      print(f'{name}: {time.monotonic() - started:.0f} s, exit codes {ends}', flush=True)
      if not any(ends):
        stored[name].write_text(json.dumps(collect(output / 'work' / name), indent=0))

  threads = [threading.Thread(target=serve, args=[c]) for c in sorted(os.sched_getaffinity(0))[:2]]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  failed = [name for name in names if not stored[name].exists()]
  print(f'{used.ru_utime + used.ru_stime:.0f} CPU-seconds; failed: {failed or "none"}')
  return 1 if failed else 0


def difference(a: Any, b: Any) -> float:
  """The relative difference of two values; infinite if they differ and are not both numbers."""
  if a == b or (a != a and b != b):
    return 0.0
  numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (a, b))
  return abs(a - b) / max(abs(a), abs(b)) if numbers else math.inf


def compare(output: Path, against: Path, rtol: float) -> int:
  """Prints how two recordings differ; returns 1 if any value differs by more than rtol."""
  names = sorted({path.stem for side in (output, against) for path in side.glob('values/*.json')})
  worst = 0.0 if names else math.inf
  for name in names:
    files = [side / 'values' / f'{name}.json' for side in (output, against)]
    both = [json.loads(f.read_text()) if f.exists() else {'runs': [], 'values': {}} for f in files]
    runs = max((side['runs'] for side in both), key=len)
    for kind in sorted({kind for side in both for kind in side['values']}):
      a, b = (side['values'].get(kind, {}) for side in both)
      found = {key: difference(a.get(key, 'nothing'), b.get(key, 'nothing')) for key in a | b}
      text = f'identical ({len(found):,} values)'
      if differing := sum(map(bool, found.values())):
        where = max(found, key=found.get)
        worst = max(worst, found[where])
        run = f' ({runs[int(where.split("/")[0])]})' if kind in ('results.csv', *RUN_FILES) else ''
        text = f'{differing:,} of {len(found):,} differ, by up to {found[where]:.3g}: {where}'
        text += f'{run}: {a.get(where, "nothing")!r:.99}, against {b.get(where, "nothing")!r:.99}'
      print(f'{name:17}{kind:26}{text}')
  return int(worst > rtol)


def main() -> int:
  """Runs the command and returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('command', choices=['record', 'compare'])
  parser.add_argument('--output', type=Path, required=True)
  parser.add_argument('--repo', type=Path, default=Path(__file__).parents[2])
  parser.add_argument('--only', type=lambda text: text.split(','), default=[*SWEEPS, *OTHERS])
  parser.add_argument('--against', type=Path)
  parser.add_argument('--rtol', type=float, default=0.0)
  given = parser.parse_args()
  if given.command == 'record':
    return record(given.output.absolute(), given.repo.absolute(), given.only)
  return compare(given.output, given.against, given.rtol)


if __name__ == '__main__':
  sys.exit(main())
