"""Every intervention works in all layouts, in populations, and after a kill and a resume.

INTERVENTIONS has the options of each; its definition is tested beside its code. Sums in another
order round differently: after four steps, parameters of one run over several devices agree with
those of one device to TOLERANCE of each tensor's norm.
"""

import jax
import numpy as np
import pytest

from stability import variants
from stability.config import FIELDS
from stability.devices.multi_device import DataParallelLayout, ShardedLayout
from stability.devices.single_device import SingleDeviceLayout
from stability.devices.vmapped import VmappedLayout
from stability.step import train_step
from stability.trainer.state_arrays import from_arrays, to_arrays

MOE = {'model.mlp': 'moe', 'model.experts': 4, 'model.mlp_width': 16}
INTERVENTIONS = {
    'baseline': {},
    'sigma_reparam': {'model.kernel': 'sigma_reparam'},
    'qk_clip': {'optimizer.qk_clip': 0.01, 'model.qk_norm': 'none'},
    'soap': {'optimizer.name': 'soap', 'optimizer.basis_every_steps': 2},
    'hyperball': {'optimizer.name': 'hyperball'},
    'ademamix': {'optimizer.name': 'ademamix'},
    'adopt': {'optimizer.name': 'adopt'},
    'spam': {
        'optimizer.name': 'spam',
        'optimizer.restart_every_steps': 3,
        'optimizer.restart_warmup_steps': 2,
    },
    'muon_sphere': {'optimizer.name': 'muon_sphere'},
    'prodigy': {'optimizer.name': 'prodigy'},
    'dowg': {'optimizer.name': 'dowg'},
    'cautious_decay': {'optimizer.weight_decay_kind': 'cautious', 'optimizer.weight_decay': 0.1},
    'adamc': {'optimizer.weight_decay_kind': 'adamc', 'optimizer.weight_decay': 0.1},
    'linear': {'schedule.shape': 'linear'},
    'adaptive_clip': {'optimizer.adaptive_clip': 0.01},
    'zclip': {'optimizer.zclip': 2.5},
    'adagc': {'optimizer.adagc': 1.05, 'optimizer.clip_norm': 0.0},
    'cautious': {'optimizer.update_mask': 'cautious'},
    'update_clip': {'optimizer.update_clip': 3.0},
    'skip_step': {'optimizer.skip_step': 6.0},
    'small_head': {'init.head': 'small'},
    'zero_head': {'init.head': 'zero'},
    'depth_scale': {'init.depth_scale': 'depth'},
    'block_scale': {'init.depth_scale': 'block'},
    'embedding_rate': {'optimizer.embedding_rate': 'width'},
    'layernorm_scaling': {'model.norm_position': 'pre_scaled', 'model.depth': 2},
    'embedding_skip': {'model.embedding_skip': 'learned', 'model.depth': 2},
    'rezero': {'model.norm_position': 'rezero'},
    'post_norm': {'model.norm_position': 'post'},
    'deepnorm': {'model.norm_position': 'deepnorm'},
    'dyt': {'model.norm': 'dyt'},
    'multipliers': {'model.kernel': 'multipliers'},
    'wesar': {'model.kernel': 'wesar', 'init.depth_scale': 'depth'},
    'fp8': {'model.linear_precision': 'fp8'},
    'bfloat16_moments': {'optimizer.state_dtype': 'bfloat16'},
    'bfloat16_parameters': {'optimizer.parameter_rounding': 'nearest'},
    'stochastic_rounding': {
        'optimizer.parameter_rounding': 'stochastic',
        'optimizer.state_dtype': 'bfloat16',
    },
    'ngpt': {f'model.{part}': 'ngpt' for part in ('norm_position', 'qk_norm', 'mlp', 'head')},
    'ema': {'evaluation.parameters': 'ema'},
    'uniform': {'evaluation.parameters': 'uniform', 'evaluation.average_steps': 18},
    'schedule_free': {
        'evaluation.parameters': 'schedule_free',
        'evaluation.decay': 0.9,
        'optimizer.beta1': 0.0,
        'schedule.shape': 'wsd',
        'schedule.decay_steps': 0,
    },
    'query_group': {'model.query_group': 2, 'model.qk_norm': 'none', 'optimizer.qk_clip': 0.01},
    'softmax1': {'model.attention': 'softmax1'},
    'learned_sink': {'model.attention': 'learned_sink'},
    'v_norm': {'model.v_norm': 'rmsnorm'},
    'qk_gain': {'model.qk_gain': 1.2},
    'value_residual': {'model.value_residual': 'learned', 'model.depth': 2},
    'parallel': {'model.block': 'parallel', 'model.norm_position': 'peri'},
    'tied': {'model.head': 'tied'},
    'scaled_embedding': {'model.embedding': 'scaled'},
    'embedding_norm': {'model.embedding': 'rmsnorm'},
    'moe': MOE | {'objective.balance_loss': 0.1, 'objective.router_z_loss': 0.01},
    'moe_router_bias': MOE | {'model.router_bias_rate': 0.01},
    'swiglu': {'model.mlp': 'swiglu'},
    'relu2': {'model.mlp': 'relu2', 'model.mlp_width': 24},
    'lora': {'adapter.kind': 'lora', 'adapter.rank': 2, 'adapter.rate_ratio': 4.0},
    'dora': {
        'adapter.kind': 'dora',
        'adapter.rank': 2,
        'adapter.init': 'pissa',
        'adapter.matrices': 'mlp',
    },
    'houlsby': {'adapter.kind': 'houlsby', 'adapter.rank': 4},
    'ia3': {'adapter.kind': 'ia3'},
    'prompt': {'adapter.kind': 'prompt', 'adapter.rank': 3},
    'norms': {'adapter.kind': 'norms'},
    'l2_sp': {'optimizer.decay_target': 'start', 'optimizer.weight_decay': 0.1},
    'layer_rates': {'optimizer.layer_rate_decay': 0.7, 'model.depth': 2},
    # Mixtures of the others, each with an optimizer, a parameterization and a qk-norm.
    'lion': {
        'optimizer.name': 'lion',
        'parameterization.name': 'muparam_simple',
        'model.qk_norm': 'rmsnorm',
        'model.norm': 'rmsnorm',
        'schedule.shape': 'rsqrt',
    },
    'adam_atan2': {
        'optimizer.name': 'adam_atan2',
        'parameterization.name': 'muparam_intermediate',
        'model.qk_norm': 'layernorm_model',
        'model.v_norm': 'layernorm',
        'model.norm_position': 'pre_mlp',
    },
    'stable_adamw': {
        'optimizer.name': 'stable_adamw',
        'parameterization.name': 'muparam_full',
        'model.attention_gate': 'sigmoid',
        'model.output_centering': 'mean',
        'objective.mu_loss': 0.3,
    },
    'muon': {
        'optimizer.name': 'muon',
        'parameterization.name': 'ntk',
        'parameterization.exponents': 'full_alignment',
        'model.qk_norm': 'l2',
        'model.attention': 'squared_relu',
    },
    'adafactor': {
        'optimizer.name': 'adafactor',
        'parameterization.name': 'mup',
        'parameterization.exponents': 'full_alignment',
        'model.qk_norm': 'fixed',
        'model.attention_scale': 'inverse',
    },
    'parameter_rms': {
        'optimizer.learning_rate_scale': 'parameter_rms',
        'optimizer.weight_decay_kind': 'coupled',
        'optimizer.weight_decay': 0.1,
        'parameterization.name': 'mean_field',
        'parameterization.exponents': 'no_alignment',
        'model.attention_soft_cap': 2.0,
        'model.output_soft_cap': 3.0,
    },
    'lora_attention': {
        'adapter.kind': 'lora',
        'adapter.rank': 2,
        'adapter.matrices': 'attention',
        'adapter.scale': 'sqrt_rank',
    },
    'lora_query_value': {
        'adapter.kind': 'lora',
        'adapter.rank': 2,
        'adapter.matrices': 'query_value',
    },
}
SMALL = {
    'data.batch_size': 16,
    'data.sequence_length': 8,
    'model.width': 16,
    'model.head_dim': 8,
    'model.depth': 1,
    'optimizer.learning_rate': 1e-3,
    'parameterization.base_width': 4,
    'optimizer.eps': 1e-2,  # updates follow gradients smoothly, so that rounding stays small
    'probe.every_steps': 0,
}
# A gradient of low rank leaves most of soap's basis to rounding: seen 1.2e-3. The scales of fp8 are
# those of the rows on a device: seen 7e-4.
TOLERANCE = {'': 1e-5, 'soap': 5e-3, 'fp8': 3e-3}


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  return {
      'text': (64 * rng.random(2_001) ** 2).astype(np.uint8),
      'validation': (64 * rng.random((2, 16, 9)) ** 2).astype(np.uint8),
  }


@pytest.fixture
def options(name):
  return SMALL | INTERVENTIONS[name]


def four_steps(layout, run):
  """The run's state and validation loss after four steps."""
  state = layout.insert(layout.empty(), 0, layout.init(run.hparams))
  state, _ = layout.step(state, 'quiet', 4)
  return layout.extract(state)[0], layout.evaluate(state)[0]


def same(left, right):
  pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
  return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


# Those with a state or sums of their own, each in another way.
ACROSS_DEVICES = {
    *('baseline', 'sigma_reparam', 'qk_clip', 'soap', 'hyperball', 'muon_sphere', 'prodigy'),
    *('zclip', 'adagc', 'skip_step', 'schedule_free', 'stochastic_rounding', 'fp8'),
    *('moe_router_bias', 'query_group', 'tied', 'lora', 'dora', 'ia3', 'prompt'),
    *('muon', 'adafactor'),
}


def test_every_entry_of_the_tables_is_covered():
  """Each variant and each term has a case, but defaults and probes, which quiet steps leave out."""
  used = {item for options in (SMALL, *INTERVENTIONS.values()) for item in options.items()}
  on = {option for option, value in used if value not in (0, 'none')}
  missing = []
  for name, table in variants.TABLES.items():
    if isinstance(table, variants.Choices):
      others = {(name, value) for value in table if value != FIELDS[name].default_at('cpu')}
      missing += sorted(others - used)
    elif name != 'probes':
      for term in table:
        option, _, value = (term.when or '').partition('=')
        if option and ((option, value) not in used if value else option not in on):
          missing.append((name, term.name))
  assert not missing


# Each compiles three layouts.
@pytest.mark.parametrize(
    'name',
    [
        pytest.param(name, marks=pytest.mark.slow if name in ACROSS_DEVICES else pytest.mark.soak)
        for name in INTERVENTIONS
    ],
)
def test_one_run_over_devices(name, options, tiny, data):
  """Data parallel and sharded, in two microbatches, against one device and whole batches."""
  run = tiny(options)
  programs = train_step.programs(run.static, 64)
  state, loss = four_steps(SingleDeviceLayout(programs, data, run.hparams), run)
  assert np.isfinite(loss)
  tolerance = TOLERANCE.get(name, TOLERANCE[''])
  split = train_step.programs(run.static, 64, microbatches=2)
  for layout in (DataParallelLayout, ShardedLayout):
    found, found_loss = four_steps(layout(split, data, run.hparams, jax.devices()[:2]), run)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(state['params']),
        jax.tree.leaves(found['params']),
        strict=True,
    ):
      difference = np.linalg.norm(np.float64(a) - np.float64(b))
      assert difference <= tolerance * max(np.linalg.norm(np.float64(a)), 1e-3), path
    assert found_loss == pytest.approx(loss, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('name', INTERVENTIONS)
def test_population_and_resume(options, tiny, data):
  """A run does not depend on neighbours, slot, or whether its state went through a checkpoint."""
  runs = [tiny(options | {'optimizer.learning_rate': rate}) for rate in (1e-3, 0.1)]
  programs = train_step.programs(runs[0].static, 64)
  layout = VmappedLayout(programs, data, runs[0].hparams, jax.devices()[:1], members=2)
  state = layout.empty()
  for slot, run in enumerate(runs):
    state = layout.insert(state, slot, layout.init(run.hparams))
  state, _ = layout.step(state, 'quiet', 4)
  together = layout.extract(state)
  assert not same(together[0]['params'], together[1]['params'])
  for slot, run in enumerate(runs):
    other = 1 - slot
    alone = layout.insert(layout.empty(), other, layout.init(run.hparams))
    alone, _ = layout.step(alone, 'quiet', 2)
    halfway = layout.extract(alone)[other]
    saved = to_arrays(halfway)  # what a checkpoint holds
    restored = from_arrays(layout.init(run.hparams), saved)
    resumed, _ = layout.step(layout.insert(layout.empty(), other, restored), 'quiet', 2)
    assert same(layout.extract(resumed)[other], together[slot])
