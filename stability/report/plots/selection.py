"""The figures that the page shows, with their titles and captions."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.figure import Figure

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.results import Results
from stability.report import labels
from stability.report.plots import lr_curves, regimes
from stability.report.plots import probe_plots as probe_plots_lib

EXTENSION_PLOTS = 5  # the most figures of probes of the config file


@dataclasses.dataclass(frozen=True)
class Plot:
  """A figure of the page."""

  name: str  # also that of its files
  title: str
  caption: str
  # Draws the figure, in the axes `ax` if this argument is given; None: there is nothing to draw.
  draw: Callable[..., Figure] | None
  absent: str = ''  # the reason that is shown in place of a figure that is not drawn


def loss_plots(results: Results, table: pd.DataFrame, bigram_loss: float | None) -> list[Plot]:
  """Figures of final losses and LR sensitivity."""
  finished = lr_sensitivity.counted_loss(results.runs).notna().any()
  several_rates = _has_several_rates(results)
  return [
      Plot(
          'loss_by_learning_rate',
          'Final loss against learning rate',
          'Training is stable where the curve is low and flat: the learning rate hardly matters.'
          ' Points are means over seeds, bands their range; a hollow point lacks seeds that others'
          ' have. The axis ends above the losses that count as unstable; what is higher is marked'
          ' at its top edge.',
          functools.partial(lr_curves.loss_by_learning_rate, results, bigram_loss)
          if finished and several_rates
          else None,
          'This needs at least two learning rates.' if finished else 'No run has finished yet.',
      ),
      Plot(
          'lr_sensitivity',
          'LR sensitivity against size',
          'How far the loss is above its best, on average over the learning rates. Where the line'
          f' rises, larger models are harder to train. Bars are {100 * results.interval:g} %'
          ' intervals over seeds.',
          functools.partial(lr_curves.sensitivity_by_parameters, results, table)
          if table['parameters'][table['lr_sensitivity'] > 0].nunique() > 1
          else None,
          _why_no_sensitivities(results, table),
      ),
      *number_plots(results),
  ]


def _why_no_sensitivities(results: Results, table: pd.DataFrame) -> str:
  """Why LR sensitivity cannot be drawn against size."""
  if table['best_loss'].isna().all():
    return 'No run has finished yet.'
  if results.not_comparable is not None:
    return f'It is not computed: {results.not_comparable} changes what a learning rate means.'
  if table['lr_sensitivity'].isna().all():
    return 'This needs finished runs at two or more learning rates of a size.'
  if not (table['lr_sensitivity'] > 0).any():
    return 'It is 0 everywhere: the loss is the same at all learning rates.'
  return 'This needs an LR sensitivity above 0 at two or more sizes, with known parameters.'


def regime_plots(judged: pd.DataFrame) -> list[Plot]:
  """The figure of verdicts by run length and size, given the result of regimes.judge."""
  return [
      Plot(
          'claims_by_length',
          'Claims by run length and size',
          'The verdict on each claim from the runs of one length and of the sizes up to one. A'
          ' proxy can be trusted for a claim from where on all verdicts agree.',
          functools.partial(regimes.verdicts, judged),
      )
  ]


def curve_plots(results: Results, curves: pd.DataFrame) -> list[Plot]:
  """Figures of training losses and attention logits."""
  measured = curves[results_lib.LOGIT].notna().any()
  several_rates = _has_several_rates(results)
  probed = results.runs['run'].isin(curves['run'][curves[results_lib.LOGIT].notna()])
  sizes = results.runs['parameters'][probed].nunique()
  absent = 'No attention logits have been logged; see config.probe.every_steps.'
  return [
      Plot(
          'attention_logits_by_learning_rate',
          'Attention logits against learning rate',
          'The highest attention logit of block 0 during training, median over seeds. As logits'
          ' grow, attention collapses onto single tokens and the loss rises.',
          functools.partial(lr_curves.logits_by_learning_rate, results, curves)
          if measured and several_rates
          else None,
          'This needs at least two learning rates.' if measured else absent,
      ),
      Plot(
          'attention_logits_by_parameters',
          'Attention logits against size',
          'The same logits, with a line per learning rate. Where a line approaches the dashed one,'
          ' larger models are expected to be unstable at that learning rate.',
          functools.partial(lr_curves.logits_by_parameters, results, curves)
          if sizes > 1
          else None,
          'This needs attention logits of at least two sizes.',
      ),
      Plot(
          'training_curves',
          'Training curves of the largest size',
          'Loss and attention logits over training, with a line per learning rate. Where the logits'
          ' grow first and the loss follows, they are the likely cause.',
          functools.partial(lr_curves.training_curves, results, curves)
          if curves['loss'].notna().any()
          else None,
          'No step has been logged yet.',
      ),
  ]


def _has_several_rates(results: Results) -> bool:
  """Whether figures against learning rate are shown; other swept numbers have their own figures."""
  return results.runs['learning_rate'].nunique() > 1 or not results.groups


def number_plots(results: Results) -> list[Plot]:
  """Figures of the loss against each number that the sweep varies besides size and LR."""
  if not lr_sensitivity.counted_loss(results.runs).notna().any():
    return []
  short = labels.short_names(results.groups)
  names = {field: short[field] for field in probe_plots_lib.numbers(results)}
  return [
      Plot(
          f'loss_by_{_file_name(name, number)}',
          f'Final loss against {probe_plots_lib.axis_label(results, field)}',
          'The same losses, with a line per learning rate. A flat line means that the number hardly'
          ' matters.',
          functools.partial(probe_plots_lib.loss_by_number, results, field),
      )
      for number, (field, name) in enumerate(names.items(), 1)
  ]


def _file_name(name: str, number: int) -> str:
  """A name that is valid in files and ids; columns of a CSV file may have any name."""
  # loss_by_learning_rate is the name of another figure.
  is_valid = re.fullmatch(r'[A-Za-z0-9_.]{1,60}', name) and name != 'learning_rate'
  return name if is_valid else f'column-{number}'


def probe_plots(results: Results, curves: pd.DataFrame) -> list[Plot]:
  """Figures of probes other than attention logits; those without data are left out."""
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
            'RMS of the first MLP layer of block 0. Gradients decrease with size and learning rate;'
            " where they approach AdamW's eps, the dashed line, updates vanish.",
            functools.partial(probe_plots_lib.gradients, results, curves),
        )
    )
  if measured(output) and sizes > 1:
    found.append(
        Plot(
            'block_outputs',
            "RMS of a block's output",
            'RMS of the residual stream after the block, median over seeds. As it grows with the'
            ' learning rate, normalisation shrinks the gradients that reach the blocks.',
            functools.partial(probe_plots_lib.outputs, results, curves),
        )
    )
  if any(map(measured, probe_plots_lib.NORMS)):
    found.append(
        Plot(
            'query_key_norms',
            'Queries and keys of the largest size',
            'The factors of the attention logits of block 0: the norms of queries and keys, and the'
            ' cosine between a query and the key with which it has its highest logit.',
            functools.partial(probe_plots_lib.norms, results, curves),
        )
    )
  return found


def extension_plots(
    results: Results, curves: pd.DataFrame, measured: Sequence[str]
) -> list[Plot]:
  """Figures of what probes of the config file measured, the first EXTENSION_PLOTS of the names."""
  if not _has_several_rates(results):
    return []
  logged = [name for name in measured if curves[name].notna().any()]
  found = []
  for number, name in enumerate(logged[:EXTENSION_PLOTS], 1):
    caption = (
        'Measured by a probe of the config file: the mean over the last'
        f' {100 * results_lib.LATE:g} % of the steps, median over seeds.'
    )
    if number == EXTENSION_PLOTS < len(logged):
      caption += f' Not shown: {len(logged) - number} more, in metrics.jsonl and TensorBoard.'
    found.append(
        Plot(
            f'probe_{number}_{re.sub("[^A-Za-z0-9_.]", "-", name)[:60]}',
            f'{labels.printable(name)} against learning rate',
            caption,
            functools.partial(probe_plots_lib.by_learning_rate, results, curves, name),
        )
    )
  return found


def probes(results: Results) -> list[str]:
  """The probes that the page needs, besides those of extensions."""
  return [results_lib.LOGIT, *probe_plots_lib.probes(results), *registry.probes(results)]
