"""The options of a run, one record each, from which flags, help, checks and claims are derived.

To add an option, add its record here. In a source, a section or figure without the name of a paper
is from arXiv 2309.14322, "Small-scale proxies for large-scale Transformer training instabilities".
`register` adds the options of an extension to FIELDS. This file is long because it is one list.
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
    text,
)
from stability.config.sizes import for_scale
from stability.errors import BadInput

RECORDS = (
    integer('seed', 0, 'Seed of the initial parameters; several seeds show the spread of results.',
            traced=True),
    text('arm', None,
         'Name of an intervention; the points of a sweep carry it if several options make it up.',
         allowed='a name', optional=True, label=True, absent=None),

    choice('data.source', 'text', ('text', 'synthetic'),
           'Where tokens come from: text, the files of data.path; synthetic, a language whose'
           ' entropy rate is known exactly.',
           shared=True),
    path('data.path', None,
         'Text, or a folder of token files; unset: the source code of the Python standard library.',
         allowed='a file or folder', optional=True, shared=True),
    choice('data.tokenizer', dict(cpu='bytes', night='bytes', gpu='bytes', paper='bpe'),
           ('bytes', 'bpe'),
           'Tokenizer: bytes, one token per byte; bpe, byte-pair encoding learned from the training'
           ' text.',
           shared=True),
    integer('data.vocabulary_size', dict(cpu=4_096, night=4_096, gpu=4_096, paper=32_101),
            'Vocabulary size of the bpe tokenizer.', at_least=257, unit='tokens', shared=True,
            source='section 2.1'),
    choice('data.labels', 'none', ('none', 'kept', 'weights'),
           'Training text that is used of a token folder with labels, which launch.label read'
           ' makes: none, all of it; kept, documents that people keep; weights, documents in'
           ' proportion to the share of people who keep them.', shared=True, absent='none'),
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
    choice('model.head', 'linear', ('linear', 'tied', 'ngpt'),
           'Output head: linear, a matrix of its own; tied, the embedding; ngpt, linear with a'
           ' learned scale of the logit of each token.', paper='linear', absent='linear',
           source='section 2.1; tied: arXiv 1608.05859; ngpt: arXiv 2410.01131'),
    choice('model.block', 'sequential', ('sequential', 'parallel'),
           'Order of attention and MLP in a block; in parallel, both read the same norm.',
           paper='sequential', absent='sequential',
           source='section 2.1; parallel: arXiv 2204.02311'),
    choice('model.mlp', 'gelu', ('gelu', 'relu2', 'swiglu', 'moe', 'ngpt'),
           'MLP of a block; relu2 squares a ReLU; swiglu multiplies a linear layer by the SiLU of'
           ' another one; moe is a mixture of gelu experts; ngpt learns a scale of the input of a'
           ' GELU.', paper='gelu', absent='gelu',
           source='section 2.1; relu2: arXiv 2109.08668; swiglu: arXiv 2002.05202; moe: arXiv'
           ' 1701.06538; ngpt: arXiv 2410.01131'),
    integer('model.mlp_width', 0,
            'Hidden width of an MLP, or of each expert; 0 = the usual one, which is 4 width, or for'
            ' swiglu 8/3 width rounded to a multiple of 8. Parameterizations take any other as the'
            ' same at all widths.', paper=0, absent=0, unit='features',
            source='section 2.1; arXiv 2002.05202'),
    integer('model.experts', 8, 'Number of experts in each block under model.mlp=moe.', at_least=2,
            absent=8, source='arXiv 1701.06538'),
    integer('model.experts_per_token', 2,
            'Number of experts that the router chooses for each token under model.mlp=moe.',
            at_least=2, absent=2, source='arXiv 2401.04088'),
    switch('model.router_bias_rate', 0.0,
           'Change per step of the biases that balance the loads of experts without a loss; 0 ='
           ' off; 1e-3 is usual.', settable=True, paper=0.0, absent=0.0, source='arXiv 2408.15664'),
    choice('model.kernel', 'plain', ('plain', 'sigma_reparam', 'multipliers', 'wesar'),
           "Parametrisation of the kernels of a block's linear layers, but routers: sigma_reparam"
           ' divides each by its spectral norm and learns a gain; multipliers learns a factor of'
           ' each row and column; wesar starts all, with embedding and head, with std 0.0063 and'
           ' learns a gain of each; it needs a learning rate lower in proportion.',
           paper='plain', absent='plain',
           source='section 2.1; sigma_reparam: arXiv 2303.06296; multipliers: arXiv 2601.04890;'
           ' wesar: arXiv 2410.05052'),
    choice('model.norm', 'layernorm', ('layernorm', 'rmsnorm', 'dyt'),
           'Normalisation of the residual stream; dyt, an elementwise tanh with a learned factor,'
           ' normalises nothing.', paper='layernorm',
           source='section 2.1; rmsnorm: arXiv 1910.07467; dyt: arXiv 2503.10622'),
    choice('model.norm_position', 'pre',
           ('pre', 'pre_mlp', 'pre_scaled', 'peri', 'post', 'deepnorm', 'rezero', 'ngpt'),
           'Position of norms: pre, before attention and MLP; pre_mlp, before the MLP alone;'
           ' pre_scaled, as pre, divided by sqrt(i) in block i, counted from 1; peri, as pre and'
           ' after both; post, on the sum with the residual stream; deepnorm, the same with the'
           ' stream times (2 depth)^(1/4); rezero, none in the blocks, whose layers are multiplied'
           ' by a learned gain that starts at 0; ngpt, moves of unit vectors on their sphere, while'
           ' each update ends with scaling the vectors of all matrices to unit norm, for use with'
           ' qk_norm, mlp and head of the same name and without weight decay.',
           paper='pre', source='section 2.1; pre_mlp: arXiv 2410.16682; pre_scaled: arXiv'
           ' 2502.05795; peri: arXiv 2502.02732; post: arXiv 1706.03762; deepnorm: arXiv'
           ' 2203.00555; rezero: arXiv 2003.04887; ngpt: arXiv 2410.01131'),
    choice('model.embedding_skip', 'none', ('none', 'learned'),
           'What a block reads besides the residual stream x; learned: a x + b x_0 with the output'
           ' x_0 of the embedding and learned scalars that start at a = 1 and b = 0.',
           paper='none', absent='none', source='github.com/karpathy/nanochat'),
    choice('model.qk_norm', 'layernorm',
           ('layernorm', 'layernorm_model', 'rmsnorm', 'l2', 'ngpt', 'fixed', 'none'),
           'Normalisation of queries and keys, which keeps attention logits from growing:'
           ' layernorm_model spans all heads, the others act on each head; ngpt is rmsnorm with one'
           ' scale for queries and keys; fixed sets the mean square to model.logit_scale.',
           paper='layernorm', source='section 3.1.1, figure E.8; l2: arXiv 2010.04245; ngpt:'
           ' arXiv 2410.01131; fixed: section 3.3'),
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
    choice('model.dtype',
           dict(cpu='float32', night='float32', gpu='float32', paper='bfloat16'),
           ('float32', 'bfloat16'), 'Type of activations; parameters are float32.'),
    choice('model.matmul_precision', 'highest', ('highest', 'hardware'),
           'Precision of matrix products of float32 numbers on an accelerator: highest = float32,'
           ' hardware = its default, which is TF32 on NVIDIA GPUs and one bfloat16 pass on TPUs.'
           ' Products of bfloat16 numbers are the same in both.', absent='highest'),
    choice('model.linear_precision', 'dtype', ('dtype', 'fp8'),
           "Precision of products in the blocks' linear layers: dtype, that of activations; fp8,"
           ' simulated: factors are rounded to e4m3, gradients to e5m2, with one scale per tensor.',
           paper='dtype', absent='dtype', source='arXiv 2209.05433'),

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

    choice('init.head', 'fan_in', ('fan_in', 'small', 'zero'),
           'Initial head: fan_in, std 1 / sqrt(width); small, std init.head_std; zero, all 0. With'
           ' the last two, initial_loss is ln(vocabulary size), 0.5 nats lower, so that a diverged'
           ' run counts with a lower loss.', paper='fan_in', absent='fan_in',
           source='small: github.com/karpathy/nanochat; zero: arXiv 2203.03466'),
    number('init.head_std', 1e-3,
           'Standard deviation of the head under init.head=small, before the factor of the'
           ' parameterization.', above=0, absent=1e-3, source='github.com/karpathy/nanochat'),
    choice('init.depth_scale', 'none', ('none', 'depth', 'block'),
           "Factor of the initial kernels that write to the residual stream, attention's output and"
           " the MLP's down: depth, 1 / sqrt(2 depth) as in GPT-2; block, 1 / sqrt(2 i) in"
           ' block i, counted from 1, as in OLMo.', paper='none', absent='none',
           source='depth: GPT-2 (Radford et al. 2019); block: github.com/allenai/OLMo-core'),

    path('init.checkpoint', None,
         'Trained parameters that the run starts from: the folder of a run that has ended,'
         ' FOLDER@STEP for its checkpoint of a step, or a file of safetensors; if the run averages'
         ' parameters, the average; unset: drawn at random.',
         allowed='the folder of a run, FOLDER@STEP or a file', optional=True, at_start=True,
         absent=None),
    path('init.adapter', None,
         'Trained adapter that the run starts with, of the same adapter.* options and, with'
         ' adapter.init=pissa, of the same init.checkpoint: the folder of a run that has ended, or'
         ' a file of safetensors; unset: a new one.',
         allowed='the folder of a run, or a file', optional=True, at_start=True, absent=None),
    choice('init.optimizer', 'new', ('new', 'checkpoint'),
           'Initial state of the optimizer: new; or checkpoint, moments and counts of'
           ' init.checkpoint=FOLDER@STEP, while the schedule starts anew. Parameters are then those'
           ' that were trained, and an average of them starts anew, but that of schedule_free goes'
           ' on. alpha and beta3 of ademamix go on from where they were.', at_start=True,
           absent='new'),
    text('init.parent', None,
         'Short name of init.checkpoint, which stands for it in names, tables and figures of a'
         ' sweep that varies it.', allowed='a name', optional=True, label=True, absent=None),

    choice('adapter.kind', 'none',
           ('none', 'lora', 'dora', 'houlsby', 'ia3', 'prompt', 'norms'),
           'Method of fine-tuning: none trains all parameters, norms those of norms; all others'
           ' train what they add: lora and dora a product of low rank beside kernels, houlsby'
           ' bottlenecks behind attention and MLP, ia3 scales of keys, values and hidden features,'
           ' prompt vectors before the input. Weight decay pulls magnitudes of dora, scales of ia3'
           ' and those of norms towards 0 like all that is trained; optimizer.decay_target=start'
           ' pulls them towards the parent.', paper='none', absent='none',
           source='lora: arXiv 2106.09685; dora: arXiv 2402.09353; houlsby: arXiv 1902.00751;'
           ' ia3: arXiv 2205.05638; prompt: arXiv 2104.08691; norms: arXiv 2312.11420'),
    integer('adapter.rank', 8,
            'Rank r of lora and dora, width of the bottlenecks of houlsby, or number of vectors of'
            ' prompt.', at_least=1, absent=8, source='arXiv 2106.09685'),
    number('adapter.alpha', 8.0, 'Numerator of the factor of lora and dora.', above=0, absent=8.0,
           source='arXiv 2106.09685'),
    choice('adapter.scale', 'rank', ('rank', 'sqrt_rank'),
           'Factor of the product of lora and dora: rank, alpha / r; sqrt_rank, alpha / sqrt(r)'
           ' (rsLoRA).', absent='rank', source='arXiv 2106.09685; sqrt_rank: arXiv 2312.03732'),
    number('adapter.rate_ratio', 1.0,
           'Ratio of the learning rate of B, [r, out], to that of A, [in, r], which is'
           ' optimizer.learning_rate; 16 is usual (LoRA+).', above=0, absent=1.0,
           source='arXiv 2402.12354'),
    choice('adapter.init', 'kaiming', ('kaiming', 'pissa'),
           'Initial lora or dora: kaiming, A random and B zero; pissa, the largest singular values'
           ' of the kernel, which keeps the others.', absent='kaiming',
           source='arXiv 2106.09685; pissa: arXiv 2404.02948'),
    choice('adapter.matrices', 'all', ('all', 'attention', 'mlp', 'query_value'),
           "The blocks' matrices that lora and dora adapt.", absent='all',
           source='arXiv 2106.09685; all: thinkingmachines.ai/blog/lora'),

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
            'hyperball', 'ademamix', 'adopt', 'spam', 'muon_sphere', 'prodigy', 'dowg'),
           'Optimizer; each reads some of beta1, beta2 and eps; prodigy and dowg estimate a'
           ' learning rate, which learning_rate multiplies: 1 is usual; hyperball and muon_sphere'
           " keep the norm of the blocks' matrices, which do not decay.", paper='adamw',
           source='section 2.1; adam_atan2: arXiv 2407.05872; stable_adamw: arXiv 2304.13013;'
           ' lion: arXiv 2302.06675; muon: arXiv 2502.16982; adafactor: arXiv 1804.04235;'
           ' soap: arXiv 2409.11321; hyperball: arXiv 2606.16899; ademamix: arXiv 2409.03137;'
           ' adopt: arXiv 2411.02853; spam: arXiv 2501.06842; muon_sphere: arXiv 2601.08393;'
           ' prodigy: arXiv 2306.06101; dowg: arXiv 2305.16284'),
    number('optimizer.learning_rate', 1e-2, 'Peak learning rate.', above=0, settable=True,
           source='section 2.1'),
    choice('optimizer.learning_rate_scale', 'none', ('none', 'parameter_rms'),
           'Factor of the learning rate of each tensor; parameter_rms is max(RMS, 1e-3).',
           paper='none', source='figure E.14'),
    choice('optimizer.embedding_rate', 'none', ('none', 'width'),
           "Factor of the embedding's learning rate, in addition to that of the parameterization;"
           ' width: width / base_width.', paper='none', absent='none', source='arXiv 2605.21486'),
    number('optimizer.beta1', 0.9, 'Decay rate of the first moment.', at_least=0, below=1,
           settable=True, source='section 2.1'),
    number('optimizer.beta2', 0.95,
           'Decay rate of the second moment; below 0.999, gradient spikes fade sooner.',
           at_least=0, below=1, settable=True, source='section 2.1'),
    # Below |g| = 1e-19, v = g^2 underflows in float32, and m / (0 + eps) explodes.
    number('optimizer.eps', 1e-8,
           'Added to the root of the second moment; updates vanish where the gradient RMS is below'
           ' it.', at_least=1e-19, settable=True, paper=1e-8, source='section 3.4'),
    choice('optimizer.state_dtype', 'float32', ('float32', 'bfloat16'),
           "Type in which the moments of adamw are stored; updates compute in float32.",
           paper='float32', absent='float32', source='arXiv 2412.19437, section 3.3'),
    choice('optimizer.parameter_rounding', 'none', ('none', 'nearest', 'stochastic'),
           'Rounding of parameters to bfloat16 after each update and at the start: to the nearest'
           ' number, which loses small updates; or stochastic, after which they add up on average.'
           ' The arrays stay float32 and take its memory.', paper='none', absent='none',
           source='arXiv 2010.06192'),
    integer('optimizer.basis_every_steps', 10,
            'Interval between refinements of the eigenbasis of soap.', at_least=1, traced=True,
            absent=10, unit='steps', source='arXiv 2409.11321'),
    number('optimizer.beta3', dict(cpu=0.98, night=0.999, gpu=0.999, paper=0.9999),
           'Decay rate of the slow average of ademamix at the last update; its memory of'
           ' 1 / (1 - beta3) updates should be a small part of the run.', above=0, below=1,
           absent=0.98, source='arXiv 2409.03137'),
    number('optimizer.alpha', 8.0, 'Weight of the slow average of ademamix at the last update.',
           at_least=0, absent=8.0, source='arXiv 2409.03137'),
    integer('optimizer.restart_every_steps', dict(cpu=100, night=500, gpu=500, paper=500),
            'Interval between restarts of spam, whose clipping pauses for 20 steps after each.',
            at_least=1, traced=True, absent=100, unit='steps', source='arXiv 2501.06842'),
    integer('optimizer.restart_warmup_steps', dict(cpu=30, night=150, gpu=150, paper=150),
            'Length of the rise of updates after a restart of spam.', traced=True, absent=30,
            unit='steps', source='arXiv 2501.06842'),
    number('optimizer.clip_norm', 1.0,
           'Global norm to which the gradient is scaled down if its norm is larger; 0 = off.',
           at_least=0, settable=True, source='section 2.1'),
    switch('optimizer.adaptive_clip', 0.0,
           'Largest ratio of the gradient norm of a unit to the norm of its weights, to which the'
           ' gradient is scaled down (AGC); 0 = off; 0.01 is usual.', settable=True, paper=0.0,
           absent=0.0, source='arXiv 2102.06171'),
    switch('optimizer.zclip', 0.0,
           'Number of standard deviations above the mean of past gradient norms beyond which the'
           ' gradient is scaled down, from step 26 on (ZClip); 0 = off; 2.5 is usual.',
           settable=True, paper=0.0, absent=0.0, source='arXiv 2504.02507'),
    switch('optimizer.adagc', 0.0,
           "Largest ratio of a tensor's gradient norm to the average of its past ones, to which the"
           ' gradient is scaled down (AdaGC); 0 = off; 1.05 is usual, with clip_norm=0.',
           settable=True, paper=0.0, absent=0.0, source='arXiv 2502.11034'),
    choice('optimizer.update_mask', 'none', ('none', 'cautious'),
           'Mask of elements of the update; cautious keeps those with the sign of the gradient.',
           paper='none', absent='none', source='arXiv 2411.16085'),
    switch('optimizer.update_clip', 0.0,
           'Number of standard deviations above the mean of the last 128 norms of updates to which'
           ' a longer update is scaled down, from the 65th on; 0 = off; 3 is usual.', settable=True,
           paper=0.0, absent=0.0, source='github.com/marin-community/marin'),
    switch('optimizer.skip_step', 0.0,
           'Number of standard deviations above the mean of the last 128 losses or gradient norms'
           ' beyond which a step makes no update, from the 65th on; 0 = off; 6 is usual.',
           settable=True,
           paper=0.0, absent=0.0, source='arXiv 2501.00656'),
    switch('optimizer.qk_clip', 0.0,
           'Attention logit above which the kernels of queries and keys of a head are scaled down'
           ' after the update; 0 = off; Kimi K2 uses 100. A qk-norm undoes the effect on logits.',
           settable=True, paper=0.0, absent=0.0,
           source='arXiv 2507.20534'),
    number('optimizer.weight_decay', 1e-4,
           'Fraction of each parameter that a step at the peak learning rate removes; if coupled,'
           ' it is multiplied by the learning rate.', at_least=0, settable=True, paper=1e-4,
           source='section 3.2.2'),
    choice('optimizer.weight_decay_kind', 'independent',
           ('independent', 'coupled', 'cautious', 'adamc'),
           'Kind of weight decay: independent of the learning rate; coupled, which multiplies it by'
           ' the learning rate, and for which 0.1 is usual; cautious, independent and only of'
           " elements that the update moves towards 0; adamc, independent, times the schedule's"
           " factor once more for the blocks' matrices.", paper='independent',
           source='section 3.2.2; cautious: arXiv 2510.12402; adamc: arXiv 2506.02285'),
    choice('optimizer.decay_target', 'zero', ('zero', 'start'),
           'What weights decay towards: zero, or the parameters at the start (L2-SP).',
           paper='zero', absent='zero', source='arXiv 1802.01483'),
    switch('optimizer.layer_rate_decay', 0.0,
           'Ratio of the learning rate of a block to that of the next one; lowest in the embedding;'
           ' 0 = off; 0.9 to 0.95 is usual in fine-tuning.', below=1, paper=0.0, absent=0.0,
           source='arXiv 1801.06146'),

    choice('evaluation.parameters', 'trained', ('trained', 'ema', 'uniform', 'schedule_free'),
           'Parameters with which validation losses are measured: trained, as they are; ema, their'
           ' exponential moving average over updates; uniform, their mean over the last updates;'
           ' schedule_free, the average of schedule-free training, whose gradients are taken near'
           ' it: with optimizer.beta1=0, evaluation.decay=0.9 and a constant learning rate, it is'
           ' schedule-free AdamW.', paper='trained', absent='trained',
           source='ema: arXiv 2411.18704; uniform: arXiv 1803.05407; schedule_free: arXiv'
           ' 2405.15682'),
    number('evaluation.decay', 0.99,
           'Decay rate of the average under evaluation.parameters=ema; under schedule_free, weight'
           ' of the average in the parameters at which gradients are taken.', at_least=0, below=1,
           absent=0.99),
    integer('evaluation.average_steps', dict(cpu=100, night=1_000, gpu=500, paper=5_000),
            'Number of last updates over which evaluation.parameters=uniform averages.',
            at_least=1, traced=True, absent=100, unit='steps', source='arXiv 1803.05407'),

    # Steps leave the compiled step as a float32, which is exact up to 2^24.
    integer('schedule.steps', dict(cpu=500, night=10_000, gpu=5_000, paper=100_000),
            'Number of updates.', at_least=1, bits=24, traced=True, unit='steps',
            source='section 2.1'),
    integer('schedule.warmup_steps', dict(cpu=25, night=500, gpu=250, paper=5_000),
            'Length of the linear warm-up; 5 % of the steps in the paper.', traced=True,
            settable=True, unit='steps', source='section 3.2.1'),
    choice('schedule.shape', 'cosine', ('cosine', 'linear', 'wsd', 'rsqrt'),
           'Shape after the warm-up: cosine; linear; wsd, constant, then linear; rsqrt,'
           ' 1 / sqrt(step).', paper='cosine',
           source='section 2.1; linear: arXiv 2310.07831; wsd: arXiv 2404.06395'),
    integer('schedule.decay_steps', dict(cpu=100, night=2_000, gpu=1_000, paper=20_000),
            'Length of the linear decay at the end of wsd; 0 = constant to the end.', traced=True,
            unit='steps', source='arXiv 2404.06395'),
    number('schedule.min_learning_rate', 1e-5,
           'Learning rate at the last update; under rsqrt, a lower bound.', at_least=0,
           settable=True, source='section 2.1'),

    choice('parallel.layout', 'auto', ('auto', 'single', 'population', 'data_parallel', 'sharded'),
           "Distribution of runs over a worker's devices: single, one on the first, however many"
           ' there are; population, many on each; data_parallel or sharded, one on all.'),
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
    choice('probe.stable_rank', 'none', ('none', 'power_iteration'),
           'Estimate of the stable rank ||W||_F^2 / ||W||_2^2 of every matrix, with its learned'
           ' multipliers, in probes.', absent='none', source='arXiv 2602.01734'),
    choice('probe.qk_spectral_entropy', 'none', ('none', 'svd'),
           'Spectral entropy of W_q W_k^T of every head, in probes.', absent='none',
           source='arXiv 2606.28116'),
    integer('checkpoint.every_steps', dict(cpu=250, night=2_500, gpu=1_000, paper=1_000),
            'Interval between checkpoints; 0 = never.', unit='steps'),
    integer('checkpoint.keep', 2,
            'Number of checkpoints kept, more after a pause or an interruption; if the newest is'
            ' damaged, the one before it is used.', at_least=1, unit='checkpoints'),
    choice('checkpoint.parameters', 'float32', ('none', 'float32', 'bfloat16'),
           'Type in which a run that has ended keeps its parameters, in parameters.safetensors;'
           ' none: it keeps none.', absent='float32'),

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
    path('control.limits', None,
         'Limits of the alarm rules, as launch.alarms --calibrate writes them; unset: those of the'
         ' rules.', allowed='a file of launch.alarms --calibrate', optional=True, at_start=True,
         absent=None),
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
