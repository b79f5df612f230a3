"""Does today's recipe need what the paper's models need? RMSNorm, SwiGLU, grouped queries.

The recipe: RMSNorm, SwiGLU, heads of keys and values that two query heads share, queries and keys
normalised by RMSNorm, z-loss, AdamW. Each arm changes one or two things. The claims of the paper
are judged on it with RMSNorm in the place of LayerNorm:

  Figures 1, 2  Does qk-norm still matter, and which block's logits grow?
  Figures 3, 4  What does z-loss do?

Measured at cpu scale (one seed, configs/README.md): without qk-norm, LR sensitivity is 1.5 to 2.2
times as high; z-loss makes no difference (0.95 to 1.09); tied weights 0.95 to 1.3. Muon has the
lowest loss at every size; without qk-norm, its LR sensitivity is 1.3 to 1.8 times as high.

Time at cpu scale: 126 runs, 26 minutes on two cores that were shared with tests.

  python -m launch.sweep --config=configs/modern.py --workdir=runs/modern
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

NO_QK_NORM = {'model.qk_norm': 'none'}
ARMS = {
    'modern': {},
    'no qk-norm': NO_QK_NORM,
    'no z-loss': {'objective.z_loss': 0.0},
    'tied': {'model.head': 'tied'},
    'Muon': {'optimizer.name': 'muon'},
    'Muon, no qk-norm': {'optimizer.name': 'muon', **NO_QK_NORM},
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The recipe that the arms change."""
  c = grid.get_config(scale)
  c.model.norm = 'rmsnorm'
  c.model.qk_norm = 'rmsnorm'
  c.model.mlp = 'swiglu'
  c.model.query_group = 2
  if scale in ('cpu', 'night'):
    c.model.head_dim = 8  # two heads at the smallest width
  return c


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x arm x learning rate."""
  return hyper.product([
      grid.sizes(scale),
      [{'arm': name, **fields} for name, fields in ARMS.items()],
      grid.learning_rates(scale),
  ])
