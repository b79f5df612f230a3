"""The console script `stability`: `stability NAME ...` is `python -m launch.NAME ...`.

  stability sweep --config=quickstart --workdir=DIR
"""

import ast
import difflib
import sys
from pathlib import Path

from launch.common import programs, streams

_FOLDER = Path(__file__).parent
_USAGE = 'stability COMMAND [--flag=value ...]; stability COMMAND --help lists the flags of one'


def main() -> None:
  """Runs the program that the first argument names."""
  streams.protect()  # from `| head`
  names = sorted(path.stem for path in _FOLDER.glob('*.py') if not path.name.startswith('_'))
  name = sys.argv[1] if len(sys.argv) > 1 else '--help'
  if name in ('--help', '-h'):
    print(f'{_USAGE}\n')
    for found in names:
      print(f'  {found:<{max(map(len, names))}}  {_summary(found)}')
  elif name in names:
    del sys.argv[0]
    programs.run(f'launch.{name}')
  else:
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    print(f'error: {name!a}: no such command; the nearest is {nearest}', file=sys.stderr)
    sys.exit(2)


def _summary(name: str) -> str:
  """The first line of a program's docstring; the program is not imported."""
  text = ast.get_docstring(ast.parse((_FOLDER / f'{name}.py').read_bytes()))
  return text.partition('\n')[0]


if __name__ == '__main__':
  main()
