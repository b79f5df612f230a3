"""Optimizers, built from traced hyperparameters (paper sections 2.1 and 3.2).

An Optax chain gives the direction of an update. The learning rate, its schedule and weight decay
are applied afterwards (stability/optim/apply.py), so that probes can measure the direction alone,
which is the paper's unscaled update. A transformation that needs the scheduled learning rate gets
it as the keyword argument `learning_rate` of its update; optimizer.learning_rate multiplies the
estimate of optimizers that have one (stability/optim/learning_rate_free.py). Hyperparameters are
passed by dotted config name.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from stability.model import parameterization
from stability.model.kernels import SMALLEST_NORM
from stability.optim import learning_rate_free, precision
from stability.optim.gradient import GRADIENT
from stability.optim.soap import scale_by_soap
from stability.optim.spam import scale_by_spam
from stability.optim.spectral_sphere import scale_by_muon_sphere
from stability.optim.wrappers import WRAPPERS
from stability.types import HParams, Static
from stability.variants import Choices, Variant

# Name of an intervention, what it was applied to, and its result.
Watch = Callable[[str, optax.Updates, optax.Updates], None]

# Gives Muon's updates about the RMS of Adam's, so that one learning rate suits both.
MUON_RMS = 0.2


def make_optimizer(
    hparams: HParams, static: Static, watch: Watch | None = None
) -> optax.GradientTransformationExtraArgs:
  """The active terms of GRADIENT, then the optimizer of optimizer.name, in the active WRAPPERS.

  The RMS of a direction is of order 1 at most (1 + alpha with ademamix), whatever the size of the
  gradient. `update` needs the parameters, and as keyword arguments `learning_rate`, that of the
  update, and `loss`, the mean cross-entropy of the step's batch. It tells `watch` what each term
  changed.
  """
  terms = [
      _watched(term.name, term.make(hparams), watch) for term in GRADIENT.active(static)
  ]
  optimizer = OPTIMIZERS[static.optimizer.name].make(hparams)
  if static.optimizer.state_dtype == 'bfloat16':
    optimizer = precision.with_bfloat16_state(optimizer)
  optimizer = optax.chain(*terms, optimizer)
  for term in WRAPPERS.active(static):
    directions: list[optax.Updates] = []  # those of the optimizer inside, until they are compared
    inside = _noted(optimizer, directions) if watch else optimizer
    optimizer = _watched(term.name, term.make(hparams, inside), watch, directions)
  return optimizer


def _watched(
    name: str,
    transformation: optax.GradientTransformation,
    watch: Watch | None,
    inputs: list[optax.Updates] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Passes the input of each update, or the last of `inputs`, and its output to `watch`."""
  transformation = optax.with_extra_args_support(transformation)
  if watch is None:
    return transformation

  def update(updates, state, params=None, **others):
    new, state = transformation.update(updates, state, params, **others)
    watch(name, updates if inputs is None else inputs.pop(), new)
    return new, state

  return optax.GradientTransformationExtraArgs(transformation.init, update)


def _noted(
    optimizer: optax.GradientTransformationExtraArgs, directions: list[optax.Updates]
) -> optax.GradientTransformationExtraArgs:
  """Adds each direction of an optimizer to a list."""

  def update(updates, state, params=None, **others):
    new, state = optimizer.update(updates, state, params, **others)
    directions.append(new)
    return new, state

  return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _adamw(hparams: HParams) -> optax.GradientTransformation:
  """Adam: m / (sqrt(v) + eps)."""
  return optax.scale_by_adam(
      hparams['optimizer.beta1'], hparams['optimizer.beta2'], hparams['optimizer.eps']
  )


def _adam_atan2(hparams: HParams) -> optax.GradientTransformation:
  """4/pi * atan2(m, sqrt(v)), which needs no eps."""

  def rule(g, m, v):
    del g
    return 4 / jnp.pi * jnp.arctan2(m, jnp.sqrt(v))

  return _from_moments(hparams, rule)


def _stable_adamw(hparams: HParams) -> optax.GradientTransformation:
  """Adam's update divided by max(1, RMS of g / max(sqrt(v), eps)), per tensor.

  This limits updates when the gradient grows suddenly and v lags behind.
  """
  eps = hparams['optimizer.eps']

  def rule(g, m, v):
    # The ratio g / sqrt(v) rather than g^2 / v, since eps^2 may underflow in float32.
    ratio = jnp.sqrt(jnp.mean(jnp.square(g / jnp.maximum(jnp.sqrt(v), eps))))
    return m / (jnp.sqrt(v) + eps) / jnp.maximum(ratio, 1)

  return _from_moments(hparams, rule)


def _lion(hparams: HParams) -> optax.GradientTransformation:
  """The sign of a mix of the gradient and its moving average.

  beta1 is the weight of the average in the mix, beta2 the decay of the average. Usual values are
  0.9 and 0.99, with a third to a tenth of Adam's learning rate.
  """
  return optax.scale_by_lion(hparams['optimizer.beta1'], hparams['optimizer.beta2'])


def _muon(hparams: HParams) -> optax.GradientTransformation:
  """Orthogonalised Nesterov momentum for the blocks' matrices, Adam for the rest.

  The RMS of an update is about 0.2 for any shape of matrix (arXiv 2502.16982), as it is for Adam.
  Matrices read beta1, and eps, which guards against a norm of 0; the rest reads what Adam reads.
  """

  def dimensions(params):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)

  def match_adam_rms(updates, params):
    del params
    return jax.tree.map(lambda u: MUON_RMS * max(u.shape) ** 0.5 * u, updates)

  muon = optax.contrib.scale_by_muon(
      beta=hparams['optimizer.beta1'],
      eps=hparams['optimizer.eps'],
      weight_dimension_numbers=dimensions,
  )
  matrices = optax.chain(muon, optax.stateless(match_adam_rms))
  return for_matrices(matrices, _adamw(hparams), 'muon', 'adam')


def _adafactor(hparams: HParams) -> optax.GradientTransformation:
  """Gradient / sqrt(v), with the RMS of each tensor's update clipped to 1.

  It reads no hyperparameter: the decay rate of v is 1 - step^-0.8, eps, which is added to g^2, is
  1e-30, and there is no momentum. v is factored for all matrices: with the published limit, sides
  of 128, small models would have another optimizer than the large ones that they stand for. The
  published factor of the learning rate is the option optimizer.learning_rate_scale, which every
  optimizer has.
  """
  del hparams
  rms = optax.scale_by_factored_rms(min_dim_size_to_factor=2)
  return optax.chain(rms, optax.clip_by_block_rms(1.0))


def _soap(hparams: HParams) -> optax.GradientTransformation:
  """Adam in the eigenbasis of Shampoo's preconditioner for the blocks' matrices, Adam elsewhere."""
  soap = scale_by_soap(
      *(hparams[f'optimizer.{name}'] for name in ('beta1', 'beta2', 'eps', 'basis_every_steps'))
  )
  return for_matrices(soap, _adamw(hparams))


def _hyperball(hparams: HParams) -> optax.GradientTransformation:
  """Adam's direction scaled to the norm of W for the blocks' matrices W, plain Adam elsewhere.

  The learning rate is then the angle by which W turns. After the update, which has no weight decay,
  W is projected back to its old norm (stability/optim/after_update.py).
  """

  def to_norm(updates, params):
    def scale(u, p):
      return u * jnp.linalg.norm(p) / jnp.maximum(jnp.linalg.norm(u), SMALLEST_NORM)

    return jax.tree.map(scale, updates, params)

  matrices = optax.chain(_adamw(hparams), optax.stateless(to_norm))
  return for_matrices(matrices, _adamw(hparams))


def _ademamix(hparams: HParams) -> optax.GradientTransformation:
  """Adam with a second, slower average of the gradient: (m + alpha m_slow) / (sqrt(v) + eps).

  Over the whole run, alpha rises from 0, and the slow average's half-life, in updates, from that
  of m; both linearly. With the state of another run, they start where that run was
  (stability/trainer/parents.py). The RMS of a direction is up to 1 + alpha.
  """
  beta1, beta3 = hparams['optimizer.beta1'], hparams['optimizer.beta3']
  steps = hparams['schedule.steps'].astype(jnp.float32)

  def progress(count):
    return jnp.minimum((count + 1) / steps, 1)

  def slow_decay(count):
    fast, slow = (jnp.log(0.5) / jnp.log(beta) - 1 for beta in (beta1, beta3))
    return 0.5 ** (1 / (fast + progress(count) * (slow - fast) + 1))

  return optax.contrib.scale_by_ademamix(
      beta1,
      hparams['optimizer.beta2'],
      slow_decay,
      lambda count: hparams['optimizer.alpha'] * progress(count),
      hparams['optimizer.eps'],
  )


def _adopt(hparams: HParams) -> optax.GradientTransformation:
  """Momentum of g / max(sqrt(v), eps), where v is the second moment before this gradient.

  The ratio is clipped to t^(1/4) after t updates. The first update only sets v and moves nothing.
  """
  return optax.contrib.scale_by_adopt(
      hparams['optimizer.beta1'], hparams['optimizer.beta2'], hparams['optimizer.eps']
  )


def _spam(hparams: HParams) -> optax.GradientTransformation:
  """Adam with momentum restarts and clipping of spikes."""
  names = ('beta1', 'beta2', 'eps', 'restart_every_steps', 'restart_warmup_steps')
  return scale_by_spam(*(hparams[f'optimizer.{name}'] for name in names))


def _muon_sphere(hparams: HParams) -> optax.GradientTransformation:
  """Muon for the blocks' matrices, which keep their spectral norm, plain Adam elsewhere.

  Before each update, which has no weight decay, a matrix is scaled to its spectral norm
  (stability/optim/after_update.py).
  """
  sphere = scale_by_muon_sphere(hparams['optimizer.beta1'], hparams['optimizer.eps'])
  return for_matrices(sphere, _adamw(hparams))


def _prodigy(hparams: HParams) -> optax.GradientTransformation:
  """Adam times an estimate of the learning rate."""
  return learning_rate_free.prodigy(
      *(hparams[f'optimizer.{name}'] for name in ('beta1', 'beta2', 'eps'))
  )


def for_matrices(
    matrices: optax.GradientTransformation,
    rest: optax.GradientTransformation,
    matrices_label: str = 'matrices',
    rest_label: str = 'rest',
) -> optax.GradientTransformation:
  """One transformation for the blocks' matrices, another for all other parameters.

  The labels name the two parts of the optimizer state in checkpoints.
  """

  def labels(params):
    return jax.tree.map(
        lambda kind: matrices_label if kind == 'hidden' else rest_label,
        parameterization.kinds(params),
    )

  return optax.partition({matrices_label: matrices, rest_label: rest}, labels)


def eps_acts(params: optax.Params, name: str) -> optax.Params:
  """Whether the optimizer adds eps to the root of each element's second moment, by parameter."""
  reads, of_matrices = 'optimizer.eps' in OPTIMIZERS[name].reads, name in _NO_EPS_OF_MATRICES
  return jax.tree.map(
      lambda kind: reads and not (of_matrices and kind == 'hidden'), parameterization.kinds(params)
  )


def _from_moments(
    hparams: HParams, rule: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
  """Updates by a rule of a tensor's gradient and Adam's two moments, bias-corrected."""
  beta1, beta2 = hparams['optimizer.beta1'], hparams['optimizer.beta2']
  adam = optax.scale_by_adam(beta1, beta2)

  def update(gradients, state, params=None):
    del params
    _, state = adam.update(gradients, state)
    first = optax.tree.bias_correction(state.mu, beta1, state.count)
    second = optax.tree.bias_correction(state.nu, beta2, state.count)
    return jax.tree.map(rule, gradients, first, second), state

  return optax.GradientTransformation(adam.init, update)


_NO_EPS_OF_MATRICES = ('muon', 'muon_sphere')  # their eps guards against a norm of 0
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
        'ademamix': Variant(
            _ademamix,
            'arXiv 2409.03137',
            reads=(
                *_BETAS,
                *('optimizer.eps', 'optimizer.beta3', 'optimizer.alpha', 'schedule.steps'),
            ),
        ),
        'adopt': Variant(_adopt, 'arXiv 2411.02853', reads=(*_BETAS, 'optimizer.eps')),
        'spam': Variant(
            _spam,
            'arXiv 2501.06842',
            reads=(
                *_BETAS,
                *('optimizer.eps', 'optimizer.restart_every_steps'),
                'optimizer.restart_warmup_steps',
            ),
        ),
        'muon_sphere': Variant(_muon_sphere, 'arXiv 2601.08393', reads=(*_BETAS, 'optimizer.eps')),
        'prodigy': Variant(_prodigy, 'arXiv 2306.06101', reads=(*_BETAS, 'optimizer.eps')),
        'dowg': Variant(lambda hparams: learning_rate_free.dowg(), 'arXiv 2305.16284'),
    },
)
