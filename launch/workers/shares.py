"""The share of this machine, cores and GPUs, that each of its workers gets.

A process takes most of the memory of every GPU that it sees, so workers must not see the same ones.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence

from launch.common import environment
from stability.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Share:
  """The share of one worker."""

  cores: Sequence[int]
  variables: Mapping[str, str]  # of its environment; they hide the GPUs of other workers


def check(workers: int | None) -> None:
  """Raises BadInput if the devices here cannot be divided among this number of workers."""
  platform = environment.accelerator()
  if platform is None or workers in (None, 1):
    return
  if not _has_gpus(platform):
    raise BadInput(f'--workers={workers}: must be 1 on {platform}, whose devices are not divided')
  if (most := max(1, len(environment.gpus()))) < workers:
    raise BadInput(
        f'--workers={workers}: must be at most {most}, the number of GPUs that CUDA finds here'
        ' (CUDA_VISIBLE_DEVICES chooses them; JAX_PLATFORMS=cpu uses none)'
    )
  if (chosen := os.environ.get('JAX_CUDA_VISIBLE_DEVICES', 'all')) != 'all':
    raise BadInput(
        f'JAX_CUDA_VISIBLE_DEVICES={chosen}: must not be set with --workers={workers}; use'
        ' CUDA_VISIBLE_DEVICES'
    )


def divide(count: int) -> list[Share]:
  """The shares of `count` workers; a single worker has everything."""
  cores = environment.cores()
  variables = [{} for _ in range(count)]
  if count > 1 and _has_gpus(environment.accelerator()):
    gpus = environment.gpus()
    ends = [len(gpus) * i // count for i in range(count + 1)]
    variables = [
        {'CUDA_VISIBLE_DEVICES': ','.join(gpus[start:end])}
        for start, end in itertools.pairwise(ends)
    ]
  return [Share(cores[i::count] or cores, variables[i]) for i in range(count)]


def _has_gpus(platform: str | None) -> bool:
  return platform in ('cuda', 'gpu')
