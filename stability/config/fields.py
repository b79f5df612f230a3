"""The options of a run, one record each, from which flags, help, checks and claims are derived.

To add an option, add its record here. In a source, a section or figure without the name of a paper
is from arXiv 2309.14322, "Small-scale proxies for large-scale Transformer training instabilities".
`register` adds the options of an extension to FIELDS.
"""

import dataclasses
import re
from typing import Any

from stability.config.field import (
    SCALES,
    UNSET,
    Field,
    choice,
    integer,
    number,
    path,
    safe_repr,
    switch,
)
from stability.config.sizes import for_scale
from stability.errors import BadInput

RECORDS = (
    integer('seed', 0, 'Seed of the initial parameters; several seeds show the spread of results.',
            traced=True),

    choice('data.source', 'text', ('text', 'synthetic'),
           'Where tokens come from: text, the files of data.path; synthetic, a language whose'
           ' entropy rate is known exactly.',
           shared=True),
    path('data.path', None,
         'Text, or a folder of token files; unset: the source code of the Python standard library.',
         allowed='a file or folder', optional=True, shared=True),
    choice('data.tokenizer', 'bytes', ('bytes', 'bpe'),
           'Tokenizer: bytes, one token per byte; bpe, byte-pair encoding learned from the training'
           ' text.',
           shared=True),
    integer('data.vocabulary_size', 4_096, 'Vocabulary size of the bpe tokenizer.', at_least=257,
            unit='tokens', shared=True),
    integer('data.batch_size', dict(cpu=16, night=16, gpu=64, paper=256), 'Batch size.',
            at_least=1, unit='sequences', source='section 2.1'),
    integer('data.sequence_length', dict(cpu=64, night=64, gpu=256, paper=512),
            'Length of each sequence.', at_least=1, unit='tokens', source='section 2.1'),
    integer('data.seed', 0,
            'Seed of the order of batches; runs with equal data.seed see the same batches.',
            traced=True),
    integer('data.validation_batches', 16,
            'Number of fixed batches on which initial_loss and final_loss are measured.',
            at_least=1, unit='batches'),

    integer('model.width', dict(cpu=64, night=64, gpu=256, paper=256),
            'Width of the residual stream.', at_least=1, unit='features', source='section 2.1'),
    integer('model.depth', 3,
            'Number of Transformer blocks; 0 leaves only embedding and head, a bigram model.',
            unit='blocks', source='section 2.1'),
    integer('model.head_dim', dict(cpu=16, night=16, gpu=64, paper=64),
            'Dimension of an attention head; a model has width / head_dim heads.',
            at_least=1, unit='features', source='section 3.2.3'),
    integer('model.query_group', 1,
            'Number of query heads that share one head of keys and values (grouped-query'
            ' attention); 1 = multi-head attention; as many as there are heads = multi-query'
            ' attention.', at_least=1, paper=1, absent=1, unit='heads', source='arXiv 2305.13245'),
    choice('model.embedding', 'learned', ('learned', 'scaled', 'rmsnorm'),
           'Embedding of tokens: learned vectors; scaled, times sqrt(width); rmsnorm, divided by'
           ' their RMS.', paper='learned', absent='learned',
           source='section 2.1; scaled: arXiv 2312.16903; rmsnorm: github.com/karpathy/nanochat'),
    choice('model.head', 'linear', ('linear', 'tied'),
           'Output head: linear, a matrix of its own; tied, the embedding.', paper='linear',
           absent='linear', source='section 2.1; tied: arXiv 1608.05859'),
    choice('model.block', 'sequential', ('sequential', 'parallel'),
           'Order of attention and MLP in a block; in parallel, both read the same norm.',
           paper='sequential', absent='sequential',
           source='section 2.1; parallel: arXiv 2204.02311'),
    choice('model.mlp', 'gelu', ('gelu', 'relu2', 'swiglu', 'moe'),
           'MLP of a block; relu2 squares a ReLU; swiglu multiplies a linear layer by the SiLU of'
           ' another one; moe is a mixture of gelu experts.', paper='gelu', absent='gelu',
           source='section 2.1; relu2: arXiv 2109.08668; swiglu: arXiv 2002.05202; moe: arXiv'
           ' 1701.06538'),
    integer('model.mlp_width', 0,
            'Hidden width of an MLP, or of each expert; 0 = the usual one, which is 4 width, or for'
            ' swiglu 8/3 width rounded to a multiple of 8.', paper=0, absent=0, unit='features',
            source='section 2.1; arXiv 2002.05202'),
    integer('model.experts', 8, 'Number of experts in each block under model.mlp=moe.', at_least=2,
            absent=8, source='arXiv 1701.06538'),
    integer('model.experts_per_token', 2,
            'Number of experts that the router chooses for each token under model.mlp=moe.',
            at_least=2, absent=2, source='arXiv 2401.04088'),
    switch('model.router_bias_rate', 0.0,
           'Change per step of the biases that balance the loads of experts without a loss; 0 ='
           ' off; 1e-3 is usual.', settable=True, paper=0.0, absent=0.0, source='arXiv 2408.15664'),
    choice('model.kernel', 'plain', ('plain', 'sigma_reparam'),
           "Parametrisation of the kernels of a block's linear layers; sigma_reparam divides each"
           ' by its spectral norm and learns a gain.', paper='plain', absent='plain',
           source='section 2.1; sigma_reparam: arXiv 2303.06296'),
    choice('model.norm', 'layernorm', ('layernorm', 'rmsnorm'),
           'Normalisation of the residual stream.', paper='layernorm',
           source='section 2.1; rmsnorm: arXiv 1910.07467'),
    choice('model.norm_position', 'pre', ('pre', 'peri'),
           'Position of norms: pre, before attention and MLP; peri, after them as well.',
           paper='pre', source='section 2.1; peri: arXiv 2502.02732'),
    choice('model.qk_norm', 'layernorm',
           ('layernorm', 'layernorm_model', 'rmsnorm', 'l2', 'fixed', 'none'),
           'Normalisation of queries and keys, which keeps attention logits from growing:'
           ' layernorm_model spans all heads, the others act on each head; fixed sets the mean'
           ' square to model.logit_scale.', paper='layernorm',
           source='section 3.1.1, figure E.8; l2: arXiv 2010.04245; fixed: section 3.3'),
    number('model.logit_scale', 1.0,
           'Mean square kappa of queries and keys under model.qk_norm=fixed.', above=0,
           source='section 3.3, figure 10'),
    switch('model.qk_gain', 0.0,
           'Fixed factor of queries and of keys after model.qk_norm, which multiplies attention'
           ' logits by its square; 0 = off; nanochat uses 1.2.', settable=True, paper=0.0,
           absent=0.0, source='github.com/karpathy/nanochat'),
    choice('model.v_norm', 'none', ('none', 'layernorm', 'rmsnorm'),
           'Normalisation of the values of each head.', paper='none', absent='none',
           source='arXiv 2410.16682'),
    choice('model.value_residual', 'none', ('none', 'learned'),
           'Residual of values: learned adds the values of the first block to those of each block,'
           ' with two learned factors that start at 1/2.', paper='none', absent='none',
           source='arXiv 2410.17897'),
    choice('model.attention', 'softmax', ('softmax', 'softmax1', 'learned_sink', 'squared_relu'),
           'Function from logits to attention weights: softmax1 adds 1 to the denominator of the'
           ' softmax, learned_sink the exponential of a learned number of each head; squared_relu'
           ' does not normalise weights.', paper='softmax',
           source='section 2.1; softmax1: evanmiller.org/attention-is-off-by-one.html;'
           ' learned_sink: arXiv 2508.10925; squared_relu: figure E.11'),
    choice('model.attention_scale', 'inverse_sqrt', ('inverse_sqrt', 'inverse'),
           'Factor of attention logits: 1 / sqrt(head_dim), or 1 / head_dim as in muP.',
           paper='inverse_sqrt', source='section 3.1.1; inverse: figure E.6'),
    choice('model.attention_gate', 'none', ('none', 'sigmoid'),
           'Gate on the output of the heads; sigmoid multiplies each element by a learned function'
           ' of the input of attention.',
           paper='none', source='arXiv 2505.06708'),
    switch('model.attention_soft_cap', 0.0,
           'Bound of attention logits, cap * tanh(logit / cap); 0 = off; Gemma 2 uses 50.',
           settable=True, paper=0.0, source='arXiv 2408.00118'),
    switch('model.output_soft_cap', 0.0,
           'Bound of output logits, cap * tanh(logit / cap); 0 = off; Gemma 2 uses 30.',
           settable=True, paper=0.0, source='arXiv 2408.00118'),
    choice('model.output_centering', 'none', ('none', 'mean'),
           'Centering of the head after each update; mean subtracts the mean output embedding'
           ' (mu-centering).', paper='none', source='arXiv 2601.02031'),
    choice('model.dtype', 'float32', ('float32', 'bfloat16'),
           'Type of activations; parameters and optimizer state are float32.'),
    choice('model.matmul_precision', 'highest', ('highest', 'hardware'),
           'Precision of matrix products of float32 numbers on an accelerator: highest = float32,'
           ' hardware = its default, which is TF32 on NVIDIA GPUs and one bfloat16 pass on TPUs.'
           ' Products of bfloat16 numbers are the same in both.', absent='highest'),

    number('objective.z_loss', 1e-4,
           'Coefficient of z-loss, the mean of log^2 Z, which keeps output logits from drifting;'
           ' 0 = off.', at_least=0, settable=True, paper=1e-4, source='section 3.1.2'),
    switch('objective.mu_loss', 0.0,
           'Coefficient of mu-loss, the squared norm of the mean output embedding; 0 = off.',
           settable=True, paper=0.0, source='arXiv 2601.02031'),
    switch('objective.balance_loss', 0.0,
           'Coefficient of the balance loss of mixtures of experts, E sum_e f_e P_e in each'
           ' sequence, averaged over sequences and blocks; 0 = off; 0.01 is usual.', settable=True,
           paper=0.0, absent=0.0, source='arXiv 2101.03961, arXiv 2412.19437'),
    switch('objective.router_z_loss', 0.0,
           'Coefficient of z-loss on the logits of routers, averaged over blocks; 0 = off; 1e-3 is'
           ' usual.', settable=True, paper=0.0, absent=0.0, source='arXiv 2202.08906'),

    choice('parameterization.name', 'standard',
           ('standard', 'muparam_simple', 'muparam_intermediate', 'muparam_full', 'ntk', 'mup',
            'mean_field'),
           'How initial weights, multipliers and learning rates depend on the width; muP as'
           ' usually meant is mup with exponents=full_alignment.', paper='standard',
           source='section 3.2.4; ntk, mup, mean_field: arXiv 2407.05872'),
    integer('parameterization.base_width', dict(cpu=16, night=16, gpu=256, paper=256),
            'Width at which the parameterizations agree.', at_least=1, traced=True,
            unit='features', source='section 3.2.4'),
    choice('parameterization.exponents', 'none', ('none', 'full_alignment', 'no_alignment'),
           'Powers of width / base_width that scale the learning rate of each layer; none: one rate'
           ' for all layers, except under muparam.', paper='none', source='arXiv 2407.05872'),

    choice('optimizer.name', 'adamw',
           ('adamw', 'adam_atan2', 'stable_adamw', 'lion', 'muon', 'adafactor', 'soap',
            'hyperball'),
           'Optimizer; each reads some of beta1, beta2 and eps.', paper='adamw',
           source='section 2.1; adam_atan2: arXiv 2407.05872; stable_adamw: arXiv 2304.13013;'
           ' lion: arXiv 2302.06675; muon: arXiv 2502.16982; adafactor: arXiv 1804.04235;'
           ' soap: arXiv 2409.11321; hyperball: arXiv 2606.16899'),
    number('optimizer.learning_rate', 1e-2, 'Peak learning rate.', above=0, settable=True,
           source='section 2.1'),
    choice('optimizer.learning_rate_scale', 'none', ('none', 'parameter_rms'),
           'Factor of the learning rate of each tensor; parameter_rms is max(RMS, 1e-3).',
           paper='none', source='figure E.14'),
    number('optimizer.beta1', 0.9, 'Decay rate of the first moment.', at_least=0, below=1,
           settable=True, source='section 2.1'),
    number('optimizer.beta2', 0.95,
           'Decay rate of the second moment; below 0.999, gradient spikes fade sooner.',
           at_least=0, below=1, settable=True, source='section 2.1'),
    # Below |g| = 1e-19, v = g^2 underflows in float32, and m / (0 + eps) explodes.
    number('optimizer.eps', 1e-8,
           'Added to the root of the second moment; updates vanish where the gradient RMS is below'
           ' it.', at_least=1e-19, settable=True, paper=1e-8, source='section 3.4'),
    integer('optimizer.basis_every_steps', 10,
            'Interval between refinements of the eigenbasis of soap.', at_least=1, traced=True,
            absent=10, unit='steps', source='arXiv 2409.11321'),
    number('optimizer.clip_norm', 1.0,
           'Global norm to which the gradient is scaled down if its norm is larger; 0 = off.',
           at_least=0, settable=True, source='section 2.1'),
    switch('optimizer.qk_clip', 0.0,
           'Attention logit above which the kernels of queries and keys of a head are scaled down'
           ' after the update; 0 = off; Kimi K2 uses 100.', settable=True, paper=0.0, absent=0.0,
           source='arXiv 2507.20534'),
    number('optimizer.weight_decay', 1e-4,
           'Fraction of each parameter that a step at the peak learning rate removes; if coupled,'
           ' it is multiplied by the learning rate.', at_least=0, settable=True, paper=1e-4,
           source='section 3.2.2'),
    choice('optimizer.weight_decay_kind', 'independent', ('independent', 'coupled'),
           'Kind of weight decay: independent of the learning rate; or coupled, which multiplies it'
           ' by the learning rate, and for which 0.1 is usual.', paper='independent',
           source='section 3.2.2'),

    choice('evaluation.parameters', 'trained', ('trained', 'ema'),
           'Parameters with which validation losses are measured: trained, as they are; ema, their'
           ' exponential moving average over updates.', paper='trained', absent='trained',
           source='ema: arXiv 2411.18704'),
    number('evaluation.decay', 0.99, 'Decay rate of the average under evaluation.parameters=ema.',
           at_least=0, below=1, absent=0.99),

    # Steps leave the compiled step as a float32, which is exact up to 2^24.
    integer('schedule.steps', dict(cpu=500, night=10_000, gpu=5_000, paper=100_000),
            'Number of updates.', at_least=1, bits=24, traced=True, unit='steps',
            source='section 2.1'),
    integer('schedule.warmup_steps', dict(cpu=25, night=500, gpu=250, paper=5_000),
            'Length of the linear warm-up; 5 % of the steps in the paper.', traced=True,
            settable=True, unit='steps', source='section 3.2.1'),
    choice('schedule.shape', 'cosine', ('cosine', 'wsd', 'rsqrt'),
           'Shape after the warm-up: cosine; wsd, constant, then linear; rsqrt, 1 / sqrt(step).',
           paper='cosine', source='section 2.1; wsd: arXiv 2404.06395'),
    integer('schedule.decay_steps', dict(cpu=100, night=2_000, gpu=1_000, paper=20_000),
            'Length of the linear decay at the end of wsd; 0 = constant to the end.', traced=True,
            unit='steps', source='arXiv 2404.06395'),
    number('schedule.min_learning_rate', 1e-5,
           'Learning rate at the last update; under rsqrt, a lower bound.', at_least=0,
           settable=True, source='section 2.1'),

    choice('parallel.layout', 'auto', ('auto', 'single', 'population', 'data_parallel', 'sharded'),
           'Distribution of runs over devices: single, one on each; population, many on each;'
           ' data_parallel or sharded, one on all.'),
    integer('parallel.members', None,
            'Runs per device in a population; unset: as many as fit.', at_least=1, optional=True,
            unit='runs'),
    integer('parallel.microbatches', None,
            'Number of parts that a batch is split into; unset: as few as fit.', at_least=1,
            optional=True),
    choice('parallel.remat', 'auto', ('auto', 'none', 'block'),
           'What the backward pass recomputes to save memory: none, or the activations of each'
           ' block; auto: block where memory needs it.'),

    integer('log.every_steps', dict(cpu=10, night=20, gpu=10, paper=10),
            'Interval between lines of metrics.jsonl.', at_least=1, unit='steps'),
    integer('probe.every_steps', dict(cpu=20, night=40, gpu=20, paper=20),
            'Interval between probes, which measure the inside of a run; 0 = never.',
            unit='steps'),
    integer('probe.sharpness_every_steps', 0,
            'Interval between measurements of sharpness, the curvature of the loss; each takes as'
            ' long as 30 steps; 0 = never.', unit='steps',
            source='arXiv 2601.16979, arXiv 2207.14484'),
    integer('checkpoint.every_steps', dict(cpu=250, night=2_500, gpu=1_000, paper=1_000),
            'Interval between checkpoints; 0 = never.', unit='steps'),
    integer('checkpoint.keep', 2,
            'Number of checkpoints kept; if the newest is damaged, the one before it is used.',
            at_least=1, unit='checkpoints'),

    choice('control.on_alarm', 'none', ('none', 'ask', 'policy'),
           'Reaction to an alarm: none records it; ask pauses the run until a person decides;'
           ' policy rewinds the run and continues at a lower learning rate.', paper='none'),
    integer('control.timeout_seconds', 3_600,
            'How long a paused run waits for a person; 0 = forever.', unit='seconds'),
    choice('control.default_action', 'continue', ('continue', 'stop', 'policy'),
           'What a paused run does if nobody answers in time.'),
    integer('control.tries', 5,
            'Number of times that the policy rewinds a run before it lets the run go on unchanged.',
            unit='rewinds'),
)  # fmt: skip

FIELDS: dict[str, Field] = {record.name: record for record in RECORDS}

_NAME = re.compile(r'[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+')


def register(record: Field) -> None:
  """Adds the option of an extension; raises BadInput if its record is not valid.

  The paper does not have the option. Unless the record states `paper`, claims fix the option at
  `absent`, the value that leaves runs as they were without it.
  """
  name = record.name
  if not _NAME.fullmatch(name):
    raise BadInput(f'option {safe_repr(name)}: must be named section.name, in lower case')
  for other in FIELDS:
    if f'{other}.'.startswith(f'{name}.') or name.startswith(f'{other}.'):
      raise BadInput(f'config.{name}: cannot be added, config.{other} is an option already')
  if (record.switch or record.settable) and not record.traced:
    raise BadInput(f'config.{name}: must be traced to be a switch or settable')
  if record.traced and record.type is str:
    raise BadInput(f'config.{name}: must be a number to be traced')
  paper = record.absent if record.paper is UNSET else record.paper
  for value in (*map(record.default_at, SCALES), record.absent, paper):
    record.convert(value)
  FIELDS[name] = dataclasses.replace(record, paper=paper)


def unregister_all() -> None:
  """Removes the options that were added with `register`."""
  own = {record.name for record in RECORDS}
  for name in [name for name in FIELDS if name not in own]:
    del FIELDS[name]


def defaults(scale: str) -> dict[str, Any]:
  """The default of every option at a scale, by dotted field."""
  for_scale(scale, dict.fromkeys(SCALES))
  return {name: record.default_at(scale) for name, record in FIELDS.items()}


def settable() -> tuple[str, ...]:
  """The options that an action may change while a run trains.

  They are arguments of the compiled step that affect only the further course of training, unlike
  the number of steps, the seeds and the options that shape the initial parameters.
  """
  return tuple(name for name, record in FIELDS.items() if record.settable)


def paper_values() -> dict[str, Any]:
  """The paper's value of each intervention (section 2.1), by dotted field.

  Claims that do not name a swept intervention fix it at this value.
  """
  return {name: record.paper for name, record in FIELDS.items() if record.paper is not UNSET}
