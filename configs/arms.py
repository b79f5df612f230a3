"""Interventions by name, as arms of a sweep: the paper's recipe with a few options changed.

This file is not an experiment. An arm that concerns attention logits is tried without qk-norm where
that would hide it, one that concerns output logits without z-loss. Optimizers keep the baseline's
betas (Muon and SOAP are published with a beta1 of 0.95) except where their method depends on them.
DyT has the published embedding scale, at a fixed sqrt(width), and an alpha of 0.5, which its paper
tunes to the width in language models. Hyperball and Muon on a spectral sphere have one learning
rate, their sources another one for what is no matrix of a block. To try some of them:

  from configs import arms
  hyper.product([grid.sizes(scale), arms.points(scale, ['AdamW', 'QK-clip 100', 'Muon'])])
"""

from collections.abc import Iterable, Mapping
from typing import Any

from configs import grid
from stability import hyper

BASELINE = 'AdamW'
_BARE = {'model.qk_norm': 'none'}
_NO_Z = {'objective.z_loss': 0.0}
CONSTANT_RATE = {'schedule.shape': 'wsd', 'schedule.decay_steps': 0}

ATTENTION = {
    'no qk-norm': _BARE,
    'qk-layernorm over all heads': {'model.qk_norm': 'layernorm_model'},
    'qk-rmsnorm': {'model.qk_norm': 'rmsnorm'},
    'unit queries and keys': {'model.qk_norm': 'l2'},
    'qk gain 1.2': {'model.qk_gain': 1.2},
    'QKV-norm': {'model.v_norm': 'layernorm', 'model.norm_position': 'pre_mlp'},
    'QK-clip 100': {**_BARE, 'optimizer.qk_clip': 100.0},
    'QK-clip 30': {**_BARE, 'optimizer.qk_clip': 30.0},
    'sigmaReparam': {**_BARE, 'model.kernel': 'sigma_reparam'},
    'softmax-1': {**_BARE, 'model.attention': 'softmax1'},
    'sinks': {**_BARE, 'model.attention': 'learned_sink'},
    'attention soft cap 50': {**_BARE, 'model.attention_soft_cap': 50.0},
    'gated attention': {**_BARE, 'model.attention_gate': 'sigmoid'},
    'attention scale 1/d': {**_BARE, 'model.attention_scale': 'inverse'},
    'value residual': {'model.value_residual': 'learned'},
}
OUTPUT = {
    'no z-loss': _NO_Z,
    'z-loss 1e-3': {'objective.z_loss': 1e-3},
    'output soft cap 30': {**_NO_Z, 'model.output_soft_cap': 30.0},
    'mu-centering': {**_NO_Z, 'model.output_centering': 'mean'},
    'mu-loss': {**_NO_Z, 'objective.mu_loss': 1e-4},
    'tied head': {'model.head': 'tied'},
    'embedding norm': {'model.embedding': 'rmsnorm'},
    'embedding times sqrt(width)': {'model.embedding': 'scaled'},
    'embedding rate times width': {'optimizer.embedding_rate': 'width'},
    'small head': {'init.head': 'small'},
    'zero head': {'init.head': 'zero'},
}
RESIDUAL = {
    'RMSNorm': {'model.norm': 'rmsnorm'},
    'DyT': {'model.norm': 'dyt', 'model.embedding': 'scaled'},
    'peri-LN': {'model.norm_position': 'peri'},
    'post-LN': {'model.norm_position': 'post'},
    'DeepNorm': {'model.norm_position': 'deepnorm'},
    'LayerNorm scaling': {'model.norm_position': 'pre_scaled'},
    'ReZero': {'model.norm_position': 'rezero'},
    'embedding skip': {'model.embedding_skip': 'learned'},
    'parallel blocks': {'model.block': 'parallel'},
    'depth-scaled init': {'init.depth_scale': 'depth'},
    'block-scaled init': {'init.depth_scale': 'block'},
    'WeSaR': {'model.kernel': 'wesar'},
    'learned multipliers': {'model.kernel': 'multipliers'},
    'muParam (simple)': {'parameterization.name': 'muparam_simple'},
    'SwiGLU': {'model.mlp': 'swiglu'},
    'squared ReLU': {'model.mlp': 'relu2'},
    'nGPT': {
        'model.norm_position': 'ngpt',
        'model.qk_norm': 'ngpt',
        'model.mlp': 'ngpt',
        'model.head': 'ngpt',
        'optimizer.weight_decay': 0.0,
    },
    'experts': {'model.mlp': 'moe', 'objective.balance_loss': 0.01},
    'experts, router bias': {'model.mlp': 'moe', 'model.router_bias_rate': 1e-3},
}
OPTIMIZERS = {
    'beta2 0.99': {'optimizer.beta2': 0.99},
    'beta2 0.999': {'optimizer.beta2': 0.999},
    'beta2 0.9999': {'optimizer.beta2': 0.9999},  # known to be bad
    'eps 1e-15': {'optimizer.eps': 1e-15},
    'eps 1e-6': {'optimizer.eps': 1e-6},
    'eps 1e-4': {'optimizer.eps': 1e-4},
    'coupled decay 0.1': {
        'optimizer.weight_decay_kind': 'coupled',
        'optimizer.weight_decay': 0.1,
    },
    'cautious decay': {'optimizer.weight_decay_kind': 'cautious'},
    'AdamC': {'optimizer.weight_decay_kind': 'adamc'},
    'cautious AdamW': {'optimizer.update_mask': 'cautious'},
    'StableAdamW': {'optimizer.name': 'stable_adamw'},
    'Adam-atan2': {'optimizer.name': 'adam_atan2'},
    'AdEMAMix': {'optimizer.name': 'ademamix'},
    'ADOPT': {'optimizer.name': 'adopt', 'optimizer.eps': 1e-6},
    'Lion': {'optimizer.name': 'lion', 'optimizer.beta2': 0.99},
    'Adafactor': {'optimizer.name': 'adafactor'},
    'SOAP': {'optimizer.name': 'soap'},
    'Muon': {'optimizer.name': 'muon'},
    'Muon on a spectral sphere': {'optimizer.name': 'muon_sphere'},
    'Hyperball': {'optimizer.name': 'hyperball'},
    'Prodigy': {'optimizer.name': 'prodigy', 'optimizer.beta2': 0.999},  # its estimate's memory
    'DoWG': {'optimizer.name': 'dowg'},
    'schedule-free AdamW': {
        'evaluation.parameters': 'schedule_free',
        'evaluation.decay': 0.9,
        'optimizer.beta1': 0.0,
        **CONSTANT_RATE,
    },
}
CLIPPING = {
    'no clipping': {'optimizer.clip_norm': 0.0},
    'clipping at 0.1': {'optimizer.clip_norm': 0.1},
    'AGC': {'optimizer.adaptive_clip': 0.01},
    'ZClip': {'optimizer.zclip': 2.5},
    'AdaGC': {'optimizer.adagc': 1.05, 'optimizer.clip_norm': 0.0},
    'clipped update norm': {'optimizer.update_clip': 3.0},
    'skipped steps': {'optimizer.skip_step': 6.0},
    'SPAM': {'optimizer.name': 'spam'},
}
SCHEDULE = {
    'linear decay': {'schedule.shape': 'linear'},
    'WSD': {'schedule.shape': 'wsd'},
    'rsqrt': {'schedule.shape': 'rsqrt'},
    'no warm-up': {'schedule.warmup_steps': 0},
    'exponential average': {'evaluation.parameters': 'ema'},
    'uniform tail average': {'evaluation.parameters': 'uniform'},
    'bfloat16 activations': {'model.dtype': 'bfloat16'},
    'bfloat16 moments': {'optimizer.state_dtype': 'bfloat16'},
    'bfloat16 parameters': {'optimizer.parameter_rounding': 'nearest'},
    'bfloat16 parameters, stochastic rounding': {'optimizer.parameter_rounding': 'stochastic'},
    'FP8 products': {'model.linear_precision': 'fp8'},
}
PLACES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    'attention': ATTENTION,
    'output': OUTPUT,
    'residual': RESIDUAL,
    'optimizer': OPTIMIZERS,
    'clipping': CLIPPING,
    'schedule': SCHEDULE,
}
ARMS: Mapping[str, Mapping[str, Any]] = {BASELINE: {}} | {
    name: fields for of_place in PLACES.values() for name, fields in of_place.items()
}
# The window of learning rates of arms in which a rate means something else, in half decades.
SHIFTS = {
    'Lion': -2,
    'Adafactor': -1,
    'AdEMAMix': -2,  # its directions are up to 9 times as large
    'WeSaR': -3,
    'Prodigy': 2,
    'DoWG': 2,
}


def points(scale: str, names: Iterable[str] = tuple(ARMS), count: int = 7) -> list[hyper.Point]:
  """Arm x learning rate, each arm in its own window; the first arm is the baseline."""
  return hyper.chain([
      hyper.product([
          [{'arm': name, **ARMS[name], **grid.schedule_floor(shift)}],
          grid.learning_rates(scale, shift, count),
      ])
      for name in names
      for shift in [SHIFTS.get(name, 0)]
  ])
