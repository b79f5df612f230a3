"""The claims by figure and letter, such as 1a."""

import string

from stability.analysis.claims import registry
from stability.analysis.claims.claim import EXTENSION, decide
from stability.analysis.claims.evidence import Evidence

NAMED = {}
for claim in registry.CLAIMS:
  number = sum(other.figure == claim.figure for other in NAMED.values())
  prefix = 'extension_' if claim.figure == EXTENSION else claim.figure
  NAMED[prefix + string.ascii_lowercase[number]] = claim


def verdict(name, results, curves):
  """The verdict on a claim."""
  return decide(NAMED[name], Evidence.from_results(results, curves))
