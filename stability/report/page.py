"""The report: one self-contained HTML page, its figures as files, and its tables as CSV."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from stability import workdir as workdir_lib
from stability.analysis import claims, sensitivity, tables
from stability.analysis.tables import Results
from stability.report import drawing, figures, labels, probe_figures, terminal


@dataclasses.dataclass(frozen=True)
class Plot:
  """A figure of the page."""

  name: str  # of its files
  title: str
  caption: str
  draw: Callable[[], Figure] | None  # None: there is nothing to draw yet
  absent: str  # why there may be none


def write_report(workdir: Path) -> Path:
  """Writes workdir/report/ from a sweep's files, finished or not; returns its index.html."""
  sweep = workdir_lib.read_sweep(workdir)
  results = tables.load_workdir(workdir)
  table = sensitivity.lr_sensitivity(results)
  curves = tables.load_curves(workdir, _probes(results))
  config = {'config file': sweep['config_file'], 'scale': sweep['scale']}
  overrides = {f'--config.{field}': value for field, value in sweep['overrides'].items()}
  return _write(
      workdir / 'report',
      results,
      table,
      claims.judge_results(results, curves),
      plots=[
          *_loss_plots(results, table, sweep['data']['bigram_loss']),
          *_curve_plots(results, curves),
          *_probe_plots(results, curves),
      ],
      title=f'Training stability: {Path(sweep["config_file"]).stem}',
      facts={
          'Sweep': config | overrides,
          'Data': _data(sweep['data']),
          'Versions': sweep['versions'],
      },
  )


def write_results_report(results: Results, output: Path) -> Path:
  """Writes the report of any trainer's results into the folder output; returns its index.html."""
  table = sensitivity.lr_sensitivity(results)
  plots = _loss_plots(results, table, bigram_loss=None)
  judged = claims.judge_results(results)
  return _write(output, results, table, judged, plots, title='Training stability', facts={})


def _write(
    folder: Path,
    results: Results,
    table: pd.DataFrame,
    judged: pd.DataFrame,
    plots: list[Plot],
    title: str,
    facts: dict[str, dict[str, Any]],
) -> Path:
  drawn = []
  for plot in plots:
    svg = None
    if plot.draw is not None:
      figure = plot.draw()
      svg = drawing.save(figure, 'svg')
      workdir_lib.write_whole(folder / f'{plot.name}.svg', svg)
      workdir_lib.write_whole(folder / f'{plot.name}.png', drawing.save(figure, 'png'))
    drawn.append((plot, None if svg is None else _inline(svg, plot.name)))
  workdir_lib.write_whole(folder / 'lr_sensitivity.csv', table.to_csv(index=False))
  workdir_lib.write_whole(folder / 'claims.csv', judged.to_csv(index=False))
  counts = results.runs['status'].value_counts(sort=False).to_dict()
  page = render(
      'template.html.j2',
      title=title,
      about=_about(results),
      findings=list(filter(None, (finding(results, table), best(results, table)))),
      counts=counts,
      uncounted={name: n for name, n in counts.items() if name not in sensitivity.COUNTED},
      plots=drawn,
      claims=terminal.readable_claims(judged),
      sensitivity=terminal.readable(table),
      runs=_readable_runs(results),
      windows=_windows(results),
      text_columns=[*labels.fields(results.groups).values(), 'status', 'run', 'error', 'verdict'],
      long_columns=['claim', 'what the effect is', 'reason'],
      facts=facts,
  )
  workdir_lib.write_whole(folder / 'index.html', page)
  return folder / 'index.html'


def render(template: str, **values: Any) -> str:
  """A page from one of the templates beside this file, in which every value is escaped."""
  templates = jinja2.Environment(
      loader=jinja2.FileSystemLoader(Path(__file__).parent),
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
  )
  return templates.get_template(template).render(**values)


# The figures.


def _loss_plots(results: Results, table: pd.DataFrame, bigram_loss: float | None) -> list[Plot]:
  finished = sensitivity.counted_loss(results.runs).notna().any()
  # A point per panel is no curve; a sweep of another number has a figure of its own.
  several_rates = results.runs['learning_rate'].nunique() > 1 or not results.groups
  return [
      Plot(
          'loss_by_learning_rate',
          'Final loss against learning rate',
          'A flat curve is a stable one: the learning rate hardly matters. Points are means over'
          ' seeds, bands their range; no loss counts as worse than the initial one.',
          (lambda: figures.loss_by_learning_rate(results, bigram_loss))
          if finished and several_rates
          else None,
          'This needs two learning rates or more.' if finished else 'No run has finished yet.',
      ),
      Plot(
          'lr_sensitivity',
          'LR sensitivity against size',
          'How far the loss is above its best, on average over the learning rates. A line that'
          ' rises says that larger models will need more care; bars are 90 % intervals over seeds.',
          (lambda: figures.sensitivity_by_parameters(results, table))
          if table['parameters'][table['lr_sensitivity'] > 0].nunique() > 1
          else None,
          'This needs finished runs of two sizes or more, with their parameters.',
      ),
      *_number_plots(results),
  ]


def _curve_plots(results: Results, curves: pd.DataFrame) -> list[Plot]:
  measured = curves[tables.LOGIT].notna().any()
  probed = results.runs['run'].isin(curves['run'][curves[tables.LOGIT].notna()])
  sizes = results.runs['parameters'][probed].nunique()
  absent = 'No attention logits have been logged; config.probe.every_steps asks for them.'
  return [
      Plot(
          'attention_logits_by_learning_rate',
          'Attention logits against learning rate',
          'The highest attention logit that block 0 reached while training, median over seeds.'
          ' As logits grow, attention collapses onto single tokens, and the loss rises.',
          (lambda: figures.logits_by_learning_rate(results, curves)) if measured else None,
          absent,
      ),
      Plot(
          'attention_logits_by_parameters',
          'Attention logits against size',
          'The same numbers at each learning rate. Lines that climb towards the dashed one tell at'
          ' which size a learning rate that is still fine here stops being so.',
          (lambda: figures.logits_by_parameters(results, curves)) if sizes > 1 else None,
          'This needs attention logits of two sizes or more.',
      ),
      Plot(
          'training_curves',
          'Training curves of the largest size',
          'Loss and attention logits step by step, one line per learning rate. Where the logits'
          ' take off first and the loss follows, they are the likely cause.',
          (lambda: figures.training_curves(results, curves))
          if curves['loss'].notna().any()
          else None,
          'No step has been logged yet.',
      ),
  ]


def _number_plots(results: Results) -> list[Plot]:
  """Loss against each number that the sweep varies beside size and learning rate."""
  if not sensitivity.counted_loss(results.runs).notna().any():
    return []
  names = {field: labels.fields(results.groups)[field] for field in probe_figures.numbers(results)}
  return [
      Plot(
          f'loss_by_{name}',
          f'Final loss against {name.replace("_", " ")}',
          'The same losses, a line per learning rate; a flat line says that the number hardly'
          ' matters.',
          functools.partial(probe_figures.loss_by_number, results, field),
          '',
      )
      for field, name in names.items()
  ]


def _probe_plots(results: Results, curves: pd.DataFrame) -> list[Plot]:
  """What else was measured inside; a figure without data is left out."""
  sizes = results.runs['parameters'].nunique()
  output = probe_figures.output_rms(results)

  def measured(probe: str | None) -> bool:
    return probe is not None and curves[probe].notna().any()

  found = []
  if measured(probe_figures.GRADIENT) and (
      sizes > 1 or probe_figures.EPS in probe_figures.numbers(results)
  ):
    found.append(
        Plot(
            'gradients',
            'Gradients and updates at the end of training',
            'RMS over the first MLP layer of block 0. Gradients fall with size and learning rate;'
            " where they come near AdamW's eps, the dashed line, updates vanish.",
            lambda: probe_figures.gradients(results, curves),
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
            lambda: probe_figures.outputs(results, curves),
            '',
        )
    )
  if any(map(measured, probe_figures.NORMS)):
    found.append(
        Plot(
            'query_key_norms',
            'Queries and keys of the largest size',
            'What attention logits of block 0 are made of: the norms of queries and keys, and the'
            ' cosine between a query and the key of its highest logit.',
            lambda: probe_figures.norms(results, curves),
            '',
        )
    )
  return found


def _probes(results: Results) -> list[str]:
  """What the page needs of the curves."""
  return [tables.LOGIT, *probe_figures.probes(results), *claims.probes(results)]


def _inline(svg: bytes, name: str) -> Markup:
  """An SVG file as an element of the page; its ids get a prefix, as figures share some."""
  text = svg.decode()
  text = text[text.index('<svg') :]
  return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', text))


# The words.


def _about(results: Results) -> str:
  """One sentence: what was run."""
  runs = results.runs
  rates = sorted(runs['learning_rate'].unique())
  parts = [_count(len(rates), 'learning rate')]
  if len(rates) > 1:
    parts[0] += f' from {labels.number(rates[0])} to {labels.number(rates[-1])}'
  sizes = runs.dropna(subset='parameters').sort_values('parameters')['parameters'].unique()
  if len(sizes):
    parts.insert(0, f'{_and(map(labels.parameters, sizes))} parameters')
  for name, short in labels.fields(results.groups).items():
    parts.append(f'{short} {_and(map(labels.value, runs[name].unique()))}')
  parts.append(_count(runs['seed'].nunique(), 'seed'))
  return f'{_count(len(runs), "run")}: {", ".join(parts)}.'


def _windows(results: Results) -> str:
  """Over which learning rates LR sensitivity is, where it is not over all."""
  if results.not_comparable is not None:
    return f'It is not compared here: {results.not_comparable} changes what a learning rate means.'
  if results.windows:
    return 'Where windows of learning rates are named, it is the lowest of those within each.'
  return ''


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _and(words: Iterable[str]) -> str:
  *first, last = words
  return f'{", ".join(first)} and {last}' if first else last


def finding(results: Results, table: pd.DataFrame) -> str | None:
  """What LR sensitivity says, in a sentence; None while it says nothing.

  Two interventions are compared at each size, more are ranked at the largest. Only sizes count at
  which all interventions are decided, that is, lack no run.
  """
  names = [labels.pairs(results.groups, row) for row in table[results.groups].to_numpy(object)]
  table = table.assign(name=names, size=labels.sizes(table, results.sizes))
  decided = table[(table['missing'] == 0) & (table['lr_sensitivity'] > 0)]
  sizes = {
      size: rows.set_index('name')['lr_sensitivity'].sort_values(kind='stable')
      for (size,), rows in tables.split(decided, ['size'])
      if len(rows) == len(set(names))
  }
  if not sizes:
    return None
  largest = list(sizes)[-1]
  if len(set(names)) == 1:
    return f'LR sensitivity is {_and(f"{at.iloc[0]:.3f} at {size}" for size, at in sizes.items())}.'
  if len(set(names)) == 2:
    better, worse = sizes[largest].index
    times = [f'{at[worse] / at[better]:.1f} times at {size}' for size, at in sizes.items()]
    return f'LR sensitivity with {worse}, compared with {better}: {_and(times)} parameters.'
  ranks = [f'{name} ({value:.3f})' for name, value in sizes[largest].items()]
  return f'LR sensitivity at {largest} parameters, lowest first: {", ".join(ranks)}.'


def best(results: Results, table: pd.DataFrame) -> str | None:
  """Where the lowest loss is, in a sentence; None while no run counts."""
  if table['best_loss'].isna().all():
    return None
  row = table.loc[table['best_loss'].idxmin()]
  where = [f'{labels.parameters(row["parameters"])} parameters']
  if results.groups:
    where.append(labels.pairs(results.groups, row[results.groups]))
  where.append(f'learning rate {labels.number(row["best_learning_rate"])}')
  return f'The lowest loss is {row["best_loss"]:.3f} nats: {", ".join(where)}.'


def _data(data: workdir_lib.Json) -> dict[str, str]:
  """What the runs were trained on."""
  facts = {
      'tokenizer': f'{data["tokenizer"]}, vocabulary of {data["vocabulary_size"]:,}',
      'training text': f'{data["train_tokens"]:,} tokens',
      'validation text': f'{data["validation_tokens"]:,} tokens',
      'unigram model': f'{data["unigram_loss"]:.3f} nats',
      'bigram model': f'{data["bigram_loss"]:.3f} nats: nothing but the token before is known',
  }
  if data['entropy_rate'] is not None:
    facts['entropy rate'] = f'{data["entropy_rate"]:.3f} nats: no model can be better'
  return facts


def _readable_runs(results: Results) -> pd.DataFrame:
  """The table of runs as text, failed ones first."""
  runs = results.runs
  text = pd.DataFrame({'status': runs['status']})
  text['parameters'] = labels.sizes(runs, results.sizes)
  for name, short in labels.fields(results.groups).items():
    text[short] = runs[name].map(labels.value)
  text['learning rate'] = runs['learning_rate'].map(labels.number)
  text['seed'] = runs['seed'].astype(str)
  text['initial loss'] = runs['initial_loss'].map(labels.decimals)
  text['final loss'] = runs['final_loss'].map(labels.decimals)
  if 'error' in runs and runs['error'].notna().any():
    # The last line of a traceback is the one that says what happened.
    text['error'] = [error.strip().split('\n')[-1] for error in runs['error'].fillna('')]
  text['run'] = runs['run']
  return text.sort_values('status', kind='stable', key=lambda status: status != 'failed')
