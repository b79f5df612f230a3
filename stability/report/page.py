"""The report: one self-contained HTML page, with its figures as files and its tables as CSV."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from stability.analysis import alarm_log, inert, lr_sensitivity, several_sweeps
from stability.analysis import coordinate_check as coordinate_check_lib
from stability.analysis import results as results_lib
from stability.analysis import timeline as timeline_lib
from stability.analysis.claims import regime_verdicts, registry
from stability.analysis.claims import retrieval as retrieval_claims
from stability.analysis.prediction import observations, targets
from stability.analysis.results import Results
from stability.report import (
  figure_files,
  findings,
  labels,
  latex,
  other_text,
  predictions,
  retrieval,
  tables,
)
from stability.report import leaderboard as leaderboard_lib
from stability.report.options import Options
from stability.report.plots import selection
from stability.storage import files, other_text_csv, results_csv, retrieval_csv, schema, sweeps

DEFAULTS = Options()
_EMPTY = pd.DataFrame()


@dataclasses.dataclass(frozen=True)
class Content:
  """What a page shows beside the runs and their LR sensitivity; the template has the same names.

  Attributes:
    shown: the figures that it can have.
    title: its heading.
    judged: the verdicts on the claims; None: they are not judged.
    by_regime: the verdicts by run length and size; see regime_verdicts.judge.
    differing: what several sweeps differ in, a sentence.
    differences: those between several sweeps.
    board: the leaderboard, if there is one.
    coordinate_check: see _coordinate_check.
    acted: see inert.by_arm.
    alarms: see alarm_log.load.
    timeline: see timeline.load.
    forks: the table of forks.
    facts: see `facts`.
    larger: see predictions.section.
    retrieved: measurements of retrieval beside the runs.
    forgotten: the table of losses on other text.
  """

  shown: Sequence[selection.Plot]
  title: str
  judged: pd.DataFrame | None = None
  by_regime: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  differing: str = ''
  differences: several_sweeps.Differences | None = None
  board: leaderboard_lib.Section | None = None
  coordinate_check: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  acted: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  alarms: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  timeline: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  forks: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  facts: Mapping[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  larger: predictions.Section | None = None
  retrieved: Sequence[retrieval_csv.Row] = ()
  forgotten: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


def write_report(
    workdir: Path,
    output: Path | None = None,
    options: Options = DEFAULTS,
    predicted: predictions.Predictions | None = None,
) -> Path:
  """Writes the report on a sweep, finished or not, to a folder, by default workdir/report/.

  Args:
    workdir: the folder of the sweep.
    output: the folder for the report.
    options: see Options.
    predicted: predictions to show; None: those for the targets that are kept with the workdir.

  Returns:
    The path of its index.html.
  """
  sweep = sweeps.read_sweep(workdir)
  if not sweep.is_imported:
    schema.check_data(workdir / 'sweep.json', sweep.data, schema.SHOWN)
  results = dataclasses.replace(results_lib.load_workdir(workdir), interval=options.interval)
  table = lr_sensitivity.lr_sensitivity(results)
  probes = [*selection.probes(results), *observations.PROBES, *regime_verdicts.probes(results)]
  probes += sweep.own_probes
  curves = results_lib.load_curves(workdir, probes)
  if predicted is None:
    predicted = predictions.wanted(results, curves, targets.load(workdir))
  larger = None if predicted is None else predictions.section(predicted)
  alarms = alarm_log.load(workdir)
  acted = inert.load(workdir)
  measured = retrieval_csv.read(workdir)
  by_regime = regime_verdicts.judge(results, curves) if regime_verdicts.applies(results) else _EMPTY
  return write_files(
      output or workdir / 'report',
      options,
      results,
      table,
      Content(
          shown=[
              *selection.loss_plots(results, table, sweep.data.get('bigram_loss')),
              *selection.curve_plots(results, curves),
              *selection.probe_plots(results, curves),
              *selection.extension_plots(results, curves, sweep.own_probes),
              *(selection.regime_plots(by_regime) if len(by_regime) else ()),
              *(larger.plots if larger else ()),
          ],
          title=f'Training stability: {Path(sweep.config_file).stem}',
          judged=_judged(results, curves, measured),
          by_regime=by_regime,
          coordinate_check=_coordinate_check(workdir, results),
          board=leaderboard_lib.section(results, acted, options.costs),
          acted=inert.by_arm(results, acted),
          alarms=alarms[~alarms['acted_on']].drop(columns='acted_on'),
          timeline=timeline_lib.load(workdir),
          forks=tables.forks(results_csv.read_fork_results(workdir), sweeps.read_forks(workdir)),
          facts=facts(sweep),
          larger=larger,
          retrieved=measured,
          forgotten=other_text.table(results, other_text_csv.read(workdir)),
      ),
  )


def _judged(
    results: Results, curves: pd.DataFrame, measured: Sequence[retrieval_csv.Row]
) -> pd.DataFrame:
  """The verdicts on all claims; on those about retrieval only if it was measured."""
  judged = registry.judge(results, curves)
  of_retrieval = retrieval_claims.judge(results, measured)
  return judged if of_retrieval.empty else pd.concat([judged, of_retrieval], ignore_index=True)


def write_results_report(results: Results, output: Path, options: Options = DEFAULTS) -> Path:
  """Writes the report on any trainer's results to a folder; returns the path of its index.html."""
  results = dataclasses.replace(results, interval=options.interval)
  table = lr_sensitivity.lr_sensitivity(results)
  return write_files(
      output,
      options,
      results,
      table,
      Content(
          shown=selection.loss_plots(results, table, bigram_loss=None),
          title='Training stability',
          judged=registry.judge(results),
          board=leaderboard_lib.section(results, costs=options.costs),
      ),
  )


def write_files(
    folder: Path, options: Options, results: Results, table: pd.DataFrame, content: Content
) -> Path:
  """Writes the files of a report; returns the path of its index.html.

  Args:
    folder: where to write.
    options: see Options; its interval is that of `results`.
    results: the runs.
    table: their LR sensitivity.
    content: what else the page shows.
  """
  board, judged, by_regime, acted = content.board, content.judged, content.by_regime, content.acted
  chosen = figure_files.choose([*(board.plots if board else ()), *content.shown], options.figures)
  arms = results.runs[results.groups].drop_duplicates().to_numpy(object)
  labels.refuse_equal([labels.pairs(results.groups, values) for values in arms], 'arms')
  sensitivity = tables.sensitivities(results, table)
  text_columns = [*labels.fields(results.groups).values(), 'status', 'run', 'error', 'verdict']
  drawn = [figure_files.write(plot, folder, options) for plot in chosen]
  files.write_atomic(folder / 'lr_sensitivity.csv', table.to_csv(index=False))
  if options.latex:
    text = latex.tabular(sensitivity, ['parameters', *text_columns])
    files.write_atomic(folder / 'lr_sensitivity.tex', text)
  if judged is not None:
    files.write_atomic(folder / 'claims.csv', judged.to_csv(index=False))
  if len(by_regime):
    files.write_atomic(folder / 'regimes.csv', by_regime.to_csv(index=False))
  differences, paired = content.differences, pd.DataFrame()
  if differences is not None and not differences.table.empty:
    paired = tables.differences(results, differences.table)
    files.write_atomic(folder / 'differences.csv', differences.table.to_csv(index=False))
  if content.larger is not None:
    predictions.write_tables(content.larger.predictions, folder)
  if board is not None:
    files.write_atomic(folder / 'leaderboard.csv', board.table.to_csv(index=False))
  counts = results.runs['status'].value_counts(sort=False).to_dict()
  sentences = (
      *(findings.on_differences(results, differences) if differences else ()),
      None if board else findings.on_lr_sensitivity(results, table),  # it would name every arm
      findings.on_instability(results),
      findings.on_best_loss(results, table),
      tables.rescue_sentence(results),
      None if acted.empty or board else findings.on_inert(results, acted),
  )
  as_text = {
      'acted': acted if acted.empty else tables.acted(results, acted),
      'retrieved': retrieval.table(content.retrieved),
  }
  page = render(
      'template.html.j2',
      **vars(content) | as_text,
      description=findings.description(results),
      notes=results.notes,
      findings=list(filter(None, sentences)),
      counts=counts,
      uncounted={name: n for name, n in counts.items() if name not in lr_sensitivity.COUNTED},
      plots=drawn,
      paired=paired,
      claims=_EMPTY if judged is None else claim_cells(tables.claims(judged)),
      tally='' if judged is None else tables.count_verdicts(judged['verdict'][judged['n'] > 0]),
      regimes=tables.first_regimes(regime_verdicts.first(by_regime)) if len(by_regime) else _EMPTY,
      sensitivity=sensitivity,
      interval=tables.interval(results),
      sweeps=results.sweeps,
      rescues=tables.rescues(results),
      runs=tables.runs(results),
      windows=_windows(results),
      retrieved_sentences=retrieval.sentences(content.retrieved),
      text_columns=text_columns,
  )
  files.write_atomic(folder / 'index.html', page)
  return folder / 'index.html'


def render(template: str, **values: Any) -> str:
  """Renders a template of this folder, with every value escaped."""
  templates = jinja2.Environment(
      loader=jinja2.FileSystemLoader(Path(__file__).parent),
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
  )
  return templates.get_template(template).render(**values)


def claim_cells(text: pd.DataFrame) -> pd.DataFrame:
  """The result of tables.claims, with explanations beneath each claim instead of in columns."""
  cell = Markup('{}<br><span class="note">{}</span>')
  notes = ['what the effect is', 'variant', 'reason']
  explanations = (_explanation(*row) for row in text[notes].itertuples(index=False))
  cells = [cell.format(*pair) for pair in zip(text['claim'], explanations, strict=True)]
  return text.assign(claim=cells).drop(columns=notes)


def _explanation(measure: str, variant: str, reason: str) -> str:
  parts = [measure]
  if variant:
    parts.append(f"with {variant} in place of the paper's value")
  if reason:
    parts.append(f'undecided: {reason}')
  return '; '.join(parts)


def _windows(results: Results) -> str:
  """A note on windows of learning rates; empty if LR sensitivity is over all learning rates."""
  if results.not_comparable is not None:
    return f'It is not computed here: {results.not_comparable} changes what a learning rate means.'
  if results.windows:
    return 'For interventions with several windows of learning rates, it is the lowest over them.'
  return ''


def _coordinate_check(workdir: Path, results: Results) -> pd.DataFrame:
  """The exponents with which activations scale with width at the last step.

  A row per intervention. Empty unless the sweep is a coordinate check: it varies parameterization
  and width, but not the learning rate.
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


def facts(sweep: sweeps.Sweep) -> dict[str, dict[str, Any]]:
  """Where the runs come from: heading -> label -> text."""
  if sweep.is_imported:
    given = {f'--{name}': value for name, value in sweep.sources.items() if name != 'files'}
    hashes = sweep.sources.get('files', {})
    return {'Imported from': {path: f'SHA-256 {sha256}' for path, sha256 in hashes.items()} | given}
  config = {'config file': sweep.config_file, 'scale': sweep.scale}
  overrides = {f'--config.{field}': value for field, value in sweep.overrides.items()}
  return {
      'Sweep': config | overrides,
      'Data': _data(sweep.data),
      'Versions': sweep.versions,
  }


def _data(data: files.Json) -> dict[str, str]:
  """Facts about the sweep's data: label -> text."""
  facts = {
      'tokenizer': f'{data["tokenizer"]}, vocabulary of {data["vocabulary_size"]:,}',
      'training text': f'{data["train_tokens"]:,} tokens',
      'validation text': f'{data["validation_tokens"]:,} tokens',
      'unigram model': f'{data["unigram_loss"]:.3f} nats',
      'bigram model': f'{data["bigram_loss"]:.3f} nats, from the previous token alone',
  }
  if data['entropy_rate'] is not None:
    facts['entropy rate'] = f'{data["entropy_rate"]:.3f} nats, the lowest loss possible'
  return facts
