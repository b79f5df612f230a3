"""Families: values of an option that claims treat as the same intervention."""

import dataclasses
from collections.abc import Collection
from typing import Any

from stability.config import fields


@dataclasses.dataclass(frozen=True)
class Family:
  """Values of one field that count as the same intervention.

  A claim is judged on one member: the first of `members` that occurs in the sweep.
  """

  name: str
  members: tuple[str, ...]  # the paper's first

  def choose(self, values: Collection[Any]) -> str | None:
    """The first member among these values; None if there is none."""
    return next((member for member in self.members if member in values), None)


QK_NORMS = Family(
    'a normalisation of queries and keys', ('layernorm', 'layernorm_model', 'rmsnorm', 'l2')
)
_FAMILIES = {'model.qk_norm': QK_NORMS}


def closest_to_paper(field: str, values: Collection[Any]) -> Any:
  """The paper's value of a field if it is in `values`, else a member of its family, else None."""
  paper = fields.paper_values()
  if field not in paper:
    return None
  if paper[field] in values:
    return paper[field]
  return _FAMILIES[field].choose(values) if field in _FAMILIES else None
