"""Changes after an update: mu-centering of the head."""

import jax
import numpy as np
import pytest

from stability.optim.after_update import AFTER_UPDATE
from stability.step.objective import cross_entropy


def test_mu_centering_keeps_the_softmax(rng):
  """All logits of a position change by the same number, so the cross-entropy does not change."""
  (term,) = (term for term in AFTER_UPDATE if term.name == 'mu_centering')
  stream = rng.normal(size=(2, 5, 7)).astype(np.float32)
  old = np.float32(0.3 + rng.normal(size=(7, 11)))
  targets = rng.integers(0, 11, (2, 5))
  head = np.asarray(jax.jit(lambda head: term.make({'head': head}, None)['head'])(old))
  np.testing.assert_allclose(head.mean(1), 0, atol=1e-6)
  moved = stream @ head - stream @ old
  assert np.abs(moved).max() > 0.1
  np.testing.assert_allclose(moved, np.repeat(moved[..., :1], 11, axis=-1), atol=1e-5)
  losses = [float(cross_entropy(stream @ h, targets)) for h in (old, head)]
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
