"""FLOPs and stored bytes of small programs, compared with counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from stability.devices import jaxprs
from stability.devices.jaxprs import ROWS, Amount


def shape(*sizes, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(sizes, dtype)


def trace(function, *arguments):
  return jax.make_jaxpr(function)(*arguments)


X, W = shape(ROWS, 4), shape(4, 8)  # a product of 2 * 4 * 8 FLOPs per row
PER_ROW = 64


@jax.custom_jvp
def _custom_jvp(x):
  return x @ jnp.ones((4, 8))


_custom_jvp.defjvp(lambda x, t: (_custom_jvp(x[0]), t[0] @ jnp.ones((4, 8))))


@jax.custom_vjp
def _custom_vjp(x):
  return x @ jnp.ones((4, 8))


_custom_vjp.defvjp(lambda x: (_custom_vjp(x), None), lambda _, g: (g @ jnp.ones((8, 4)),))


def _back(y, w):
  """Multiplies y [rows, 8] by w^T without a transposed array."""
  return jnp.einsum('rf,kf->rk', y, w)


def _scan(x, w):
  return jax.lax.scan(lambda carry, _: (_back(carry @ w, w), None), x, length=5)[0]


def _cond(x, w):
  return jax.lax.cond(x.sum() > 0, lambda: _back(x @ w, w), lambda: x * 2)


def _while(x, w):
  return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: _back(x @ w, w), x)


@pytest.mark.parametrize(
    'function, products',
    [
        (lambda x, w: x @ w, 1),
        (lambda x, w: jnp.sin(x) + 1, 0),
        (jax.jit(lambda x, w: x @ w), 1),
        (jax.checkpoint(lambda x, w: x @ w), 1),
        (lambda x, w: _custom_jvp(x), 1),
        (lambda x, w: _custom_vjp(x), 1),
        (lambda x, w: jax.vmap(lambda row: row @ w)(x), 1),
        (lambda x, w: jnp.einsum('rk,kf->fr', x, w), 1),
        (_scan, 10),
        (_cond, 2),  # the most expensive branch
        (_while, 2),  # one iteration
        (lambda x, w: jax.grad(lambda w: jnp.square(x @ w).sum())(w), 2),
        (lambda x, w: jax.grad(lambda xw: jnp.square(xw[0] @ xw[1]).sum())((x, w)), 3),
    ],
)
def test_flops(function, products):
  assert jaxprs.flops(trace(function, X, W)) == Amount(0, products * PER_ROW)


def test_flops_apart_from_rows():
  found = jaxprs.flops(trace(lambda x, w: x @ (w @ w.T @ w), X, W))
  assert found == Amount(2 * 2 * 4 * 8 * 4, PER_ROW)
  assert found.at(10) == 512 + 640


def test_loop_over_rows():
  """A loop with an iteration per row counts per row."""
  found = jaxprs.flops(trace(lambda x, w: jax.lax.map(lambda row: row @ w, x), X, W))
  assert found == Amount(0, PER_ROW)


def peak(function, *arguments, **options):
  """The peak of the bytes per row, outputs included."""
  jaxpr = trace(function, *arguments)
  labels = [0] * len(jaxpr.jaxpr.outvars)
  moments = jaxprs.moments(jaxpr, labels, 1, **options)
  return max((m.outputs[0] + m.rest).per_row for m in moments)


ROW = 8 * 4  # bytes of x @ w, per row


@pytest.mark.parametrize(
    'function, stored',
    [
        (lambda x, w: x @ w, 1),
        (lambda x, w: jnp.square(x @ w + 1) * 2, 1),  # over the product, which is not read again
        (lambda x, w: jnp.dot(_back(x @ w, w), w), 1 + 1 / 2),  # two of the three at a time
        (lambda x, w: jnp.sum((x @ w) * 3), 1),
        (lambda x, w: x @ w + (x + 1) @ w, 2 + 1 / 2),  # a product reads stored arrays
        # Expensive and read twice: stored. Cheap: computed again for each reader.
        (lambda x, w: _read_twice(jnp.exp(x)), 1 / 2),
        (lambda x, w: _read_twice(-x), 0),
        (lambda x, w: _read_twice(jnp.broadcast_to(x[:, :1], (ROWS, 8))), 0),
        (lambda x, w: jax.jit(lambda x: x @ w)(x).reshape(-1, 2, 4).reshape(-1, 8) + 1, 1),
        (lambda x, w: (x @ w, jnp.tanh(x @ w))[0], 1),  # what no output needs is dropped
        (_scan, 1 + 1 / 2),  # what the body stores, and the result
    ],
)
def test_stored(function, stored):
  assert peak(function, X, W) == stored * ROW


def _read_twice(x):
  return x.sum() + x.max()


def _reduced_late(x, w):
  product = x @ w
  grown = jnp.exp(product)
  first = grown.sum(-1)
  return grown / (first + product.sum(-1))[:, None]  # overwrites it


def test_reductions_come_first():
  """The product is reduced before its exponential takes its place."""
  rows = 2 * 4  # bytes of two sums
  assert peak(_reduced_late, X, W, reduces_early=True) == ROW + rows
  assert peak(_reduced_late, X, W) == 2 * ROW + rows


def test_stored_until_the_backward_pass():
  """The gradient of x -> sum tanh(tanh(x w) v): each tanh is stored until its derivative."""
  v = shape(8, 8)

  def loss(w, x, v):
    return jnp.tanh(jnp.tanh(x @ w) @ v).sum()

  jaxpr = trace(jax.grad(loss), W, X, v)
  moments = jaxprs.moments(jaxpr, [0], 1)
  assert max(m.rest.per_row for m in moments) == 3 * ROW
  assert moments[-1].outputs[0] == Amount(4 * 8 * 4, 0)
