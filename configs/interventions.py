"""Which intervention keeps training stable? Alternatives to the paper's two, side by side.

Each run differs in at most one intervention from one of three baselines:

  the default           RMSNorm, peri-LN, gated attention
  without qk-layernorm  the same three; soft-capped attention logits (50, as in Gemma 2);
                        sigmaReparam; QK-clip
  without z-loss        soft-capped output logits (30, as in Gemma 2); mu-centering and mu-loss
                        (arXiv 2601.02031, with its coefficient of 1e-4)

configs/qk_norm_variants.py compares other normalisations of queries and keys.

Measured here at cpu scale, 83K, three seeds: LR sensitivity without qk-layernorm is 0.47; RMSNorm
has 0.47, gated attention 0.38, a soft cap 0.33, QK-clip 0.33, peri-LN 0.30 and sigmaReparam 0.14,
whose best loss is 0.03 higher. With qk-layernorm it is 0.23; peri-LN has 0.18 and RMSNorm 0.23.
Gated attention has the lowest best loss, 1.91 with qk-layernorm and 1.93 without, against 1.99.
Interventions on output logits make no difference in runs this short (0.22 to 0.24; see
configs/z_loss.py).

Time at cpu scale: 105 runs, 7 to 12 minutes on two cores.

  python -m launch.sweep --config=configs/interventions.py --workdir=runs/interventions
"""

from ml_collections import ConfigDict

from configs import grid
from stability import hyper

ANYWHERE = [
    {},
    {'model.norm': 'rmsnorm'},
    {'model.norm_position': 'peri'},
    {'model.attention_gate': 'sigmoid'},
]
FOR_ATTENTION_LOGITS = [
    *ANYWHERE,
    {'model.attention_soft_cap': 50.0},
    {'model.kernel': 'sigma_reparam'},
    {'optimizer.qk_clip': 100.0},
]
FOR_OUTPUT_LOGITS = [
    {},
    {'model.output_soft_cap': 30.0},
    {'model.output_centering': 'mean'},
    {'objective.mu_loss': 1e-4},
]


def get_config(scale: str = 'cpu') -> ConfigDict:
  """The config that all runs of the sweep share."""
  return grid.get_config(scale)


def get_sweep(scale: str = 'cpu') -> list[hyper.Point]:
  """Size x intervention x learning rate."""
  interventions = hyper.chain([
      ANYWHERE,
      hyper.product([hyper.fixed('model.qk_norm', 'none'), FOR_ATTENTION_LOGITS]),
      hyper.product([hyper.fixed('objective.z_loss', 0.0), FOR_OUTPUT_LOGITS]),
  ])
  return hyper.product([
      grid.sizes(scale, ['83K'] if scale == 'cpu' else None),
      interventions,
      grid.learning_rates(scale),
  ])
