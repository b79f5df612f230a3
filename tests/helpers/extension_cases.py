"""Cases of the claims that go beyond the paper; see claim_cases.py."""

import math

from helpers.simulated_sweeps import (
  BOTH_QK,
  RATES,
  WIDTHS,
  Outcomes,
  best,
  bowl,
  centred,
  grid,
  rate,
  size,
  steep,
  sweep,
  together,
  where,
)
from stability import hyper

CAP, POSITION, GATE = (
    'model.attention_soft_cap', 'model.norm_position', 'model.attention_gate'
)  # fmt: skip
NORM, QK_NORM, SHAPE = 'model.norm', 'model.qk_norm', 'schedule.shape'
LENGTH = 'data.sequence_length'
OPTIMIZER = 'optimizer.name'
NAME, EXPONENTS = 'parameterization.name', 'parameterization.exponents'

OPTIMIZERS = grid(
    WIDTHS,
    sweep(OPTIMIZER, 'adamw', 'adam_atan2', 'stable_adamw', 'lion', 'muon', 'adafactor'),
    RATES,
)
SCHEDULES = grid(WIDTHS, sweep(SHAPE, 'cosine', 'wsd', 'rsqrt'), RATES)
PER_LAYER = grid(
    WIDTHS,
    sweep(NAME, 'standard', 'ntk', 'mup', 'mean_field'),
    sweep(EXPONENTS, 'full_alignment', 'no_alignment'),
    RATES,
)

alike = steep(lambda c: 0.1)


def lowers(
    field: str, without: object, with_: object
) -> tuple[list[hyper.Point], Outcomes, Outcomes]:
  """A claim that an intervention helps without qk-norm; it fails if only qk-norm runs benefit."""
  points = grid(WIDTHS, sweep(field, without, with_), BOTH_QK, RATES)

  def only(qk_norm: str) -> Outcomes:
    return steep(lambda c: 0.2 if c[field] == without and c[QK_NORM] == qk_norm else 0.1)

  return points, only('none'), only('layernorm')


FINE = sweep('optimizer.learning_rate', *(10 ** (-n / 2) for n in range(7)))
HYPERBALL = grid(WIDTHS, sweep(OPTIMIZER, 'adamw', 'hyperball'), FINE)
EMBEDDING = 'optimizer.embedding_rate'
EMBEDDINGS = grid(
    WIDTHS,
    together(
        NAME, EMBEDDING, ('standard', 'none'), ('standard', 'width'), ('muparam_simple', 'none')
    ),
    RATES,
)
CLIPS = grid(
    WIDTHS,
    [{}, {'optimizer.clip_norm': 0.0}, {'optimizer.zclip': 2.5}, {'optimizer.skip_step': 6.0}],
    RATES,
)
BETA2, NOTHING = 'optimizer.beta2', 'optimizer.update_clip'
OUTPUT_CAP = 'model.output_soft_cap'


def clipping(harmful_rate: float) -> Outcomes:
  """Gradient norms are below 1 up to a rate of 0.1; ZClip costs loss at one rate."""

  def loss(c):
    return bowl(c) + 0.1 * (c['optimizer.zclip'] > 0 and math.isclose(rate(c), harmful_rate))

  return Outcomes(loss, {'gradient_norm': lambda c: (0.5 if rate(c) < 0.5 else 2.0,) * 2})


def cost(field: str, value: object, costs: float) -> Outcomes:
  """A best loss that is higher at one value of a field."""
  return best(where(field, value, 2.0 + costs, 2.0))


def mup(largest: float, others: float) -> Outcomes:
  """Best losses: muParam gains 0.1 nats, the embedding's rate these at the largest size or not."""

  def loss(c):
    by_rate = largest if size(c) == 16 else others
    return 1.9 if c[NAME] != 'standard' else 2.0 - by_rate * (c[EMBEDDING] == 'width')

  return best(loss)


RANK, KIND, ADAPTER_SCALE = 'adapter.rank', 'adapter.kind', 'adapter.scale'
PARENTS = sweep('init.parent', 'best', '10x')
# Full fine-tuning has the default rank; the last one is rsLoRA.
METHODS = [
    {KIND: 'none'},
    *({KIND: 'lora', RANK: rank, 'adapter.alpha': 16.0} for rank in (1, 4, 16)),
    {KIND: 'lora', RANK: 16, 'adapter.alpha': 16.0, ADAPTER_SCALE: 'sqrt_rank'},
]
TUNING = grid(WIDTHS, PARENTS, METHODS, FINE)


def tuned(best_rate, of_parent='best') -> Outcomes:
  """A bowl around a best rate of the method; other parents have the best rate 1e-2."""
  return Outcomes(
      lambda c: bowl(c, 0.3, best_rate(c) if c['init.parent'] == of_parent else 1e-2)
  )


def by_rank(rates: dict[int, float]) -> Outcomes:
  return tuned(lambda c: rates[c[RANK]] if c[KIND] == 'lora' else 1e-2)


def range_of(parent: str) -> Outcomes:
  """The loss of full fine-tuning rises more steeply from one parent."""
  return Outcomes(
      lambda c: bowl(c, 1.0 if c['init.parent'] == parent and c[KIND] == 'none' else 0.1)
  )


CASES: dict[str, tuple[list[hyper.Point], Outcomes, Outcomes]] = {
    'extension_a': lowers(CAP, 0.0, 50.0),
    'extension_b': lowers(POSITION, 'pre', 'peri'),
    'extension_c': lowers(GATE, 'none', 'sigmoid'),
    'extension_d': (
        grid(WIDTHS, sweep(NORM, 'layernorm', 'rmsnorm'), RATES),
        alike,
        steep(where(NORM, 'rmsnorm', 0.07, 0.1)),
    ),
    'extension_e': (
        grid(WIDTHS, sweep(QK_NORM, 'layernorm', 'rmsnorm', 'l2'), RATES),
        alike,
        steep(where(QK_NORM, 'l2', 0.07, 0.1)),
    ),
    'extension_f': (OPTIMIZERS, alike, steep(where(OPTIMIZER, 'muon', 0.07, 0.1))),
    'extension_g': (
        OPTIMIZERS,
        steep(lambda c: 0.2 if c[OPTIMIZER] in ('lion', 'adafactor') else 0.1),
        steep(where(OPTIMIZER, 'lion', 0.2, 0.1)),
    ),
    'extension_h': (
        SCHEDULES,
        steep(where(SHAPE, 'wsd', 0.2, 0.1)),
        steep(where(SHAPE, 'cosine', 0.1, 0.2)),
    ),
    'extension_i': (
        PER_LAYER,
        centred(lambda c: 1e-2),
        centred(lambda c: 1e-2 * (size(c) ** 0.5 if c[NAME] == 'ntk' else 1.0)),
    ),
    'extension_j': (PER_LAYER, steep(where(EXPONENTS, 'full_alignment', 0.2, 0.1)), alike),
    'extension_k': (
        PER_LAYER,
        best(where(NAME, 'standard', 2.0, 2.1)),
        best(lambda c: 2.1 if c[NAME] == 'standard' and size(c) == 16 else 2.0),
    ),
    'extension_l': (
        grid(WIDTHS, together(LENGTH, 'data.batch_size', (32, 32), (64, 16)), RATES),
        alike,
        steep(where(LENGTH, 32, 0.2, 0.1)),
    ),
    'extension_m': (
        HYPERBALL,
        steep(where(OPTIMIZER, 'hyperball', 0.1, 0.4)),
        steep(where(OPTIMIZER, 'hyperball', 0.3, 0.4)),
    ),
    'extension_n': (EMBEDDINGS, mup(0.08, 0.03), mup(0.03, 0.08)),
    'extension_o': (CLIPS, clipping(1.0), clipping(0.1)),
    'extension_p': (
        grid(WIDTHS, sweep(OUTPUT_CAP, 0.0, 30.0), sweep('objective.z_loss', 0.0), RATES),
        cost(OUTPUT_CAP, 30.0, 0.03),
        cost(OUTPUT_CAP, 30.0, 0.01),
    ),
    'extension_q': (
        grid(WIDTHS, sweep(CAP, 0.0, 50.0), sweep(QK_NORM, 'none'), RATES),
        cost(CAP, 50.0, 0.03),
        cost(CAP, 50.0, 0.01),
    ),
    'extension_r': (
        grid(WIDTHS, sweep(BETA2, 0.95, 0.9999), RATES),
        cost(BETA2, 0.9999, 0.1),
        cost(BETA2, 0.9999, 0.01),
    ),
    'extension_s': (
        grid(WIDTHS, sweep(NOTHING, 0.0, 1e9), RATES),
        cost(NOTHING, 1e9, 0.01),
        cost(NOTHING, 1e9, 0.03),
    ),
    'extension_t': (
        TUNING,
        tuned(lambda c: 1e-1 if c[KIND] == 'lora' else 1e-2),
        tuned(lambda c: 1e-2),
    ),
    'extension_u': (
        TUNING,
        by_rank({1: 1e-1, 4: 1e-1, 16: 10**-0.5}),
        by_rank({1: 1e-2, 4: 1e-1, 16: 1e-1}),
    ),
    'extension_v': (
        TUNING,
        best(where(ADAPTER_SCALE, 'sqrt_rank', 1.99, 2.0)),
        best(where(ADAPTER_SCALE, 'sqrt_rank', 1.997, 2.0)),
    ),
    'extension_w': (TUNING, range_of('10x'), range_of('best')),
    'extension_x': (
        TUNING,
        steep(lambda c: 0.2 if c[KIND] == 'none' and c['init.parent'] == 'best' else 0.1),
        steep(lambda c: 0.2 if c[KIND] == 'none' and c['init.parent'] == '10x' else 0.1),
    ),
}
