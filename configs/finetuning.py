r"""How sensitive to the learning rate is fine-tuning? Nine methods, parents of three rates.

Models of configs/pretraining.py, trained on Python source, are trained further on the English of
Python's own help texts (pydoc_data/topics.py, which the embedded text leaves out; sweep.json has
its SHA-256). Nine methods x seven learning rates x three seeds x three sizes, from parents that
were trained at the best learning rate of their size and at 3 and 10 times that rate. A run of seed
n starts from the parent of seed n: in full fine-tuning a seed would change nothing else. A method
whose best rate is higher has a higher window, of the same width. Full fine-tuning has two more
rates above its window, to find its critical rate; they were added after its seven rates at 147K had
been seen, and LR sensitivity leaves them out. initial_loss is the parent's loss on the new text, so
that LR sensitivity never counts a run as worse than its parent. Not in the paper.

Claims (stability/analysis/claims/finetuning.py), with thresholds written before any run. Best rate:
of the mean over seeds, on the grid. All but the fourth are about parents trained at the best rate.

  1  LoRA's best learning rate is about ten times that of full fine-tuning
     (thinkingmachines.ai/blog/lora): LoRA r=4 over full, geometric mean over sizes, 3 to 30.
  2  With alpha/r, LoRA's best rate does not depend on the rank (the same): of r = 1, 4, 16, the
     highest over the lowest is at most 3.4, a step of the grid, at each size.
  3  rsLoRA keeps large ranks useful (arXiv 2312.03732): with r=16, its best loss is at least 0.005
     nats below that of alpha/r, mean over sizes.
  4  A parent trained at too high a rate narrows the range: headroom (critical over best rate) of
     full fine-tuning is lower by a factor of 1.8 or more from the parent at 10 times the best
     rate, geometric mean over sizes; where the grid ends first, the claim is undecided.
  5  LoRA is less sensitive than full fine-tuning: LR sensitivity of full is at least 1.1 times
     that of LoRA r=4, mean over sizes.

Measured at cpu scale (three seeds, configs/README.md): LoRA's best rate is 3e-2 at every rank and
size, that of full fine-tuning or, at 147K, three times it; rsLoRA gains 0.0035 nats; LoRA is a
little more sensitive than full fine-tuning; a parent trained at 10 times the best rate halves the
headroom of full fine-tuning (2.1, interval 0.8 to 2.4: undecided).

Where parents have a learned vocabulary (paper scale), tokenize the new text with theirs
(launch.tokenize --tokenizer) and give the folder as config.data.path.

Time at cpu scale: 1,755 runs of 200 steps, 110 minutes on two cores beside other work. Start it in
the folder in which runs/pretraining was made:

  python -m launch.sweep --config=configs/finetuning.py --workdir=runs/finetuning
  python -m launch.evaluate --workdir=runs/finetuning      # on Python source: what is forgotten
  python -m launch.retrieve --workdir=runs/finetuning --parents \
      --runs='*,parent=best,arm=full,learning_rate=0.01,*' # a datastore instead of fine-tuning
"""

import importlib.util
from typing import Any

from ml_collections import ConfigDict

from configs import grid, pretraining
from stability import config as config_lib
from stability import hyper

PARENTS = 'runs/pretraining'  # the workdir of configs/pretraining.py
# Best learning rates of the sizes in their order: configs/README.md, arm `layernorm`, at cpu and
# night scale; assumed at the others.
BEST = {
    'cpu': (3e-2, 3e-2, 1e-2),
    'night': (1e-2, 1e-2, 1e-2),
    'gpu': (3e-3, 3e-3, 3e-3),
    'paper': (3e-3, 3e-3, 3e-3),
}
HOTTER = {'best': 0, '3x': 1, '10x': 2}  # half decades above the best rate
SEEDS = (0, 1, 2)
_LORA = {'adapter.kind': 'lora', 'adapter.alpha': 16.0}
METHODS = {
    'full': {'adapter.kind': 'none'},
    'LoRA r=1': {**_LORA, 'adapter.rank': 1},
    'LoRA r=4': {**_LORA, 'adapter.rank': 4},
    'LoRA r=16': {**_LORA, 'adapter.rank': 16},
    'rsLoRA r=16': {**_LORA, 'adapter.rank': 16, 'adapter.scale': 'sqrt_rank'},
    'LoRA+ r=4': {**_LORA, 'adapter.rank': 4, 'adapter.rate_ratio': 16.0},
    'DoRA r=4': {**_LORA, 'adapter.kind': 'dora', 'adapter.rank': 4},
    'IA3': {'adapter.kind': 'ia3'},
    'norms': {'adapter.kind': 'norms'},
}
# Half decades from the window of pretraining, 1e-3 to 1 at cpu scale.
SHIFTS = {'full': -2, 'rsLoRA r=16': -1, 'LoRA+ r=4': -1, 'IA3': 1, 'norms': 0}
# Added above the window of full fine-tuning, of which LR sensitivity takes no account.
MORE_RATES = 2
STEPS = {'cpu': 200, 'night': 2_000, 'gpu': 1_000, 'paper': 10_000}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  c = grid.get_config(scale)
  c.data.path = importlib.util.find_spec('pydoc_data.topics').origin
  c.schedule.steps = config_lib.for_scale(scale, STEPS)
  c.schedule.warmup_steps = c.schedule.steps // 10
  c.optimizer.weight_decay = 0.0
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Parent, with its size and seed, x method x learning rate."""
  methods = hyper.chain([
      hyper.product([[{'arm': name, **fields}], _rates(scale, name)])
      for name, fields in METHODS.items()
  ])
  return hyper.product([parents(scale), methods])


def get_report(scale: str = 'cpu') -> dict[str, Any]:
  """The window of full fine-tuning, as wide as that of the other methods."""
  rates = [point['optimizer.learning_rate'] for point in _rates(scale, 'full')]
  return {'windows': [{'where': {'arm': 'full'}, 'windows': [[rates[0], rates[-1 - MORE_RATES]]]}]}


def _rates(scale: str, name: str) -> list[hyper.Point]:
  """The learning rates of a method."""
  count = 7 + (MORE_RATES if name == 'full' else 0)
  return grid.learning_rates(scale, SHIFTS.get(name, 0), count)


def parents(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x parent x seed, with the runs of configs/pretraining.py."""
  runs = hyper.expand(
      pretraining.get_config(scale).to_dict(), pretraining.get_sweep(scale), seeds=len(SEEDS)
  )
  by_fields = {_key(config_lib.flatten(config)): name for name, config in runs.configs.items()}
  sizes = list(
      dict.fromkeys(
          tuple((field, point[field]) for field in point if field in config_lib.SIZE_FIELDS)
          for point in pretraining.get_sweep(scale)
      )
  )
  defaults = config_lib.flatten(pretraining.get_config(scale).to_dict())
  points = []
  for size, best in zip(sizes, config_lib.for_scale(scale, BEST), strict=True):
    for label, steps in HOTTER.items():
      rate = grid.RATES[grid.RATES.index(best) + steps]
      for seed in SEEDS:
        wanted = defaults | dict(size) | {'optimizer.learning_rate': rate, 'seed': seed}
        checkpoint = f'{PARENTS}/runs/{by_fields[_key(wanted)]}'
        points.append(
            dict(size) | {'init.parent': label, 'init.checkpoint': checkpoint, 'seed': seed}
        )
  return points


def _key(flat: dict) -> tuple:
  return tuple(flat[f] for f in (*config_lib.SIZE_FIELDS, 'optimizer.learning_rate', 'seed'))
