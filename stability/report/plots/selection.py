"""Which figures a page shows, with their titles and captions."""

import dataclasses
import functools
import re
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.results import Results
from stability.report import labels
from stability.report.plots import lr_curves
from stability.report.plots import probe_plots as probe_plots_lib


@dataclasses.dataclass(frozen=True)
class Plot:
  """A figure of the page."""

  name: str  # of its files
  title: str
  caption: str
  draw: Callable[..., Figure] | None  # in the axes `ax`, if given; None: nothing to draw yet
  absent: str  # why there may be none


def loss_plots(results: Results, table: pd.DataFrame, bigram_loss: float | None) -> list[Plot]:
  """Of final losses and LR sensitivity."""
  finished = lr_sensitivity.counted_loss(results.runs).notna().any()
  several_rates = _has_several_rates(results)
  return [
      Plot(
          'loss_by_learning_rate',
          'Final loss against learning rate',
          'A flat curve is a stable one: the learning rate hardly matters. Points are means over'
          ' seeds, bands their range; no loss counts as worse than the initial one.',
          functools.partial(lr_curves.loss_by_learning_rate, results, bigram_loss)
          if finished and several_rates
          else None,
          'This needs two learning rates or more.' if finished else 'No run has finished yet.',
      ),
      Plot(
          'lr_sensitivity',
          'LR sensitivity against size',
          'How far the loss is above its best, on average over the learning rates. A line that'
          ' rises says that larger models will need more care; bars are 90 % intervals over seeds.',
          functools.partial(lr_curves.sensitivity_by_parameters, results, table)
          if table['parameters'][table['lr_sensitivity'] > 0].nunique() > 1
          else None,
          'This needs finished runs of two sizes or more, with their parameters.',
      ),
      *number_plots(results),
  ]


def curve_plots(results: Results, curves: pd.DataFrame) -> list[Plot]:
  """Of training losses and attention logits."""
  measured = curves[results_lib.LOGIT].notna().any()
  several_rates = _has_several_rates(results)
  probed = results.runs['run'].isin(curves['run'][curves[results_lib.LOGIT].notna()])
  sizes = results.runs['parameters'][probed].nunique()
  absent = 'No attention logits have been logged; config.probe.every_steps asks for them.'
  return [
      Plot(
          'attention_logits_by_learning_rate',
          'Attention logits against learning rate',
          'The highest attention logit that block 0 reached while training, median over seeds.'
          ' As logits grow, attention collapses onto single tokens, and the loss rises.',
          functools.partial(lr_curves.logits_by_learning_rate, results, curves)
          if measured and several_rates
          else None,
          'This needs two learning rates or more.' if measured else absent,
      ),
      Plot(
          'attention_logits_by_parameters',
          'Attention logits against size',
          'The same numbers at each learning rate. Lines that climb towards the dashed one tell at'
          ' which size a learning rate that is still fine here stops being so.',
          functools.partial(lr_curves.logits_by_parameters, results, curves)
          if sizes > 1
          else None,
          'This needs attention logits of two sizes or more.',
      ),
      Plot(
          'training_curves',
          'Training curves of the largest size',
          'Loss and attention logits step by step, one line per learning rate. Where the logits'
          ' take off first and the loss follows, they are the likely cause.',
          functools.partial(lr_curves.training_curves, results, curves)
          if curves['loss'].notna().any()
          else None,
          'No step has been logged yet.',
      ),
  ]


def _has_several_rates(results: Results) -> bool:
  """A point per panel is no curve; a sweep of another number has a figure of its own."""
  return results.runs['learning_rate'].nunique() > 1 or not results.groups


def number_plots(results: Results) -> list[Plot]:
  """Loss against each number that the sweep varies beside size and learning rate."""
  if not lr_sensitivity.counted_loss(results.runs).notna().any():
    return []
  shown = labels.fields(results.groups)
  names = {field: shown[field] for field in probe_plots_lib.numbers(results)}
  return [
      Plot(
          f'loss_by_{_file_name(name, number)}',
          f'Final loss against {name.replace("_", " ")}',
          'The same losses, a line per learning rate; a flat line says that the number hardly'
          ' matters.',
          functools.partial(probe_plots_lib.loss_by_number, results, field),
          '',
      )
      for number, (field, name) in enumerate(names.items(), 1)
  ]


def _file_name(name: str, number: int) -> str:
  """A name that files and the page's ids can have; a CSV's columns may be called anything."""
  plain = re.fullmatch(r'[A-Za-z0-9_.]{1,60}', name) and name != 'learning_rate'  # has its own
  return name if plain else f'column-{number}'


def probe_plots(results: Results, curves: pd.DataFrame) -> list[Plot]:
  """What else was measured inside; a figure without data is left out."""
  sizes = results.runs['parameters'].nunique()
  output = probe_plots_lib.output_rms(results)

  def measured(probe: str | None) -> bool:
    return probe is not None and curves[probe].notna().any()

  found = []
  if measured(probe_plots_lib.GRADIENT) and (
      sizes > 1 or probe_plots_lib.EPS in probe_plots_lib.numbers(results)
  ):
    found.append(
        Plot(
            'gradients',
            'Gradients and updates at the end of training',
            'RMS over the first MLP layer of block 0. Gradients fall with size and learning rate;'
            " where they come near AdamW's eps, the dashed line, updates vanish.",
            functools.partial(probe_plots_lib.gradients, results, curves),
            '',
        )
    )
  if measured(output) and sizes > 1:
    found.append(
        Plot(
            'block_outputs',
            "Size of a block's output",
            'RMS of the residual stream after it, median over seeds. As it grows with the learning'
            ' rate, the gradients that reach the blocks through their normalisation shrink.',
            functools.partial(probe_plots_lib.outputs, results, curves),
            '',
        )
    )
  if any(map(measured, probe_plots_lib.NORMS)):
    found.append(
        Plot(
            'query_key_norms',
            'Queries and keys of the largest size',
            'What attention logits of block 0 are made of: the norms of queries and keys, and the'
            ' cosine between a query and the key of its highest logit.',
            functools.partial(probe_plots_lib.norms, results, curves),
            '',
        )
    )
  return found


def probes(results: Results) -> list[str]:
  """What the page needs of the curves."""
  return [results_lib.LOGIT, *probe_plots_lib.probes(results), *registry.probes(results)]
