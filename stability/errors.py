"""The one error that is a person's to mend."""


class BadInput(ValueError):
  """Something given cannot be used: one line that names it and says what is allowed.

  Programs print the line and exit with code 2; every other exception is a fault of ours.
  """
