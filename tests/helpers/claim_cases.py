"""Cases of claims: a sweep, outcomes with which a claim holds, and outcomes with which it fails."""

from collections.abc import Callable
from typing import Any

from helpers.simulated_sweeps import (
  BOTH_QK,
  QK,
  RATES,
  WIDTHS,
  Fields,
  FirstAndLast,
  Number,
  Outcomes,
  best,
  centred,
  cliff,
  cliff_without_qk_norm,
  flat,
  grid,
  highest,
  late,
  rate,
  size,
  steep,
  sweep,
  together,
  where,
)
from stability import hyper
from stability.analysis.results import LOGIT

NAME, QK_NORM, SCALE = 'parameterization.name', 'model.qk_norm', 'model.attention_scale'
Z_LOSS, DECAY, DECAY_KIND = (
    'objective.z_loss', 'optimizer.weight_decay', 'optimizer.weight_decay_kind'
)  # fmt: skip
STEP_COUNT, WARMUP, BATCH = 'schedule.steps', 'schedule.warmup_steps', 'data.batch_size'
EPS, RATE_SCALE = 'optimizer.eps', 'optimizer.learning_rate_scale'
UP, KEY = 'block_0/mlp/up', 'block_0/attention/key'
MEAN_NORMS = ('block_0/query_norm', 'block_0/key_norm')

# Width alone at depth 3; depth alone at width 32; both: (16, 1), (32, 3) and (48, 5).
SHAPES = together(
    'model.width', 'model.depth',
    (16, 1), (16, 3), (64, 3), (32, 1), (32, 3), (32, 12), (48, 5),
)  # fmt: skip
SHAPE_GRID = grid(SHAPES, BOTH_QK, RATES)
NO_Z = grid(WIDTHS, together(Z_LOSS, DECAY, (0.0, 0.0), (1e-4, 0.0), (0.0, 1e-4)), RATES)
MUPARAM = grid(
    WIDTHS,
    together(
        NAME, QK_NORM,
        ('standard', 'layernorm'), ('muparam_simple', 'layernorm'), ('muparam_full', 'layernorm'),
        ('standard', 'none'), ('muparam_simple', 'none'),
    ),
    RATES,
)  # fmt: skip
KAPPAS = [
    *sweep('model.logit_scale', 1.0, 1e2, 3e2, 1e3, 1e4, 1e5),
    {'model.logit_scale': 1.0, 'model.depth': 0},
]
KAPPAS = grid(sweep(QK_NORM, 'fixed'), KAPPAS)
EPSILONS = grid(sweep(EPS, 1e-15, 1e-8, 1e-6, 1e-4), sweep('optimizer.learning_rate', 0.1, 1.0))
DECAYS = grid(WIDTHS, sweep(DECAY, 0.0, 1e-4, 1e-3), RATES)
DECAY_KINDS = grid(
    WIDTHS, together(DECAY_KIND, DECAY, ('independent', 1e-4), ('coupled', 0.1)), RATES
)
LENGTHS = grid(WIDTHS, together(STEP_COUNT, WARMUP, (250, 25), (500, 50)), RATES)
BATCHES = [
    {BATCH: 8 * n, STEP_COUNT: 1000 // n, WARMUP: 50 // n, 'data.validation_batches': 16 // n}
    for n in (1, 2)
]


def cliff_without(field: str) -> Number:
  """A loss with which runs at the highest learning rate are unstable where a field is 0."""
  return lambda c: cliff(c) if c[field] == 0 else flat(c)


def kappa_loss(critical: float) -> Number:
  """A loss that rises at the critical logit scale; a model without blocks ends at 3."""

  def loss(c: Fields) -> float:
    if c['model.depth'] == 0:
      return 3.0
    return 2.0 + 1.5 * (c['model.logit_scale'] >= critical)

  return loss


def eps_loss(harm: float) -> Number:
  return lambda c: 2.0 + harm * (c[EPS] >= 1e-4)


def gradient(with_size: float, with_rate: float) -> Callable[[Fields], FirstAndLast]:
  return lambda c: (1e-3, 1e-3 * size(c) ** with_size * rate(c) ** with_rate)


def logit_at_the_top(logit: float) -> Callable[[Fields], FirstAndLast]:
  """A logit for runs without qk-norm at the highest learning rate; 20 elsewhere."""
  return lambda c: (10.0, logit if highest(c) and c[QK_NORM] == 'none' else 20.0)


def shape_loss(wide: float, deep: float, both: float) -> Number:
  """Best losses of the largest shapes."""
  shapes = {(64, 3): wide, (32, 12): deep, (48, 5): both}
  return lambda c: shapes.get((c['model.width'], c['model.depth']), 3.0)


def law(wide: float, deep: float, both: float) -> Number:
  """Best losses by a power law of the size, plus a residual at the largest shapes."""
  residuals = {(64, 3): wide, (32, 12): deep, (48, 5): both}
  return lambda c: 3 * size(c) ** -0.05 + residuals.get((c['model.width'], c['model.depth']), 0.0)


def depth_or_width(deep: float, wide: float) -> Number:
  """LR sensitivity as powers of depth and width."""
  return lambda c: 0.1 * (c['model.depth'] / 3) ** deep * (c['model.width'] / 32) ** wide


def larger_cliff(rises: bool) -> Number:
  """Runs without qk-norm are unstable at the highest rate; with `rises`, only larger shapes are."""

  def loss(c: Fields) -> float:
    small = (c['model.width'], c['model.depth']) in ((16, 3), (32, 1))
    return 4.0 if highest(c) and c[QK_NORM] == 'none' and not (rises and small) else flat(c)

  return loss


def unstable_from(of: Number) -> Number:
  return lambda c: 4.0 if rate(c) >= of(c) and c[QK_NORM] == 'none' else flat(c)


def output_rms(with_size: float, with_rate: float, with_depth: float) -> dict[str, Any]:
  def of(c: Fields) -> FirstAndLast:
    grown = size(c) ** with_size * rate(c) ** with_rate * c['model.depth'] ** with_depth
    return 1.0, grown

  return {f'block_{block}/output_rms': of for block in range(12)}


def grown_by_norms(factor: float) -> dict[str, Any]:
  norms = dict.fromkeys(MEAN_NORMS, (1.0, factor))
  return norms | {LOGIT: logit_at_the_top(1e5)}


def update(*collapsed: float) -> dict[str, Any]:
  """Gradients of 1e-5; where eps is larger, the updates of each block are reduced by its factor."""

  def over_eps(c: Fields) -> FirstAndLast:
    return (1e-5 / c[EPS],) * 2

  def rms(left: float) -> Callable[[Fields], FirstAndLast]:
    return lambda c: (0.3, 0.3 if over_eps(c)[0] > 1 else 0.3 * left)

  layers = [f'block_{block}/mlp/up' for block in range(len(collapsed))]
  updates = {f'update_rms/{layer}': rms(left) for layer, left in zip(layers, collapsed)}
  return updates | {f'gradient_over_eps/{layer}': over_eps for layer in layers}


def near_eps(shrunk: float) -> dict[str, Any]:
  def over_eps(c: Fields) -> FirstAndLast:
    return 1e3, 2.0 if highest(c) else 1e3

  def rms(c: Fields) -> FirstAndLast:
    return 0.3, 0.3 * shrunk if highest(c) else 0.3

  return {f'gradient_over_eps/{UP}': over_eps, f'update_rms/{UP}': rms}


def smallest_update(of_size: float) -> dict[str, Any]:
  """A smaller update at the highest learning rate of one size, where gradients are near eps."""

  def rms(c: Fields) -> FirstAndLast:
    return 0.3, 0.1 if highest(c) and size(c) == of_size else 0.3

  return near_eps(1.0) | {f'update_rms/{UP}': rms}


def cosine(last: float) -> dict[str, Any]:
  return {LOGIT: logit_at_the_top(1e4 + 1), 'block_0/query_key_cosine': (0.1, last)}


def blocks(first: float) -> dict[str, Any]:
  others = {f'block_{block}/attention_logit_max': (10.0, 100.0) for block in (1, 2)}
  return {LOGIT: (10.0, first)} | others


def entropy(with_norm: float, without: float) -> dict[str, Any]:
  left = where(QK_NORM, 'none', (3.0, without), (3.0, with_norm))
  return {LOGIT: logit_at_the_top(1e5), 'block_0/attention_entropy': left}


def over_sizes(largest: float) -> dict[str, Any]:
  """Logits that follow a power law of the size, except at the largest of four."""
  return {LOGIT: lambda c: (10.0 * size(c) * (largest if size(c) > 30 else 1.0),) * 2}


def steep_logits(largest: float) -> dict[str, Any]:
  """Logits that exceed 1e4 only at the highest learning rate and the largest of four sizes."""

  def of(c: Fields) -> FirstAndLast:
    grown = 500 * size(c) * (largest if size(c) > 30 else 1.0)
    return (grown if highest(c) else 10.0,) * 2

  return {LOGIT: of}


def shift(of_name: str, with_size: float) -> Outcomes:
  """An optimum that changes with size in one parameterization."""
  return centred(lambda c: 1e-2 * size(c) ** (with_size if c[NAME] == of_name else 0.0))


def lower_at(of_name: str) -> tuple[Outcomes, Outcomes]:
  """One parameterization has lower best losses, at all but the largest size or at that alone."""

  def of(is_largest: bool) -> Outcomes:
    return best(lambda c: 1.9 if c[NAME] == of_name and (size(c) == 16) == is_largest else 2.0)

  return of(False), of(True)


# Figure and letter of a claim -> a sweep, outcomes with which it holds and with which it does not.
CASES: dict[str, tuple[list[hyper.Point], Outcomes, Outcomes]] = {
    '1a': (QK, steep(where(QK_NORM, 'none', 0.2, 0.1)), steep(where(QK_NORM, 'none', 0.1, 0.1))),
    '1b': (QK, steep(lambda c: 0.1 * size(c) ** 0.25), steep(lambda c: 0.1)),
    '1c': (
        QK,
        Outcomes(unstable_from(lambda c: 1.0 if size(c) < 16 else 0.1)),
        Outcomes(unstable_from(lambda c: 1.0)),
    ),
    '1d': (QK, Outcomes(cliff_without_qk_norm), Outcomes(cliff)),
    '2a': (
        QK,
        Outcomes(cliff_without_qk_norm),
        Outcomes(lambda c: cliff_without_qk_norm(c) if size(c) > 1 else flat(c)),
    ),
    '2b': (QK, Outcomes(cliff, blocks(1e3)), Outcomes(cliff, blocks(50.0))),
    '2c': (QK, Outcomes(flat, entropy(2.0, 0.1)), Outcomes(flat, entropy(2.0, 2.0))),
    '2d': (QK, Outcomes(flat, entropy(2.0, 0.1)), Outcomes(flat, entropy(0.1, 0.1))),
    '3a': (NO_Z, steep(where(Z_LOSS, 0.0, 0.2, 0.1)), steep(where(Z_LOSS, 0.0, 0.1, 0.2))),
    '3b': (NO_Z, Outcomes(cliff), Outcomes(flat)),
    '3c': (NO_Z, Outcomes(cliff_without(Z_LOSS)), Outcomes(cliff)),
    '3d': (NO_Z, steep(where(DECAY, 0.0, 0.2, 0.1)), steep(where(DECAY, 0.0, 0.1, 0.1))),
    '4a': (
        NO_Z,
        Outcomes(flat, {'output_logit_mean': where(Z_LOSS, 0.0, (-1.0, -30.0), (-1.0, -2.0))}),
        Outcomes(flat, {'output_logit_mean': (-1.0, -2.0)}),
    ),
    '4b': (
        NO_Z,
        Outcomes(flat, {'log_z': where(Z_LOSS, 0.0, (-5.0, -40.0), (5.0, 4.0))}),
        Outcomes(flat, {'log_z': (5.0, 6.0)}),
    ),
    '4c': (
        NO_Z,
        Outcomes(cliff_without(Z_LOSS), curve=late(0.5)),
        Outcomes(cliff_without(Z_LOSS), curve=late(0.0)),
    ),
    '5a': (
        grid(WIDTHS, sweep(WARMUP, 5, 25, 100), RATES),
        steep(lambda c: 0.2 - c[WARMUP] / 1000),
        steep(lambda c: 0.2 + c[WARMUP] / 1000),
    ),
    '5b': (
        grid(WIDTHS, sweep(WARMUP, 5, 25, 100), RATES),
        steep(lambda c: 0.2 - c[WARMUP] / 1000 * size(c) / 16),
        steep(lambda c: 0.2 - c[WARMUP] / 1000),
    ),
    '5c': (
        grid(WIDTHS, sweep(WARMUP, 5, 25, 100), RATES),
        best(lambda c: 2.2 - c[WARMUP] / 1000),
        best(lambda c: 2.0 + c[WARMUP] / 1000),
    ),
    '5d': (
        grid(WIDTHS, sweep(WARMUP, 5, 25, 100), RATES),
        Outcomes(lambda c: cliff(c) if c[WARMUP] < 100 and size(c) == 16 else flat(c)),
        Outcomes(lambda c: cliff(c) if c[WARMUP] < 100 and size(c) < 16 else flat(c)),
    ),
    '5e': (
        grid(WIDTHS, sweep(WARMUP, 5, 25, 100), RATES),
        steep(lambda c: 0.2 - c[WARMUP] / 1000),
        steep(lambda c: 0.2 if c[WARMUP] < 25 else 0.1),
    ),
    '6a': (
        DECAY_KINDS,
        steep(where(DECAY_KIND, 'coupled', 0.2, 0.1)),
        steep(where(DECAY_KIND, 'coupled', 0.1, 0.1)),
    ),
    '7a': (SHAPE_GRID, steep(depth_or_width(0.5, 0.5)), steep(depth_or_width(0.25, 0.5))),
    '7b': (SHAPE_GRID, best(shape_loss(2.1, 2.0, 2.0)), best(shape_loss(2.0, 2.1, 2.0))),
    '8a': (MUPARAM, shift('standard', 0.5), shift('muparam_simple', 0.5)),
    '8b': (
        MUPARAM,
        steep(lambda c: 0.1),
        steep(where(NAME, 'muparam_simple', 0.05, 0.1)),
    ),
    '8c': (MUPARAM, *lower_at('muparam_simple')),
    '9a': (
        QK,
        Outcomes(cliff_without_qk_norm, {LOGIT: logit_at_the_top(1e5)}),
        Outcomes(flat, {LOGIT: logit_at_the_top(1e5)}),
    ),
    '9b': (
        QK,
        Outcomes(flat, {LOGIT: logit_at_the_top(1e5)}),
        Outcomes(flat, {LOGIT: (10.0, 1e5)}),
    ),
    '9c': (
        grid(sweep('model.width', 16, 32, 64, 96), BOTH_QK, RATES),
        Outcomes(flat, over_sizes(1.0)),
        Outcomes(flat, over_sizes(10.0)),
    ),
    '9d': (
        grid(sweep('model.width', 16, 32, 64, 96), BOTH_QK, RATES),
        Outcomes(cliff_without_qk_norm, steep_logits(1.0)),
        Outcomes(flat, steep_logits(1.0)),
    ),
    '10a': (KAPPAS, Outcomes(kappa_loss(1e3)), Outcomes(kappa_loss(1e7))),
    '10b': (KAPPAS, Outcomes(kappa_loss(1e3)), Outcomes(kappa_loss(1e5))),
    '11a': (
        QK,
        Outcomes(flat, {f'gradient_rms/{UP}': gradient(-0.5, 0.0)}),
        Outcomes(flat, {f'gradient_rms/{UP}': gradient(0.5, -0.5)}),
    ),
    '11b': (
        QK,
        Outcomes(flat, {f'gradient_rms/{UP}': gradient(0.0, -0.5)}),
        Outcomes(flat, {f'gradient_rms/{UP}': gradient(-0.5, 0.5)}),
    ),
    '11c': (QK, Outcomes(flat, near_eps(1.0)), Outcomes(flat, update(1.0))),
    '12a': (EPSILONS, Outcomes(eps_loss(0.3)), Outcomes(where(EPS, 1e-15, 2.2, 2.0))),
    '12b': (
        EPSILONS,
        Outcomes(where(EPS, 1e-15, 1.9, 2.0)),
        Outcomes(where(EPS, 1e-15, 2.1, 2.0)),
    ),
    '12c': (
        EPSILONS,
        Outcomes(flat, {f'gradient_rms/{UP}': where(EPS, 1e-15, (1e-5, 1e-5), (1e-5, 1e-7))}),
        Outcomes(flat, {f'gradient_rms/{UP}': (1e-5, 1e-5)}),
    ),
    '13a': (
        EPSILONS,
        Outcomes(eps_loss(0.3), update(0.1, 0.2, 0.1)),
        Outcomes(eps_loss(0.3), update(0.1, 0.9, 0.1)),
    ),
    'C.1a': (
        QK,
        Outcomes(flat, output_rms(0.0, 0.5, 0.0)),
        Outcomes(flat, output_rms(0.5, 0.5, 0.0)),
    ),
    'C.1b': (
        QK,
        Outcomes(flat, output_rms(0.0, 0.5, 0.0)),
        Outcomes(flat, output_rms(0.5, 0.0, 0.0)),
    ),
    'C.1c': (
        SHAPE_GRID,
        Outcomes(flat, output_rms(0.0, 0.0, 0.5)),
        Outcomes(flat, output_rms(0.0, 0.5, 0.0)),
    ),
    'E.1a': (QK, Outcomes(flat, grown_by_norms(90.0)), Outcomes(flat, grown_by_norms(2.0))),
    'E.1b': (QK, Outcomes(flat, cosine(0.2)), Outcomes(flat, cosine(1.0))),
    'E.2a': (
        SHAPE_GRID,
        Outcomes(larger_cliff(True), {LOGIT: logit_at_the_top(1e5)}),
        Outcomes(larger_cliff(False), {LOGIT: logit_at_the_top(1e5)}),
    ),
    'E.3a': (SHAPE_GRID, best(shape_loss(2.1, 2.1, 2.0)), best(shape_loss(2.1, 1.9, 2.0))),
    'E.3b': (SHAPE_GRID, best(law(0.1, 0.1, 0.0)), best(law(0.1, 0.0, 0.1))),
    'E.4a': (
        MUPARAM,
        steep(where(QK_NORM, 'none', 0.2, 0.1)),
        steep(where(QK_NORM, 'none', 0.1, 0.1)),
    ),
    'E.4b': (MUPARAM, shift('standard', 0.5), shift('muparam_simple', 0.5)),
    'E.5a': (
        MUPARAM,
        Outcomes(lambda c: 6.0 if highest(c) and c[NAME] != 'muparam_full' else flat(c)),
        Outcomes(lambda c: 6.0 if highest(c) else flat(c)),
    ),
    'E.5b': (MUPARAM, *lower_at('muparam_full')),
    'E.6a': (
        grid(WIDTHS, sweep(SCALE, 'inverse_sqrt', 'inverse'), BOTH_QK, RATES),
        steep(where(QK_NORM, 'none', 0.2, 0.1)),
        steep(where(QK_NORM, 'none', 0.1, 0.1)),
    ),
    'E.6b': (
        grid(WIDTHS, sweep(SCALE, 'inverse_sqrt', 'inverse'), BOTH_QK, RATES),
        steep(lambda c: 0.1 * (size(c) ** 0.5 if c[SCALE] == 'inverse' else 1.0)),
        steep(where(SCALE, 'inverse', 0.2, 0.1)),
    ),
    'E.6c': (
        grid(WIDTHS, sweep(SCALE, 'inverse_sqrt', 'inverse'), BOTH_QK, RATES),
        best(lambda c: 2.0 + (0.01 * (size(c) - 4) if c[SCALE] == 'inverse' else 0.0)),
        best(where(SCALE, 'inverse', 2.1, 2.0)),
    ),
    'E.7a': (LENGTHS, steep(lambda c: 0.1), steep(where(STEP_COUNT, 500, 0.2, 0.1))),
    'E.8a': (
        grid(WIDTHS, sweep(QK_NORM, 'layernorm', 'layernorm_model'), RATES),
        best(where(QK_NORM, 'layernorm', 2.0, 2.1)),
        best(where(QK_NORM, 'layernorm', 2.1, 2.0)),
    ),
    'E.9a': (
        grid(WIDTHS, BATCHES, RATES), steep(lambda c: 0.1), steep(where(BATCH, 8, 0.2, 0.1))
    ),
    'E.10a': (
        DECAYS,
        centred(lambda c: 1e-2 * (c[DECAY] / 1e-4) ** 0.5 if c[DECAY] else 1e-2),
        centred(lambda c: 1e-2),
    ),
    'E.11a': (
        grid(WIDTHS, sweep('model.attention', 'softmax', 'squared_relu'), BOTH_QK, RATES),
        Outcomes(flat, {LOGIT: (10.0, 1e4)}),
        Outcomes(flat, {LOGIT: where('model.attention', 'softmax', (10.0, 1e4), (10.0, 20.0))}),
    ),
    'E.12a': (
        QK,
        Outcomes(flat, {f'gradient_rms/{KEY}': gradient(-0.5, 0.0)}),
        Outcomes(flat, {f'gradient_rms/{KEY}': gradient(0.5, -0.5)}),
    ),
    'E.12b': (
        QK,
        Outcomes(flat, {f'gradient_rms/{KEY}': gradient(0.0, -0.5)}),
        Outcomes(flat, {f'gradient_rms/{KEY}': gradient(-0.5, 0.5)}),
    ),
    'E.13a': (QK, Outcomes(flat, near_eps(0.5)), Outcomes(flat, near_eps(1.0))),
    'E.13b': (QK, Outcomes(flat, smallest_update(16.0)), Outcomes(flat, smallest_update(1.0))),
    'E.14a': (
        grid(WIDTHS, sweep(RATE_SCALE, 'none', 'parameter_rms'), RATES),
        centred(lambda c: 1e-2 * size(c) ** where(RATE_SCALE, 'none', 0.5, 0.0)(c)),
        centred(lambda c: 1e-2 * size(c) ** where(RATE_SCALE, 'none', 0.0, 0.5)(c)),
    ),
    'E.15a': (
        EPSILONS,
        Outcomes(eps_loss(1.0), {f'gradient_rms/{UP}': (1e-5, 1e-5)}),
        Outcomes(eps_loss(0.05), {f'gradient_rms/{UP}': (1e-5, 1e-5)}),
    ),
}  # fmt: skip
