"""MuonSphere: the matrices of the blocks keep their spectral norm (arXiv 2601.08393).

One learning rate serves the matrices, relative to their norm, and what Adam updates; the source has
two (github.com/marin-community/marin, levanter's optim/sso.py).
"""

import jax
import optax

from stability.model import spectra

# Coefficients of Newton-Schulz steps x <- a x + (b A + c A^2) x with A = x x', of arXiv 2505.16932.
POLAR_EXPRESS = (
    (8.2051, -22.9019, 16.4607),
    (4.0664, -2.8612, 0.5184),
    (3.9096, -2.8234, 0.5250),
    (3.2856, -2.4153, 0.4853),
    (2.2779, -1.6198, 0.3985),
    (1.8726, -1.2307, 0.3585),
    (1.8564, -1.2132, 0.3568),
    (1.8750, -1.2500, 0.3750),
)


def scale_by_muon_sphere(beta: jax.Array, eps: jax.Array) -> optax.GradientTransformation:
  """Orthogonalised Nesterov momentum, times the radius.

  The learning rate is thus the spectral norm of an update relative to that of the matrix.
  """

  def dimensions(params):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)

  muon = optax.contrib.scale_by_muon(
      POLAR_EXPRESS, len(POLAR_EXPRESS), beta, eps, weight_dimension_numbers=dimensions
  )
  to_radius = lambda u, params: jax.tree.map(lambda x: spectra.radius(x.shape) * x, u)  # noqa: E731
  return optax.chain(muon, optax.stateless(to_radius))
