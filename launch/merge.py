"""Writes the weights of a fine-tuned run as a plain model, or its adapter alone.

  python -m launch.merge --run=DIR/runs/NAME --output=FILE.safetensors [--part=merged|adapter]

merged puts a LoRA, DoRA or IA3 into the weights: the result has the parameters of a model without
an adapter, and works as config.init.checkpoint. houlsby and prompt cannot be merged, nor IA3 unless
model.kernel=plain. adapter keeps only what the method has added; it works as config.init.adapter
over any model of the same size or, with adapter.init=pissa, over the one that it was trained over.
Both have the metadata of the run, whose own file stays as it is.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
from pathlib import Path

from absl import flags

from stability import config as config_lib
from stability.devices import shapes
from stability.errors import BadInput
from stability.storage import parameters, parents

FLAGS = flags.FlagValues()
_RUN = path_flags.define('run', None, 'folder of a run that has ended, DIR/runs/NAME', FLAGS)
_OUTPUT = path_flags.define('output', None, 'file to write, FILE.safetensors', FLAGS)
_PART = flags.DEFINE_enum(
    'part', 'merged', ['merged', 'adapter'], 'what to write', flag_values=FLAGS
)


def main() -> None:
  """Writes the file."""
  for flag, what in ((_RUN, 'the folder of a run'), (_OUTPUT, 'a file')):
    if not flag.value:
      raise BadInput(f'--{flag.name}: missing, must be {what}')
  output = Path(_OUTPUT.value)
  if output.exists() or not output.absolute().parent.is_dir():
    raise BadInput(f'--output={output}: must be a new file in a folder that exists')
  shapes.trace_on_cpu()
  from stability.trainer import parents as parents_lib  # imports jax

  try:
    entry = parents.describe(_RUN.value)
    variables = parents_lib.with_average(parents.load(entry), entry)
    if _PART.value == 'adapter':
      arrays, config = parents_lib.added(variables.params), entry['config']
      if not arrays:
        raise BadInput('has no adapter')
    else:
      arrays = parents_lib.plain(variables, entry['config'])
      without = {'adapter.kind': 'none', 'init.adapter': None}
      config = config_lib.unflatten(config_lib.flatten(entry['config']) | without)
  except BadInput as error:
    raise BadInput(f'--run={_RUN.value}: {error}') from error
  if _PART.value == 'merged':
    arrays = arrays | {f'{parameters.CARRIED}{n}': a for n, a in variables.carried.items()}
  about = parameters.about(entry['run'], entry['step'], config, entry['data'])
  if _PART.value == 'adapter':
    about |= {'base': parents.base(entry)}
  parameters.write_file(output, arrays, about, 'float32')
  print(f'{output}: {len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers')


if __name__ == '__main__':
  app.run(main, FLAGS)
