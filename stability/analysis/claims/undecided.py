"""Why a claim has no verdict."""


class Undecided(Exception):
  """A claim cannot be decided; the message is the reason."""


class NotApplicable(Undecided):
  """A claim does not apply to a sweep; the message is the reason."""
