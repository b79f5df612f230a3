"""Config files of tiny experiments."""

TINY = {
    'data.source': 'synthetic',
    'data.sequence_length': 16,
    'model.width': 16,
    'model.depth': 1,
}


def config_file(fields: dict[str, object], sweep: str = '') -> str:
  """A config file with the fields of TINY and these; `sweep` is the expression of get_sweep."""
  lines = [
      'from configs import base',
      'from stability import hyper',
      "def get_config(scale='cpu'):",
      '  c = base.get_config(scale)',
      *(f'  c.{field} = {value!r}' for field, value in (TINY | fields).items()),
      '  return c',
  ]
  if sweep:
    lines += ["def get_sweep(scale='cpu'):", f'  return {sweep}']
  return '\n'.join(lines) + '\n'
