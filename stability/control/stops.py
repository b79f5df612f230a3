"""Stops of a run: the steps after which the host has work to do and may take actions."""

from stability.config import Config


def next_stop(config: Config, step: int) -> int:
  """The first stop after a step: a logged row, a probe, a checkpoint or the end of the run."""
  intervals = (config[section]['every_steps'] for section in ('log', 'probe', 'checkpoint'))
  return min(config['schedule']['steps'], *(n * (step // n + 1) for n in intervals if n))


def is_stop(config: Config, step: int) -> bool:
  """Whether a step is a stop of the run. Step 0 is one."""
  return step == 0 or next_stop(config, step - 1) == step
