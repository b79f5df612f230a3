"""Mixture of experts: the MLP of a block as a weighted sum of a few of many MLPs, the experts.

A linear layer, the router, chooses the experts of each token. All experts are computed for all
tokens, and those that are not chosen get the weight 0: at these sizes this costs little, no expert
has a capacity, and no token is dropped. Shape suffixes: B batch, T positions, D width, E experts.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from stability.model.kernels import CARRIED, fan_in_init
from stability.model.measure import PROBES, Measured, sow, sow_activation, sow_loss
from stability.types import HParams


class MoE(nn.Module):
  """The experts with the highest router probabilities, weighted by a softmax over their logits.

  A single chosen expert would have the constant weight 1, so there are at least two. The router
  computes in float32.
  """

  c: ml_collections.FrozenConfigDict  # config.model
  expert: Callable[..., nn.Module]  # (config.model, name) -> a module with the signature of an MLP

  @nn.compact
  def __call__(self, x_BxTxD: jax.Array, hparams: HParams) -> jax.Array:
    c = self.c
    E = c.experts
    router_DxE = self.param('router', fan_in_init, (x_BxTxD.shape[-1], E))
    logits_BxTxE = jnp.dot(x_BxTxD.astype(jnp.float32), router_DxE, precision='highest')
    probabilities_BxTxE = jax.nn.softmax(logits_BxTxE)
    scores_BxTxE = jax.lax.stop_gradient(probabilities_BxTxE)
    bias = Bias(E, name='router_bias') if c.router_bias_rate else None
    if bias is not None:
      scores_BxTxE += bias(hparams['model.router_bias_rate'])
    _, best_BxTxk = jax.lax.top_k(scores_BxTxE, c.experts_per_token)
    chosen_BxTxE = jax.nn.one_hot(best_BxTxk, E).sum(-2)
    if bias is not None:
      bias.record(chosen_BxTxE.sum((0, 1)))
    masked_BxTxE = jnp.where(chosen_BxTxE > 0, logits_BxTxE, jnp.finfo(jnp.float32).min)
    gates_BxTxE = jax.nn.softmax(masked_BxTxE).astype(c.dtype)
    out_BxTxD = sum(
        gates_BxTxE[..., e, None] * self.expert(c, name=f'expert_{e}')(x_BxTxD, hparams)
        for e in range(E)
    )
    self._sow(logits_BxTxE, probabilities_BxTxE, chosen_BxTxE)
    sow_activation(self, 'output', out_BxTxD)
    return out_BxTxD

  def _sow(self, logits_BxTxE, probabilities_BxTxE, chosen_BxTxE):
    """Records losses and probes of the router."""
    load_BxE = chosen_BxTxE.mean(1) / self.c.experts_per_token  # adds up to 1
    # Balance is measured in each sequence. That of the whole batch would depend on how the batch is
    # split into microbatches, since it is not a mean over tokens.
    balance_B = self.c.experts * (load_BxE * probabilities_BxTxE.mean(1)).sum(-1)
    sow_loss(self, 'balance_loss', balance_B.mean())
    sow_loss(self, 'router_z_loss', jnp.square(jax.nn.logsumexp(logits_BxTxE, axis=-1)).mean())
    entropy_BxT = jax.scipy.special.entr(probabilities_BxTxE).sum(-1)
    sow(self, 'router_entropy', entropy_BxT.mean())
    sow(self, 'router_logit_max', logits_BxTxE.max(), 'max')
    self.sow(PROBES, 'router_load', Measured(load_BxE.mean(0), by_expert=True))


class Bias(nn.Module):
  """A bias of each expert's score that balances their loads without a loss (arXiv 2408.15664).

  After each step, the bias of every expert with less than the mean load grows by `rate`, and that
  of every expert with more shrinks by it. The load is that of the whole batch: a step records its
  load, which is averaged over the parts of the batch (stability/step/gradients.py), and the next
  step updates the bias before it reads it. Evaluation reads the updated bias too.
  """

  experts: int

  def setup(self):
    self.bias_E = self.variable(CARRIED, 'bias', jnp.zeros, (self.experts,))
    self.load_E = self.variable(CARRIED, 'load', jnp.zeros, (self.experts,))

  def __call__(self, rate: jax.Array) -> jax.Array:
    """The bias, [E], updated by the load of the last step."""
    load_E = self.load_E.value
    missing_E = load_E.sum() - self.experts * load_E
    # Loads are averages over the parts of a batch, hence rounded: equal loads must change nothing.
    is_equal_E = jnp.abs(missing_E) <= 1e-6 * load_E.sum()
    bias_E = self.bias_E.value + rate * jnp.where(is_equal_E, 0, jnp.sign(missing_E))
    if self._is_training():
      self.bias_E.value = bias_E
    return bias_E

  def record(self, load_E: jax.Array) -> None:
    """Stores the number of tokens of each expert in this step."""
    if self._is_training():
      self.load_E.value = load_E

  def _is_training(self) -> bool:
    return self.is_mutable_collection(CARRIED) and not self.is_initializing()
