"""Every option of a run: its default, its unit, and why it is there.

The model, objective and optimizer are those of "Small-scale proxies for large-scale Transformer
training instabilities" (arXiv 2309.14322, section 2.1). The scale sets size, length and batch:

  cpu    147K parameters, 500 steps of 16 x 64 bytes: 15 s on one CPU core, 25 s the first time
  gpu    2.4M parameters, 5,000 steps of 64 x 256 tokens
  paper  2.4M parameters, 100,000 steps of 256 x 512 tokens, as published

One run:  python -m launch.train --config=configs/base.py --workdir=runs/one
"""

from ml_collections import ConfigDict, config_dict

from stability import config as config_lib

SCALES = {
    'cpu': dict(size='147K', batch_size=16, sequence_length=64, steps=500),
    'gpu': dict(size='2.4M', batch_size=64, sequence_length=256, steps=5_000),
    'paper': dict(size='2.4M', batch_size=256, sequence_length=512, steps=100_000),
}


def get_config(scale: str = 'cpu') -> ConfigDict:
  """One run at the given scale: cpu, gpu or paper."""
  s = config_lib.for_scale(scale, SCALES)
  size = config_lib.size(s['size'])
  c = ConfigDict()

  c.seed = 0  # of the initialisation; repeat a run over seeds to see its spread

  c.data = ConfigDict()
  c.data.source = 'text'  # text | synthetic: a language whose entropy rate is known exactly
  # File, folder, or folder of token files; unset: Python's own library sources, always at hand.
  c.data.path = config_dict.placeholder(str)
  c.data.batch_size = s['batch_size']  # sequences a step
  c.data.sequence_length = s['sequence_length']  # tokens
  c.data.seed = 0  # of the order of batches; shared by a sweep, so that runs see the same text
  c.data.validation_batches = 16  # fixed batches for initial_loss and final_loss

  c.model = ConfigDict()
  c.model.width = size['model.width']  # of the residual stream
  c.model.depth = size['model.depth']  # blocks; 0 leaves embedding and head, a bigram model
  c.model.head_dim = size['model.head_dim']  # constant over sizes: width / head_dim heads
  c.model.qk_norm = 'layernorm'  # layernorm | none: keeps attention logits from growing
  c.model.dtype = 'float32'  # float32 | bfloat16, of the matrix products; parameters are float32

  c.objective = ConfigDict()
  c.objective.z_loss = 1e-4  # times mean log^2 Z; keeps output logits from drifting; 0 = off

  c.optimizer = ConfigDict()
  c.optimizer.learning_rate = 1e-2  # the highest of the schedule
  c.optimizer.beta1 = 0.9
  c.optimizer.beta2 = 0.95  # lower than Adam's 0.999: forgets spikes in the gradient sooner
  c.optimizer.eps = 1e-8  # updates vanish where the gradient RMS is below it (paper section 3.4)
  c.optimizer.clip_norm = 1.0  # of the gradient's global norm; 0 = off
  c.optimizer.weight_decay = 1e-4  # per step at the schedule's top (coupled: times learning_rate)
  c.optimizer.weight_decay_kind = 'independent'  # independent | coupled (0.1 is usual there)

  c.schedule = ConfigDict()
  c.schedule.steps = s['steps']  # updates
  c.schedule.warmup_steps = s['steps'] // 20  # linear from 0; the paper's 5 %
  c.schedule.min_learning_rate = 1e-5  # at the end of the cosine; absolute, as in the paper

  c.parallel = ConfigDict()
  c.parallel.layout = 'auto'  # auto | single | population: one run, or many, per executable
  c.parallel.members = config_dict.placeholder(int)  # per device, in a population; unset: a row

  c.log = ConfigDict()
  c.log.every_steps = 10

  c.probe = ConfigDict()
  c.probe.every_steps = 20  # measurements of the inside; 0 = never

  c.checkpoint = ConfigDict()
  c.checkpoint.every_steps = 1_000 if scale != 'cpu' else 250  # 0 = never
  c.checkpoint.keep = 2  # newest ones: should the last be damaged, the one before serves
  return c
