"""Optimizers, built from traced hyperparameters (paper sections 2.1 and 3.2).

Optax's chains give the direction of an update, without learning rate, schedule and weight decay
(stability/optim/apply.py), so that a probe can look at the direction alone: the paper's unscaled
update. A direction that needs the scheduled learning rate is given it, as the argument
`learning_rate` of its update. Hyperparameters come under their dotted config names.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from stability.model import parameterization
from stability.optim.gradient import GRADIENT
from stability.optim.soap import scale_by_soap
from stability.variants import Choices, Variant

HParams = dict[str, jax.Array]

# Makes the RMS of Muon's updates that of Adam's, so that one learning rate serves both.
MUON_RMS = 0.2
TINY = 1e-30  # a norm that nothing is divided by


def make_optimizer(
    hparams: HParams, static: ml_collections.FrozenConfigDict
) -> optax.GradientTransformationExtraArgs:
  """The terms of the place `gradient`, then optimizer.name.

  The RMS of a direction is of order 1 at most, whatever the size of the gradient. Its update takes
  the parameters, and learning_rate, that of the update, as a keyword.
  """
  terms = [term.make(hparams) for term in GRADIENT.active(static)]
  return optax.chain(*terms, OPTIMIZERS[static.optimizer.name].make(hparams))


def _adamw(hparams: HParams) -> optax.GradientTransformation:
  """Adam: m / (sqrt(v) + eps)."""
  return optax.scale_by_adam(
      hparams['optimizer.beta1'], hparams['optimizer.beta2'], hparams['optimizer.eps']
  )


def _adam_atan2(hparams: HParams) -> optax.GradientTransformation:
  """4/pi atan2(m, sqrt(v)), which needs no eps."""

  def rule(g, m, v):
    del g
    return 4 / jnp.pi * jnp.arctan2(m, jnp.sqrt(v))

  return _of_moments(hparams, rule)


def _stable_adamw(hparams: HParams) -> optax.GradientTransformation:
  """Adam's update over max(1, RMS of g / max(sqrt(v), eps)), per tensor.

  v lags behind a gradient that grows at once.
  """
  eps = hparams['optimizer.eps']

  def rule(g, m, v):
    # Taken of g over the root: eps^2 may be too small for float32.
    surprise = jnp.sqrt(jnp.mean(jnp.square(g / jnp.maximum(jnp.sqrt(v), eps))))
    return m / (jnp.sqrt(v) + eps) / jnp.maximum(surprise, 1)

  return _of_moments(hparams, rule)


def _lion(hparams: HParams) -> optax.GradientTransformation:
  """Sign of the gradient mixed with its average: beta1 mixes, beta2 averages.

  0.9 and 0.99 are usual, at a third to a tenth of Adam's learning rate.
  """
  return optax.scale_by_lion(hparams['optimizer.beta1'], hparams['optimizer.beta2'])


def _muon(hparams: HParams) -> optax.GradientTransformation:
  """Orthogonalised Nesterov momentum for the blocks' matrices, Adam for the rest.

  An update's RMS is about 0.2 whatever the matrix's shape (arXiv 2502.16982), as Adam's is.
  Matrices read beta1 and eps (against a norm of 0), the rest what Adam reads.
  """

  def dimensions(matrices):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), matrices)

  def spread(updates, params):
    del params
    return jax.tree.map(lambda u: MUON_RMS * max(u.shape) ** 0.5 * u, updates)

  muon = optax.contrib.scale_by_muon(
      beta=hparams['optimizer.beta1'],
      eps=hparams['optimizer.eps'],
      weight_dimension_numbers=dimensions,
  )
  return for_matrices(optax.chain(muon, optax.stateless(spread)), _adamw(hparams), 'muon', 'adam')


def _adafactor(hparams: HParams) -> optax.GradientTransformation:
  """Gradient over sqrt(v), the RMS of a tensor clipped to 1.

  Reads no hyperparameter: v forgets as 1 - step^-0.8, eps, added to g^2, is 1e-30, and there is no
  momentum. v is factored where both sides of a matrix are 128 or more. What it multiplies the
  learning rate with is optimizer.learning_rate_scale, for every optimizer.
  """
  del hparams
  return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def _soap(hparams: HParams) -> optax.GradientTransformation:
  """Adam in the eigenbasis of Shampoo's preconditioner for the blocks' matrices, Adam elsewhere."""
  soap = scale_by_soap(
      *(hparams[f'optimizer.{name}'] for name in ('beta1', 'beta2', 'eps', 'basis_every_steps'))
  )
  return for_matrices(soap, _adamw(hparams))


def _hyperball(hparams: HParams) -> optax.GradientTransformation:
  """Adam's directions of the blocks' matrices W scaled to the norm of W, plain Adam elsewhere.

  The learning rate is then the angle by which W turns. After the update W is projected back to its
  norm, without decay (stability/optim/after_update.py).
  """

  def to_norm(updates, params):
    def scale(u, p):
      return u * jnp.linalg.norm(p) / jnp.maximum(jnp.linalg.norm(u), TINY)

    return jax.tree.map(scale, updates, params)

  matrices = optax.chain(_adamw(hparams), optax.stateless(to_norm))
  return for_matrices(matrices, _adamw(hparams))


def for_matrices(
    matrices: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    matrices_label: str = 'matrices',
    rest_label: str = 'rest',
) -> optax.GradientTransformation:
  """One transformation for the blocks' matrices, another for all other parameters.

  The labels name the two parts of its state in checkpoints.
  """

  def labels(params):
    return jax.tree.map(
        lambda kind: matrices_label if kind == 'hidden' else rest_label,
        parameterization.kinds(params),
    )

  return optax.partition({matrices_label: matrices, rest_label: rest}, labels)


def _of_moments(
    hparams: HParams, rule: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
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


_BETAS = ('optimizer.beta1', 'optimizer.beta2')

# hparams -> an Optax transformation.
OPTIMIZERS = Choices(
    'optimizer.name',
    {
        'adamw': Variant(_adamw, 'arXiv 1412.6980, 1711.05101', reads=(*_BETAS, 'optimizer.eps')),
        'adam_atan2': Variant(_adam_atan2, 'arXiv 2407.05872', reads=_BETAS),
        'stable_adamw': Variant(
            _stable_adamw, 'arXiv 2304.13013', reads=(*_BETAS, 'optimizer.eps')
        ),
        'lion': Variant(_lion, 'arXiv 2302.06675', reads=_BETAS),
        'muon': Variant(_muon, 'arXiv 2502.16982', reads=(*_BETAS, 'optimizer.eps')),
        'soap': Variant(
            _soap,
            'arXiv 2409.11321',
            reads=(*_BETAS, 'optimizer.eps', 'optimizer.basis_every_steps'),
        ),
        'hyperball': Variant(_hyperball, 'arXiv 2606.16899', reads=(*_BETAS, 'optimizer.eps')),
        'adafactor': Variant(_adafactor, 'arXiv 1804.04235'),
    },
)
