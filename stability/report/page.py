"""The report: one self-contained HTML page, its figures as files, and its tables as CSV."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from stability.analysis import coordinate_check as coordinate_check_lib
from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis import timeline as timeline_lib
from stability.analysis.claims import registry
from stability.analysis.prediction import observations
from stability.analysis.results import Results
from stability.report import labels, predictions, terminal
from stability.report.plots import selection, style
from stability.storage import files, schema, sweeps


def write_report(workdir: Path) -> Path:
  """Writes workdir/report/ from a sweep's files, finished or not; returns its index.html."""
  sweep = sweeps.read_sweep(workdir)
  schema.check_data(workdir / 'sweep.json', sweep.data, schema.SHOWN)
  results = results_lib.load_workdir(workdir)
  table = lr_sensitivity.lr_sensitivity(results)
  curves = results_lib.load_curves(workdir, [*selection.probes(results), *observations.PROBES])
  larger = predictions.section(results, curves)
  config = {'config file': sweep.config_file, 'scale': sweep.scale}
  overrides = {f'--config.{field}': value for field, value in sweep.overrides.items()}
  return _write(
      workdir / 'report',
      results,
      table,
      registry.judge_results(results, curves),
      shown=[
          *selection.loss_plots(results, table, sweep.data['bigram_loss']),
          *selection.curve_plots(results, curves),
          *selection.probe_plots(results, curves),
          *(larger.plots if larger else ()),
      ],
      title=f'Training stability: {Path(sweep.config_file).stem}',
      coordinate_check=_coordinate_check(workdir, results),
      story=timeline_lib.load(workdir),
      facts={
          'Sweep': config | overrides,
          'Data': _data(sweep.data),
          'Versions': sweep.versions,
      },
      larger=larger,
  )


def write_results_report(results: Results, output: Path) -> Path:
  """Writes the report of any trainer's results into the folder output; returns its index.html."""
  table = lr_sensitivity.lr_sensitivity(results)
  return _write(
      output,
      results,
      table,
      registry.judge_results(results),
      shown=selection.loss_plots(results, table, bigram_loss=None),
      title='Training stability',
      coordinate_check=pd.DataFrame(),
      story=pd.DataFrame(),
      facts={},
  )


def _write(
    folder: Path,
    results: Results,
    table: pd.DataFrame,
    judged: pd.DataFrame,
    shown: Sequence[selection.Plot],
    title: str,
    coordinate_check: pd.DataFrame,
    story: pd.DataFrame,
    facts: dict[str, dict[str, Any]],
    larger: predictions.Section | None = None,
) -> Path:
  drawn = [_drawn(plot, folder) for plot in shown]
  files.write_atomic(folder / 'lr_sensitivity.csv', table.to_csv(index=False))
  files.write_atomic(folder / 'claims.csv', judged.to_csv(index=False))
  if larger is not None:
    predictions.write_tables(larger.predictions, folder)
  counts = results.runs['status'].value_counts(sort=False).to_dict()
  page = render(
      'template.html.j2',
      title=title,
      about=_about(results),
      findings=list(
          filter(None, (finding(results, table), best(results, table), terminal.rescued(results)))
      ),
      counts=counts,
      uncounted={name: n for name, n in counts.items() if name not in lr_sensitivity.COUNTED},
      plots=drawn,
      claims=claim_cells(terminal.readable_claims(judged)),
      coordinate_check=coordinate_check,
      story=story,
      sensitivity=terminal.readable(table),
      runs=_readable_runs(results),
      windows=_windows(results),
      larger=larger,
      text_columns=[*labels.fields(results.groups).values(), 'status', 'run', 'error', 'verdict'],
      facts=facts,
  )
  files.write_atomic(folder / 'index.html', page)
  return folder / 'index.html'


def _drawn(plot: selection.Plot, folder: Path) -> tuple[selection.Plot, Markup | None]:
  """A figure, written to its files, for the page; None where there is none, and why."""
  if plot.draw is None:
    return plot, None
  try:
    figure = plot.draw()
  except style.TooMany as error:
    return dataclasses.replace(plot, absent=str(error)), None
  svg = style.save(figure, 'svg')
  files.write_atomic(folder / f'{plot.name}.svg', svg)
  files.write_atomic(folder / f'{plot.name}.png', style.save(figure, 'png'))
  return plot, _inline(svg, plot.name)


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


def claim_cells(readable: pd.DataFrame) -> pd.DataFrame:
  """The claims for a page: beneath each, what its effect is and why it is undecided."""
  cell = Markup('{}<br><span class="note">{}</span>')
  beneath = readable['what the effect is'] + readable['reason'].map(
      lambda reason: reason and f'; undecided: {reason}'
  )
  cells = [cell.format(*pair) for pair in zip(readable['claim'], beneath, strict=True)]
  return readable.assign(claim=cells).drop(columns=['what the effect is', 'reason'])


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
  parts = [count(len(rates), 'learning rate')]
  if len(rates) > 1:
    parts[0] += f' from {labels.number(rates[0])} to {labels.number(rates[-1])}'
  sizes = runs.dropna(subset='parameters').sort_values('parameters')['parameters'].unique()
  if len(sizes):
    parts.insert(0, f'{_and(map(labels.parameters, sizes))} parameters')
  for name, short in labels.fields(results.groups).items():
    parts.append(f'{short} {_and(map(labels.value, runs[name].unique()))}')
  parts.append(count(runs['seed'].nunique(), 'seed'))
  return f'{count(len(runs), "run")}: {", ".join(parts)}.'


def _windows(results: Results) -> str:
  """Over which learning rates LR sensitivity is, where it is not over all."""
  if results.not_comparable is not None:
    return f'It is not compared here: {results.not_comparable} changes what a learning rate means.'
  if results.windows:
    return 'Where windows of learning rates are named, it is the lowest of those within each.'
  return ''


def count(number: int, noun: str) -> str:
  """As `1 seed` or `3 seeds`."""
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
      for (size,), rows in results_lib.split(decided, ['size'])
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


def _coordinate_check(workdir: Path, results: Results) -> pd.DataFrame:
  """Slopes of activations on the width at the last step, a row per intervention, as text.

  Empty unless the sweep is such a check: parameterizations over widths at one learning rate.
  """
  runs = results.runs
  is_check = (
      any(field.startswith('parameterization.') for field in results.groups)
      and coordinate_check_lib.WIDTH in results.sizes
      and runs['learning_rate'].nunique() == 1
  )
  if not is_check:
    return pd.DataFrame()
  slopes = coordinate_check_lib.slopes(results, coordinate_check_lib.load_activations(workdir))
  slopes = slopes[slopes['step'] == slopes['step'].max()]
  short = labels.fields(results.groups)
  rows = []
  for values, of_row in results_lib.split(slopes, results.groups):
    row = dict(zip(short.values(), map(labels.value, values), strict=True))
    found = of_row.groupby('probe', sort=False)['slope'].mean()
    probes = (probe.removeprefix('activation_rms/') for probe in found.index)
    rows.append(row | dict(zip(probes, map('{:+.2f}'.format, found), strict=True)))
  return pd.DataFrame(rows).fillna('')


def _data(data: files.Json) -> dict[str, str]:
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
