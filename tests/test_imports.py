"""Imports between the packages of the library go one way, and none is of launch."""

import ast
import pathlib

import stability

ROOT = pathlib.Path(stability.__file__).parents[1]
# What each part of the library may import, beside itself.
ALLOWED = {
    'errors': set(),
    'same_number': set(),
    'settings': set(),
    'types': set(),
    'variants': {'errors'},
    'config': {'errors', 'same_number', 'variants'},
    'hyper': {'config', 'errors'},
    'extensions': {'config', 'errors', 'variants'},
    'storage': {'config', 'errors', 'extensions', 'hyper', 'settings'},
    'data': {'config', 'errors', 'storage'},
    'control': {'config', 'errors', 'storage'},
    'exporting': {'config', 'errors', 'storage'},
    'importing': {'config', 'errors', 'same_number', 'storage'},
    'model': {'types', 'variants'},
    'optim': {'model', 'types', 'variants'},
    'probes': set(),
    'step': {'data', 'errors', 'model', 'optim', 'types', 'variants'},
    'devices': {
        *('config', 'data', 'errors', 'hyper', 'model', 'optim', 'step', 'storage', 'types'),
        'variants',
    },
    'trainer': {'config', 'control', 'devices', 'errors', 'model', 'settings', 'step', 'storage'},
    'retrieval': {
        *('config', 'data', 'errors', 'model', 'step', 'storage', 'types'),
    },
    'labels': {'data', 'errors', 'retrieval', 'storage'},
    'analysis': {'config', 'control', 'errors', 'hyper', 'same_number', 'storage'},
    'report': {'analysis', 'config', 'control', 'errors', 'storage'},
    'experiment': {
        *('analysis', 'config', 'control', 'errors', 'importing', 'report', 'storage'),
    },
    '__init__': {'control', 'experiment'},
}


def imported(path):
  """The dotted names that a file imports, at the top and inside functions."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def part(path):
  relative = path.relative_to(ROOT / 'stability')
  return relative.parts[0].removesuffix('.py')


def test_one_way():
  for path in (ROOT / 'stability').rglob('*.py'):
    for name in imported(path):
      package, _, rest = name.partition('.')
      assert package not in ('launch', 'tests'), f'{path} imports {name}'
      other = rest.partition('.')[0]
      if package == 'stability' and other in ALLOWED:
        assert other in ALLOWED[part(path)] | {part(path)}, f'{path} imports {name}'


def test_no_import_cycles():
  order = []
  while len(order) < len(ALLOWED):
    ready = [name for name, needs in ALLOWED.items() if name not in order and needs <= set(order)]
    assert ready, f'among {set(ALLOWED) - set(order)}'
    order += ready


def test_analysis_needs_no_jax():
  """Nor do reports, configs, control and storage, except for checkpoints."""
  for folder in ('analysis', 'report', 'config', 'control', 'storage'):
    for path in (ROOT / 'stability' / folder).rglob('*.py'):
      heads = {name.partition('.')[0] for name in imported(path)}
      allowed = {'checkpoints.py': {'jax'}, 'metrics.py': set()}.get(path.name, set())
      assert not heads & {'jax', 'flax', 'optax'} - allowed, path
