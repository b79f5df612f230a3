"""Optimizers and their schedules, built from traced hyperparameters (paper sections 2.1 and 3.2).

Optax's chains give the direction; learning rate, schedule and weight decay are applied here, so
that a probe can look at the direction alone (the paper's unscaled update). Hyperparameters come
under their dotted config names; `static` is what config.split gives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from stability.model import parameterization

Hyperparameters = dict[str, jax.Array]
Params = dict[str, Any]

# Makes the RMS of Muon's updates that of Adam's, so that one learning rate serves both parts of it.
MUON_RMS = 0.2
SMALLEST_RMS = 1e-3  # of a parameter, where the learning rate is multiplied by it


def make_optimizer(
    hparams: Hyperparameters, static: ml_collections.FrozenConfigDict
) -> optax.GradientTransformation:
  """Clips the gradient's global norm, then optimizer.name: without learning rate and decay.

  Its update needs the parameters, as Adafactor's in Optax does. Its RMS is of order 1 at most,
  whatever the size of the gradient; atan2 knows none of it as long as float32 holds its square.
  """
  clip_norm = hparams['optimizer.clip_norm']
  return optax.chain(
      optax.clip_by_global_norm(jnp.where(clip_norm > 0, clip_norm, jnp.inf)),
      _OPTIMIZERS[static.optimizer.name](hparams),
  )


def _adamw(hparams: Hyperparameters) -> optax.GradientTransformation:
  """Adam: m / (sqrt(v) + eps); reads beta1, beta2, eps (arXiv 1412.6980)."""
  return optax.scale_by_adam(
      hparams['optimizer.beta1'], hparams['optimizer.beta2'], hparams['optimizer.eps']
  )


def _adam_atan2(hparams: Hyperparameters) -> optax.GradientTransformation:
  """4/pi atan2(m, sqrt(v)), which no eps bounds; reads beta1, beta2 (arXiv 2407.05872)."""

  def rule(g, m, v):
    del g
    return 4 / jnp.pi * jnp.arctan2(m, jnp.sqrt(v))

  return _of_moments(hparams, rule)


def _stable_adamw(hparams: Hyperparameters) -> optax.GradientTransformation:
  """Adam's update over max(1, RMS of g / max(sqrt(v), eps)), per tensor (arXiv 2304.13013).

  v lags behind a gradient that grows at once. Reads beta1, beta2, eps.
  """
  eps = hparams['optimizer.eps']

  def rule(g, m, v):
    # Taken of g over the root: eps^2 may be too small for float32.
    surprise = jnp.sqrt(jnp.mean(jnp.square(g / jnp.maximum(jnp.sqrt(v), eps))))
    return m / (jnp.sqrt(v) + eps) / jnp.maximum(surprise, 1)

  return _of_moments(hparams, rule)


def _lion(hparams: Hyperparameters) -> optax.GradientTransformation:
  """Sign of the gradient mixed with its average; reads beta1, beta2 (arXiv 2302.06675).

  beta1 mixes, beta2 averages; 0.9 and 0.99 are usual, at a third to a tenth of Adam's rate.
  """
  return optax.scale_by_lion(hparams['optimizer.beta1'], hparams['optimizer.beta2'])


def _muon(hparams: Hyperparameters) -> optax.GradientTransformation:
  """Orthogonalised Nesterov momentum for the blocks' matrices, Adam for the rest.

  An update's RMS is about 0.2 whatever the matrix's shape (arXiv 2502.16982), as Adam's is.
  Matrices read beta1 and eps (against a norm of 0), the rest what Adam reads.
  """

  def dimensions(matrices):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), matrices)

  def spread(updates, params):
    del params
    return jax.tree.map(lambda u: MUON_RMS * max(u.shape) ** 0.5 * u, updates)

  def labels(params):
    return jax.tree.map(
        lambda kind: 'muon' if kind == 'hidden' else 'adam', parameterization.kinds(params)
    )

  muon = optax.contrib.scale_by_muon(
      beta=hparams['optimizer.beta1'],
      eps=hparams['optimizer.eps'],
      weight_dimension_numbers=dimensions,
  )
  transformations = {'muon': optax.chain(muon, optax.stateless(spread)), 'adam': _adamw(hparams)}
  return optax.partition(transformations, labels)


def _adafactor(hparams: Hyperparameters) -> optax.GradientTransformation:
  """Adafactor: g / sqrt(v), the RMS of a tensor clipped to 1 (arXiv 1804.04235).

  Reads no hyperparameter: v forgets as 1 - step^-0.8, eps, added to g^2, is 1e-30, and there is no
  momentum. v is factored where both sides of a matrix are 128 or more. What it multiplies the
  learning rate with is optimizer.learning_rate_scale, for every optimizer.
  """
  del hparams
  return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


_OPTIMIZERS = {
    'adamw': _adamw,
    'adam_atan2': _adam_atan2,
    'stable_adamw': _stable_adamw,
    'lion': _lion,
    'muon': _muon,
    'adafactor': _adafactor,
}


def _of_moments(
    hparams: Hyperparameters, rule: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
  """Updates by a rule of a tensor's gradient and Adam's two moments, corrected for their start."""
  beta1, beta2 = hparams['optimizer.beta1'], hparams['optimizer.beta2']
  adam = optax.scale_by_adam(beta1, beta2)

  def update(gradients, state, params=None):
    del params
    _, state = adam.update(gradients, state)
    first = optax.tree.bias_correction(state.mu, beta1, state.count)
    second = optax.tree.bias_correction(state.nu, beta2, state.count)
    return jax.tree.map(rule, gradients, first, second), state

  return optax.GradientTransformation(adam.init, update)


def learning_rate(
    hparams: Hyperparameters, step: jax.Array, static: ml_collections.FrozenConfigDict
) -> jax.Array:
  """Of update number `step` (from 1): linear warm-up, then schedule.shape.

  cosine: down to min_learning_rate at update `steps`. wsd: constant, and linear over the last
  decay_steps, to the same (arXiv 2404.06395). rsqrt: LR sqrt(warmup_steps / step), at least
  min_learning_rate. Update warmup_steps is made at the full rate exactly, and update `steps` of
  the former two at min_learning_rate, unless the warm-up takes all of them, or decay_steps is 0.
  """
  highest, lowest = hparams['optimizer.learning_rate'], hparams['schedule.min_learning_rate']
  return _scheduled(hparams, step, highest, lowest, static.schedule.shape)


def apply_updates(
    params: Params,
    updates: Params,
    hparams: Hyperparameters,
    step: jax.Array,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """Update number `step` (from 1) of all parameters, every one of which decays.

  With s = rate / learning_rate, the schedule: independent decay takes s * weight_decay of the
  parameter and does not depend on the learning rate, but for where s ends; the coupled one,
  PyTorch's and Optax's, takes rate * weight_decay. The rate is that of the parameter's layer
  (parameterization.py). Under learning_rate_scale=parameter_rms a tensor's update, not its decay,
  is multiplied by max(RMS of the parameter, 1e-3) as well (paper figure E.14).
  """
  rate = learning_rate(hparams, step, static)
  weight_decay = hparams['optimizer.weight_decay']
  # The schedule itself: rate / learning_rate would round differently for each learning rate.
  lowest = hparams['schedule.min_learning_rate'] / hparams['optimizer.learning_rate']
  schedule_factor = _scheduled(hparams, step, jnp.float32(1), lowest, static.schedule.shape)
  independent = static.optimizer.weight_decay_kind == 'independent'

  def apply(p, move, rate):
    decay = (schedule_factor if independent else rate) * weight_decay
    return p - (move + decay * p)

  rates = parameterization.learning_rates(params, rate, hparams, static)
  return jax.tree.map(apply, params, scaled(params, updates, hparams, step, static), rates)


def scaled(
    params: Params,
    updates: Params,
    hparams: Hyperparameters,
    step: jax.Array,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """The updates times the learning rates of their layers: what apply_updates takes beside decay."""
  by_rms = static.optimizer.learning_rate_scale == 'parameter_rms'

  def scale(p, u, rate):
    if by_rms:
      u *= jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(p))), SMALLEST_RMS)
    return rate * u

  rate = learning_rate(hparams, step, static)
  rates = parameterization.learning_rates(params, rate, hparams, static)
  return jax.tree.map(scale, params, updates, rates)


def preconditioner(
    params: Params,
    state: optax.OptState,
    hparams: Hyperparameters,
    step: jax.Array,
    static: ml_collections.FrozenConfigDict,
) -> Params:
  """Of AdamW after update number `step`: P for which it moves by learning rate * momentum / P.

  sqrt(v) + eps, v corrected for its start, over the share of the learning rate that a layer gets.
  """
  second = optax.tree.bias_correction(
      optax.tree.get(state, 'nu'), hparams['optimizer.beta2'], optax.tree.get(state, 'count')
  )
  ones = jax.tree.map(jnp.ones_like, params)
  rate = learning_rate(hparams, step, static)
  shares = jax.tree.map(lambda s: s / rate, scaled(params, ones, hparams, step, static))
  eps = hparams['optimizer.eps']
  return jax.tree.map(lambda v, share: (jnp.sqrt(v) + eps) / share, second, shares)


def _scheduled(
    hparams: Hyperparameters, step: jax.Array, highest: jax.Array, lowest: jax.Array, shape: str
) -> jax.Array:
  """From 0 up to `highest`, then down to `lowest`; both are met exactly, in float32 too."""
  warmup = hparams['schedule.warmup_steps'].astype(jnp.float32)
  total = hparams['schedule.steps'].astype(jnp.float32)
  step = step.astype(jnp.float32)
  rising, top = step < warmup, step == warmup
  risen = highest * step / jnp.maximum(warmup, 1)
  if shape == 'rsqrt':
    falling = jnp.maximum(highest * jnp.sqrt(jnp.maximum(warmup, 1) / step), lowest)
    return jnp.select([rising, top], [risen, highest], falling)
  if shape == 'wsd':
    decay = hparams['schedule.decay_steps'].astype(jnp.float32)
    top |= step <= total - decay
    schedule_factor = (total - step) / jnp.maximum(decay, 1)
  else:
    progress = (step - warmup) / jnp.maximum(total - warmup, 1)
    # (1 + cos(pi p)) / 2 as a square, which keeps its digits near the end.
    schedule_factor = jnp.square(jnp.cos(0.5 * jnp.pi * progress))
  return jnp.select(
      [rising, top, step >= total],
      [risen, highest, lowest],
      lowest + (highest - lowest) * schedule_factor,
  )
