"""Names of columns that the analysis adds to tables that also have those of the interventions.

The runs of another trainer may vary a setting of such a name, such as eps or window.
"""

from collections.abc import Collection, Iterable

RESERVED = frozenset({
    # lr_sensitivity, comparison and several_sweeps
    *('lr_sensitivity', 'low', 'high', 'best_loss', 'best_learning_rate', 'learning_rates'),
    *('seeds', 'missing', 'window', 'ratio', 'ratio_low', 'ratio_high', 'is_baseline'),
    *('index', 'sweep', 'reference', 'pairs', 'mean_loss'),
    *(f'{name}_{end}' for name in ('mean_loss', 'best_loss', 'lr_sensitivity')
      for end in ('low', 'high')),
    # prediction
    *('log_size', 'log_rate', 'curve', 'unstable', 'log_critical', 'critical_censored', 'log_best'),
    *('best_censored', 'critical_spread', 'grid_step', 'eps', 'warmup_steps', 'log_gradient'),
    *('predictor', 'chosen', 'event', 'times', 'probability', 'quantity', 'value', 'note'),
    *('happened', 'base_rate', 'measured', 'beyond', 'tail', 'risk', 'usable', 'reason'),
    *(f'{name}_learning_rate{end}' for name in ('best', 'safe', 'critical')
      for end in ('', '_low', '_high')),
    # figures and sentences
    *('loss', 'rate', 'size', 'logit', 'rms', 'name'),
})  # fmt: skip


def free_names(names: Iterable[str], taken: Collection[str]) -> dict[str, str]:
  """Reserved name -> `config.NAME`, which tables and figures show as NAME.

  Args:
    names: the columns of the interventions.
    taken: other columns, whose names are not given again.
  """
  found = {}
  for name in names:
    if name in RESERVED:
      free = f'config.{name}'
      while free in taken:
        free = f'config.{free}'
      found[name] = free
  return found
