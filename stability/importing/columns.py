"""Recognises columns by the names that W&B, MLflow, TensorBoard and common trainers use."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from stability.errors import BadInput

# Prefixes of the exports of W&B (config., summary.) and MLflow (params., metrics., tags.).
SETTINGS = ('config.', 'params.', 'hparams.')
RESULTS = ('summary.', 'metrics.')
_ABOUT = ('tags.', '_wandb', 'config._wandb', 'summary._wandb')
# Columns of the tools about the run itself, which say nothing of how it was trained.
_TOOL = {
    *('notes', 'user', 'tags', 'created', 'createdat', 'created_at', 'updated', 'sweep', 'group'),
    *('hostname', 'host', 'end_time', 'start_time', 'artifact_uri', 'experiment_id', 'commit'),
    *('job_type', 'project', 'entity', 'url', 'path', 'description', 'source', 'lifecycle_stage'),
    *('timestamp', 'wall_time', 'show_metrics', 'user_id', 'agent', 'job'),
}
_ABOUT_SETTINGS = ('group', 'tags', 'job_type', 'notes', 'description')  # which users may fill in

# What a table of runs may have -> names, the most specific first.
RUN_COLUMNS: dict[str, tuple[str, ...]] = {
    'run': ('run', 'run_name', 'name', 'display_name', 'experiment', 'trial'),
    'id': ('run_id', 'id', 'trial_id', 'session_group_name'),
    'status': ('status', 'state', 'run_status'),
    'learning_rate': (
        *('optimizer_learning_rate', 'learning_rate', 'lr', 'peak_learning_rate', 'peak_lr'),
        *('max_learning_rate', 'max_lr', 'base_lr', 'optimizer_lr', 'optim_lr', 'train_lr'),
    ),
    'final_loss': (
        *('final_loss', 'final_val_loss', 'final_validation_loss', 'final_eval_loss', 'val_loss'),
        *('valid_loss', 'validation_loss', 'eval_loss', 'loss_val', 'val_ce_loss', 'eval_ce_loss'),
        *('test_loss', 'final_train_loss', 'train_loss', 'training_loss', 'loss'),
    ),
    'initial_loss': ('initial_loss', 'init_loss', 'initial_val_loss', 'loss_at_init'),
    'parameters': (
        *('parameters', 'non_embedding_parameters', 'non_embedding_params', 'num_parameters'),
        *('num_params', 'n_params', 'n_parameters', 'nparams', 'param_count', 'parameter_count'),
        *('params', 'model_parameters', 'model_params', 'model_size'),
    ),
    'seed': ('seed', 'random_seed', 'rng_seed', 'train_seed'),
    'steps': ('steps', 'step', 'global_step', 'iterations', 'train_global_step'),
    'tokens': ('tokens', 'tokens_seen', 'total_tokens', 'num_tokens', 'train_tokens'),
    'seconds': ('seconds', 'runtime', '_runtime', 'duration', 'train_runtime'),
    'model.width': ('model_width', 'width', 'd_model', 'n_embd', 'hidden_size', 'model_dim'),
    'model.depth': (
        *('model_depth', 'depth', 'n_layer', 'n_layers', 'num_layers', 'num_hidden_layers'),
    ),
    'schedule.steps': (
        *('schedule_steps', 'total_steps', 'max_steps', 'train_steps', 'num_train_steps'),
        *('num_steps', 'max_iters', 'total_iterations'),
    ),
    'schedule.warmup_steps': (
        *('schedule_warmup_steps', 'warmup_steps', 'num_warmup_steps', 'warmup_iters'),
        'lr_warmup_steps',
    ),
}
_MEASURED = ('final_loss', 'initial_loss', 'steps', 'tokens', 'seconds')  # not settings
_EITHER = ('parameters',)  # set, or counted once the model is there
# What has no single meaning: if several columns could be it and differ, the user must choose.
ONE_MEANING = ('learning_rate', 'parameters', 'seed')

COUNTED = 'those in the matrices of the blocks, without embedding and head'  # parameters

# What per-step logs may have.
CURVE_COLUMNS: dict[str, tuple[str, ...]] = {
    'run': ('run', 'run_id', 'id', 'run_name', 'name', 'experiment', 'trial'),
    # W&B's own `_step` counts calls of its log function, so it is the last resort.
    'step': (
        *('step', 'global_step', 'train_step', 'train_global_step', 'trainer_global_step'),
        *('iteration', 'iter', 'steps', 'num_updates', 'update', '_step'),
    ),
    'loss': (
        *('loss', 'train_loss', 'training_loss', 'train_ce_loss', 'train_cross_entropy', 'ce_loss'),
        *('train_cross_entropy_loss', 'lm_loss', 'train_lm_loss', 'loss_train', 'learning_loss'),
        'train_loss_step',
    ),
    'learning_rate': (
        *('learning_rate', 'lr', 'train_learning_rate', 'train_lr', 'optimizer_lr', 'optim_lr'),
        'current_learning_rate',
    ),
    'tokens': (
        *('tokens', 'tokens_seen', 'total_tokens', 'num_tokens', 'train_tokens', 'consumed_tokens'),
        *('throughput_total_tokens', 'train_total_tokens'),
    ),
    'seconds': ('seconds', '_runtime', 'runtime', 'relative_time_process'),
    'tokens_per_second': ('tokens_per_second', 'tokens_per_sec', 'train_tokens_per_second'),
    'gradient_norm': (
        *('gradient_norm', 'grad_norm', 'train_grad_norm', 'train_gradient_norm'),
        *('optim_total_grad_norm', 'total_grad_norm', 'global_grad_norm', 'grad_norm_total'),
        *('gradients_norm', 'learning_grad_norm', 'grad_total_norm'),
    ),
    'log_z': ('log_z', 'logz', 'train_log_z', 'log_z_mean', 'mean_log_z', 'logsumexp'),
    'output_logit_max': ('output_logit_max', 'max_output_logit', 'output_logits_max'),
    'output_logit_mean': ('output_logit_mean', 'mean_output_logit', 'output_logits_mean'),
}
VALIDATION = (
    *('val_loss', 'valid_loss', 'validation_loss', 'eval_loss', 'val_ce_loss', 'loss_val'),
    *('eval_ce_loss', 'val_loss_step', 'final_loss', 'final_val_loss', 'test_loss'),
)
# A table with a row per run, metric and step: the columns of the metric's name and of its value.
LONG_METRIC = ('metric', 'tag', 'key', 'metric_name', 'metric_key', 'variable', 'name')
LONG_VALUE = ('value', 'metric_value')

_IN_ARMS = ('run', 'step', 'learning_rate')  # of CURVE_COLUMNS: their names may be settings
_MISSPELLED = 0.85  # similarity from which a name is a misspelled one
_SHOWN = 12  # names of columns in an error

# Probes of a block: what is left of a name without the block's number -> our name.
_BLOCK = re.compile(r'(?:^|_)(?:block|layer|blocks|layers|h|decoder_layer)_?([0-9]{1,4})(?:_|$)')
_BLOCK_PROBES = {
    'attention_logit_max': re.compile(
        r'(max_?(attn|attention)_?(logits?|scores?)|(attn|attention)_?(logits?|scores?)_?max'
        r'|(attn|attention)_max_?logits?|max_qk_logits?|qk_logits?_max)'
    ),
    'attention_logit_mean': re.compile(
        r'(mean_?(attn|attention)_?logits?|(attn|attention)_?logits?_?mean)'
    ),
    'attention_entropy': re.compile(
        r'((attn|attention)_?entropy(_mean)?|mean_?(attn|attention)_?entropy)'
    ),
    'attention_entropy_min': re.compile(r'((attn|attention)_?entropy_min)'),
}
_MORE_BLOCK_PROBES = ('query_norm', 'key_norm', 'query_key_cosine', 'output_rms')
_METRICS = {
    *(alias for name in _MEASURED for alias in RUN_COLUMNS[name]),
    *(alias for n, aliases in CURVE_COLUMNS.items() if n not in _IN_ARMS for alias in aliases),
    *VALIDATION,
}
_BITS = re.compile(r'(^|_)(bits?|bpb|bpc|bpt|bits_per_byte|ppl|perplexity)(_|$)')


def key(column: str) -> str:
  """A column's name for comparison: `config.Peak LR` -> `peak_lr`."""
  for prefix in (*SETTINGS, *RESULTS):
    column = column.removeprefix(prefix)
  column = re.sub(r'([a-z0-9])([A-Z])', r'\1_\2', column)  # GradNorm
  return re.sub(r'[^a-z0-9]+', '_', column.lower().lstrip('# ')).rstrip('_')


def is_about(column: str) -> bool:
  """Whether a column is a tool's own, about the run and not about its training."""
  return column.startswith(_ABOUT) or key(column).lstrip('_') in _TOOL


def rank_as_setting(column: str) -> int:
  """Sorts columns by how likely they say what was trained; the tool's own come last."""
  if not is_about(column):
    return 0
  return 1 if key(column) in _ABOUT_SETTINGS else 2


def is_result(column: str) -> bool:
  """Whether a column was measured, by its prefix."""
  return column.startswith(RESULTS)


def is_measured(column: str) -> bool:
  """Whether a column has results or metrics, by its prefix or its name."""
  if is_result(column):
    return True
  is_metric = key(column) in _METRICS or curve_name(column).startswith('block_')
  return is_metric and not column.startswith(SETTINGS)


def mentions_bits(column: str) -> bool:
  """Whether a loss seems not to be in nats, by its name."""
  return _BITS.search(key(column)) is not None


def candidates(name: str, columns: Iterable[str]) -> list[str]:
  """The columns of a table of runs that could be `name`, the most likely first."""
  found = []
  for alias in RUN_COLUMNS[name]:
    for column in columns:
      wrong_kind = column.startswith(SETTINGS if name in _MEASURED else RESULTS)
      is_step = key(column).lstrip('_') == alias and name in _MEASURED
      if (name in _EITHER or not wrong_kind) and (key(column) == alias or is_step):
        found.append(column)
  return found


def curve_name(column: str) -> str:
  """The name under which a curve's metric is stored: a probe of ours, or the metric's own."""
  plain = key(column)
  for name, aliases in CURVE_COLUMNS.items():
    if plain in aliases:
      return name
  block = _BLOCK.search(plain)
  rest = plain[: block.start()] + '_' + plain[block.end() :] if block else plain
  rest = re.sub('^(train|debug|stats|monitor|probe|model|transformer|self)_', '', rest.strip('_'))
  for probe, pattern in _BLOCK_PROBES.items():
    if pattern.fullmatch(rest):
      return f'block_{int(block[1]) if block else 0}/{probe}'
  return column


def parse_map(entries: Iterable[str]) -> dict[str, str]:
  """The mapping of --map: name -> column; an empty column means that there is none."""
  found: dict[str, str] = {}
  for entry in entries:
    name, equals, column = entry.partition('=')
    if not equals or not name:
      raise BadInput(f'--map={entry}: must be NAME=COLUMN, or NAME= for no column')
    if name in found:
      raise BadInput(f'--map={entry}: {name} is given twice')
    found[name] = column
  return found


def with_blocks(mapping: Mapping[str, Any]) -> dict[str, str]:
  """The mapping as text, with block_0 before probes of a block that are given without one."""
  found: dict[str, str] = {}
  for name, column in mapping.items():
    is_of_block = name in _BLOCK_PROBES or name in _MORE_BLOCK_PROBES
    full = f'block_0/{name}' if is_of_block else name
    if full in found or (is_of_block and full in mapping):
      raise BadInput(f'--map={name}={column}: {full} is given twice')
    found[full] = '' if column is None else str(column)
  return found


def spelled(column: str, columns: Collection[str]) -> str | None:
  """The column that a user names: itself, else the only one that is equal but for case."""
  if column in columns:
    return column
  found = [c for c in columns if c.lower() == column.lower()]
  return found[0] if len(found) == 1 else None


def check_map(mapping: Mapping[str, str], columns: Collection[str]) -> None:
  """Raises BadInput for a mapping of a column that no file has, or of a wrong name.

  That is a misspelled one, or an unknown one for a column that is recognised as something else,
  which would be lost.
  """
  known = {*RUN_COLUMNS, *CURVE_COLUMNS}
  for name, column in mapping.items():
    meant = difflib.get_close_matches(name, known - {name}, n=1, cutoff=_MISSPELLED)
    if name not in known and meant:
      raise BadInput(f'--map={name}={column}: no such name; the nearest is {meant[0]}')
    lost = [n for n in RUN_COLUMNS if n not in mapping and candidates(n, [column])]
    if name not in known and lost:
      raise BadInput(f'--map={name}={column}: no such name; did you mean {lost[0]}?')
    if column and column.lower() not in (c.lower() for c in columns):
      raise BadInput(f'--map={name}={column}: no such column; {nearest(column, columns)}')


def nearest(name: str, columns: Collection[str]) -> str:
  """The columns that there are, those with the most similar names first."""
  def similarity(column: str) -> float:
    return difflib.SequenceMatcher(None, key(name), key(column)).ratio()

  ordered = sorted(columns, key=similarity, reverse=True)
  more = f' and {len(ordered) - _SHOWN} more' if len(ordered) > _SHOWN else ''
  return f'its columns, nearest first, are {", ".join(ordered[:_SHOWN])}{more}'
