"""Every option of a run: its default, its unit, and why it is there.

The model, objective and optimizer are those of "Small-scale proxies for large-scale Transformer
training instabilities" (arXiv 2309.14322, section 2.1). The scale sets size, length and batch:

  cpu    147K parameters, 500 steps of 16 x 64 bytes: 15 s on one CPU core, 25 s the first time
  night  147K parameters, 10,000 steps of 16 x 64 bytes: 2 to 4 minutes on one CPU core
  gpu    2.4M parameters, 5,000 steps of 64 x 256 tokens
  paper  2.4M parameters, 100,000 steps of 256 x 512 tokens, as published

One run:  python -m launch.train --config=configs/base.py --workdir=runs/one
"""

from ml_collections import ConfigDict, config_dict

from stability import config as config_lib

SCALES = {
    'cpu': dict(size='147K', base='9.2K', batch_size=16, sequence_length=64, steps=500),
    'night': dict(size='147K', base='9.2K', batch_size=16, sequence_length=64, steps=10_000),
    'gpu': dict(size='2.4M', base='2.4M', batch_size=64, sequence_length=256, steps=5_000),
    'paper': dict(size='2.4M', base='2.4M', batch_size=256, sequence_length=512, steps=100_000),
}
CHECKPOINT_EVERY = {'cpu': 250, 'night': 2_500, 'gpu': 1_000, 'paper': 1_000}  # steps


def get_config(scale: str = 'cpu') -> ConfigDict:
  """One run at the given scale: cpu, night, gpu or paper."""
  s = config_lib.for_scale(scale, SCALES)
  size = config_lib.size(s['size'])
  c = ConfigDict()

  c.seed = 0  # of the initialisation; repeat a run over seeds to see its spread

  c.data = ConfigDict()
  c.data.source = 'text'  # text | synthetic: a language whose entropy rate is known exactly
  # File, folder, or folder of token files; unset: Python's own library sources, always at hand.
  c.data.path = config_dict.placeholder(str)
  c.data.tokenizer = 'bytes'  # bytes | bpe: learned from the training text
  c.data.vocabulary_size = 4_096  # tokens of the bpe
  c.data.batch_size = s['batch_size']  # sequences a step
  c.data.sequence_length = s['sequence_length']  # tokens
  c.data.seed = 0  # of the order of batches; shared by a sweep, so that runs see the same text
  c.data.validation_batches = 16  # fixed batches for initial_loss and final_loss

  c.model = ConfigDict()
  c.model.width = size['model.width']  # of the residual stream
  c.model.depth = size['model.depth']  # blocks; 0 leaves embedding and head, a bigram model
  c.model.head_dim = size['model.head_dim']  # constant over sizes: width / head_dim heads
  c.model.norm = 'layernorm'  # layernorm | rmsnorm
  c.model.norm_position = 'pre'  # pre | peri: what attention and MLP put out is normalised too
  # Keeps attention logits from growing. layernorm | rmsnorm | l2: of each head's queries and keys;
  # layernorm_model: over all heads at once; fixed: to a size that model.logit_scale sets; none.
  c.model.qk_norm = 'layernorm'
  c.model.logit_scale = 1.0  # kappa of paper section 3.3: mean square of queries and keys if fixed
  c.model.attention = 'softmax'  # softmax | squared_relu: pointwise, without normalisation
  c.model.attention_scale = 'inverse_sqrt'  # inverse_sqrt | inverse, of head_dim: muP's
  c.model.attention_gate = 'none'  # none | sigmoid: of each head's output, by what it reads
  c.model.attention_soft_cap = 0.0  # logits stay within +- this, by tanh (Gemma 2: 50); 0 = off
  c.model.output_soft_cap = 0.0  # the same for the head's logits (Gemma 2: 30); 0 = off
  c.model.output_centering = 'none'  # none | mean: mu-centering of the head, after each update
  c.model.dtype = 'float32'  # float32 | bfloat16, of activations; parameters are float32

  c.objective = ConfigDict()
  c.objective.z_loss = 1e-4  # times mean log^2 Z; keeps output logits from drifting; 0 = off
  c.objective.mu_loss = 0.0  # times the squared norm of the head's mean embedding; 0 = off

  c.parameterization = ConfigDict()
  # standard | muparam_simple, _intermediate, _full: the paper's, section 3.2.4 | ntk, mup,
  # mean_field: of arXiv 2407.05872, whose learning rates follow `exponents` (stability/
  # parameterization.py has the tables). muP as it is usually meant: mup with full_alignment.
  c.parameterization.name = 'standard'
  c.parameterization.base_width = config_lib.SIZES[s['base']]['model.width']  # all agree there
  # none: one for all | full_alignment | no_alignment: per layer, as powers of width / base_width
  c.parameterization.exponents = 'none'

  c.optimizer = ConfigDict()
  c.optimizer.name = 'adamw'  # adamw | adam_atan2 | stable_adamw | lion | muon | adafactor
  c.optimizer.learning_rate = 1e-2  # the highest of the schedule
  c.optimizer.learning_rate_scale = 'none'  # none | parameter_rms: times max(RMS, 1e-3), per tensor
  c.optimizer.beta1 = 0.9  # who reads which of these three: stability/optim/optimizers.py
  c.optimizer.beta2 = 0.95  # lower than Adam's 0.999: forgets spikes in the gradient sooner
  c.optimizer.eps = 1e-8  # updates vanish where the gradient RMS is below it (paper section 3.4)
  c.optimizer.clip_norm = 1.0  # of the gradient's global norm; 0 = off
  c.optimizer.weight_decay = 1e-4  # per step at the schedule's top (coupled: times learning_rate)
  c.optimizer.weight_decay_kind = 'independent'  # independent | coupled (0.1 is usual there)

  c.schedule = ConfigDict()
  c.schedule.steps = s['steps']  # updates
  c.schedule.warmup_steps = s['steps'] // 20  # linear from 0; the paper's 5 %
  c.schedule.shape = 'cosine'  # cosine | wsd: constant, then linear | rsqrt: 1 / sqrt(step)
  c.schedule.decay_steps = s['steps'] // 5  # the last ones, of wsd; 0 = constant to the end
  c.schedule.min_learning_rate = 1e-5  # at the end; absolute, as in the paper; a floor for rsqrt

  c.parallel = ConfigDict()
  # auto | single: one run on a device | population: many | data_parallel, sharded: one run on all
  c.parallel.layout = 'auto'
  c.parallel.members = config_dict.placeholder(int)  # per device, in a population; unset: a row
  c.parallel.microbatches = config_dict.placeholder(int)  # parts of a batch; unset: as few as fit
  c.parallel.remat = 'auto'  # auto | none | block: recompute a block's inside going backward

  c.log = ConfigDict()
  c.log.every_steps = 20 if scale == 'night' else 10

  c.probe = ConfigDict()
  c.probe.every_steps = 40 if scale == 'night' else 20  # measurements of the inside; 0 = never
  # How curved the loss is, on top of the probes; takes as long as 30 steps. 0 = never.
  c.probe.sharpness_every_steps = 0

  c.checkpoint = ConfigDict()
  c.checkpoint.every_steps = CHECKPOINT_EVERY[scale]  # 0 = never
  c.checkpoint.keep = 2  # newest ones: should the last be damaged, the one before serves

  c.control = ConfigDict()
  # none: recorded only | ask: the run pauses for a person | policy: rewinds, at a lower rate
  c.control.on_alarm = 'none'
  c.control.timeout_seconds = 3_600  # that a run waits for a person; 0 = for ever
  c.control.default_action = 'continue'  # after that: continue | stop | policy
  c.control.tries = 5  # of the policy with a run, which then goes on as it is
  return c
