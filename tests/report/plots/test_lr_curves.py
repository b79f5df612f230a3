"""Figures of losses and logits show all the numbers they are given, legibly."""

import dataclasses
import itertools
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from helpers import made_up
from helpers.figures import collisions
from matplotlib import colors, pyplot
from matplotlib.text import Text

from stability import hyper
from stability.analysis import lr_sensitivity, results
from stability.report import labels
from stability.report.plots import lr_curves, style


class Sweep:
  """The input of the figures."""

  def __init__(self, workdir, **options):
    made_up.write_sweep(workdir, **options)
    self.results = results.load_workdir(workdir)
    self.table = lr_sensitivity.lr_sensitivity(self.results)
    self.curves = results.load_curves(workdir)

  def all_figures(self):
    return {
        'loss': lr_curves.loss_by_learning_rate(self.results, made_up.BIGRAM_LOSS),
        'sensitivity': lr_curves.sensitivity_by_parameters(self.results, self.table),
        'logits_rate': lr_curves.logits_by_learning_rate(self.results, self.curves),
        'logits_size': lr_curves.logits_by_parameters(self.results, self.curves),
        'curves': lr_curves.training_curves(self.results, self.curves),
    }


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  return Sweep(tmp_path_factory.mktemp('sweep'))


def lines(axis, marker):
  """The x and y of the drawn lines with this marker, in order."""
  return [
      (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
      for line in axis.lines
      if line.get_marker() == marker and len(line.get_xdata())
  ]


def legend(figure):
  return [text.get_text() for text in figure.legends[0].get_texts()]


def test_loss_figure(sweep):
  figure = lr_curves.loss_by_learning_rate(sweep.results, made_up.BIGRAM_LOSS)
  assert [axis.get_title() for axis in figure.axes] == ['qk_norm=layernorm', 'qk_norm=none']
  assert {axis.get_xscale() for axis in figure.axes} == {'log'}
  assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
  runs = sweep.results.runs
  of_line = runs[(runs['model.width'] == 32) & (runs['model.qk_norm'] == 'none')]
  x, y = lines(figure.axes[1], 'o')[2]  # each size has a line and a ring at its best
  np.testing.assert_array_equal(x, made_up.LEARNING_RATES)
  np.testing.assert_allclose(y, of_line.groupby('learning_rate')['final_loss'].mean())
  assert legend(figure) == [
      *('9.2K', '37K', '147K', 'best', 'diverged', 'above 3.35: drawn\nat the top edge'),
      *('initial loss\n5.55 (above)', 'bigram model\n2.48'),
  ]


def test_no_ring_where_nothing_trains(sweep):
  runs = sweep.results.runs
  of_none = runs['model.qk_norm'] == 'none'
  runs = runs.assign(final_loss=runs['final_loss'].mask(of_none))
  figure = lr_curves.loss_by_learning_rate(dataclasses.replace(sweep.results, runs=runs))
  rings = [
      sum(line.get_markersize() == style.RING['markersize'] for line in axis.lines)
      for axis in figure.axes
  ]
  assert rings == [3, 0]
  runs = runs.assign(final_loss=np.nan)
  figure = lr_curves.loss_by_learning_rate(dataclasses.replace(sweep.results, runs=runs))
  assert 'best' not in legend(figure)


def test_axis_shows_the_basin(sweep):
  """It ends at four times the margin of an unstable run; what is above has a mark at its edge."""
  runs = sweep.results.runs
  best = runs.groupby('parameters')['final_loss'].min()
  initial = runs.groupby('parameters')['initial_loss'].max()
  figure = lr_curves.loss_by_learning_rate(sweep.results)
  low, high = figure.axes[0].get_ylim()
  assert high == pytest.approx((best + 0.2 * (initial - best)).max(), abs=0.02)
  assert low == pytest.approx(best.min(), abs=0.08)
  above = runs[runs['model.qk_norm'] == 'none'].groupby(['learning_rate', 'parameters'])
  above = above['final_loss'].mean().fillna(np.inf) > high
  for axis, mark in ((figure.axes[1], '^'), (figure.axes[1], 'x')):
    assert all(y == [1.0] for _, y in lines(axis, mark))  # the edge
  marked = sorted(x[0] for mark in '^x' for x, _ in lines(figure.axes[1], mark))
  assert marked == sorted(rate for (rate, _), is_above in above.items() if is_above)


def test_best_and_diverged_are_marked(sweep):
  figure = lr_curves.loss_by_learning_rate(sweep.results)
  with_norm, without = figure.axes
  assert lines(with_norm, 'x') == []
  ((rate, height),) = lines(without, 'x')
  assert rate == [1.0] and height == [1.0]  # at the top edge, in place of a triangle
  rings = [
      line.get_xdata()[0] for line in with_norm.lines if line.get_markerfacecolor() == 'none'
  ]
  assert rings == [1e-2, 1e-2, 1e-2]
  assert not any('bigram' in text for text in legend(figure))


def test_diverged_run_within_the_axis(tmp_path):
  """Such as one of two seeds, while the other trains well."""
  sweep = Sweep(tmp_path, widths=(16,), interventions=[{}], rates=(1e-2, 3e-2))
  sweep.results.runs.loc[2, 'status'] = 'diverged'
  figure = lr_curves.loss_by_learning_rate(sweep.results)
  ((rate, loss),) = lines(figure.axes[0], 'x')
  expected = sweep.results.runs['final_loss'][2:].mean()
  assert rate == [3e-2] and loss == pytest.approx(expected)
  assert not any('edge' in text for text in legend(figure))


def test_mean_of_fewer_seeds_is_hollow(tmp_path, sweep):
  few = Sweep(tmp_path, widths=(16,), interventions=[{}], rates=(1e-2, 3e-2), leave_out=(3,))
  figure = lr_curves.loss_by_learning_rate(few.results)
  hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == 'white']
  ((rate, loss),) = [line.get_data() for line in hollow if len(line.get_xdata())]
  assert (rate, loss) == (3e-2, few.results.runs['final_loss'][2])
  assert legend(figure)[-1] == 'seeds missing'
  assert 'seeds missing' not in legend(lr_curves.loss_by_learning_rate(sweep.results))


def test_arm_that_learns_nothing_does_not_stretch_the_axis(sweep):
  runs = sweep.results.runs.copy()
  fails = runs['model.qk_norm'] == 'none'
  runs.loc[fails, 'final_loss'] = runs.loc[fails, 'initial_loss'] - 0.01
  figure = lr_curves.loss_by_learning_rate(dataclasses.replace(sweep.results, runs=runs))
  assert figure.axes[0].get_ylim()[1] < 3.5
  assert [len(lines(figure.axes[1], mark)) for mark in '^x'] == [20, 1]  # one diverged


def test_levels_outside_the_view_are_labelled(tmp_path):
  small = Sweep(tmp_path, widths=(16,), interventions=[{}])
  figure = lr_curves.loss_by_learning_rate(small.results, bigram_loss=0.5)
  assert legend(figure)[-2:] == ['initial loss\n5.55 (above)', 'bigram model\n0.50 (below)']
  assert 'diverged' not in legend(figure)
  assert figure.axes[0].get_title() == ''
  low, high = figure.axes[0].get_ylim()
  assert low > 2 and high < 5  # the made-up losses fill the view


def test_colours_of_sizes(sweep):
  figure = lr_curves.loss_by_learning_rate(sweep.results)
  light = [
      np.dot(colors.to_rgb(handle.get_color()), (0.2126, 0.7152, 0.0722))
      for handle in figure.legends[0].legend_handles[:3]
  ]
  assert light == sorted(light, reverse=True) and light[0] < 0.75


def test_sensitivity_figure_equals_the_table(sweep):
  figure = lr_curves.sensitivity_by_parameters(sweep.results, sweep.table)
  axis = figure.axes[0]
  assert (axis.get_xscale(), axis.get_yscale()) == ('log', 'log')
  for i, (name, marker) in enumerate([('layernorm', 'o'), ('none', 's')]):
    rows = sweep.table[sweep.table['model.qk_norm'] == name]
    x, y = lines(axis, marker)[0]
    np.testing.assert_array_equal(x, [9216, 36864, 147456])
    np.testing.assert_array_equal(y, rows['lr_sensitivity'])
    bars = np.array(axis.collections[i].get_segments())
    np.testing.assert_array_equal(bars[:, :, 1], rows[['low', 'high']])
  assert [tick.get_text() for tick in axis.get_xticklabels()] == ['9.2K', '37K', '147K']


def test_sensitivity_with_missing_runs_is_hollow(sweep):
  table = sweep.table.copy()
  table.loc[2, 'missing'] = 1  # 37K with layernorm
  figure = lr_curves.sensitivity_by_parameters(sweep.results, table)
  whole, hollow = [line for line in figure.axes[0].lines if line.get_marker() == 'o']
  assert list(whole.get_xdata()) == [9216, 147456]
  assert list(hollow.get_xdata()) == [36864] and hollow.get_markerfacecolor() == 'white'
  assert legend(figure)[-1] == 'undecided:\nruns missing'


def test_narrow_range_is_not_magnified(sweep):
  table = sweep.table.assign(lr_sensitivity=np.linspace(0.2, 0.21, 6), low=0.2, high=0.21)
  low, high = lr_curves.sensitivity_by_parameters(sweep.results, table).axes[0].get_ylim()
  assert high / low == pytest.approx(4)


def test_logits_are_the_maximum_over_training(sweep):
  curves = sweep.curves.copy()
  runs = sweep.results.runs
  chosen = runs[(runs['parameters'] == 9216) & (runs['learning_rate'] == 1.0)]
  of_chosen = curves['run'].isin(chosen['run'][chosen['model.qk_norm'] == 'none'])
  curves.loc[of_chosen & (curves['step'] == 100), results.LOGIT] = 7e7  # not the last
  figure = lr_curves.logits_by_learning_rate(sweep.results, curves)
  x, y = lines(figure.axes[1], 'o')[0]
  assert (x[-1], y[-1]) == (1.0, 7e7)
  figure = lr_curves.logits_by_parameters(sweep.results, curves)
  x, y = lines(figure.axes[1], 'o')[-1]  # the highest learning rate
  assert (x[0], y[0]) == (9216, 7e7)
  assert legend(figure)[:7] == ['1e-3', '3e-3', '1e-2', '3e-2', '1e-1', '3e-1', '1']


def test_line_at_1e4_is_in_view(sweep):
  curves = sweep.curves.assign(**{results.LOGIT: sweep.curves[results.LOGIT].clip(1, 20)})
  for figure in (
      lr_curves.logits_by_learning_rate(sweep.results, curves),
      lr_curves.logits_by_parameters(sweep.results, curves),
      lr_curves.training_curves(sweep.results, curves),
  ):
    low, high = figure.axes[-1].get_ylim()
    assert low < 1e4 < high
    assert [1e4, 1e4] in [list(line.get_ydata()) for line in figure.axes[-1].lines]


def test_training_curves_of_the_largest_size(sweep):
  figure = lr_curves.training_curves(sweep.results, sweep.curves)
  loss = figure.axes[1]
  drawn = lines(loss, 'None')
  assert len(drawn) == len(made_up.LEARNING_RATES)
  runs = sweep.results.runs
  runs = runs[(runs['model.width'] == 64) & (runs['model.qk_norm'] == 'none')]
  name = runs[(runs['learning_rate'] == 0.1) & (runs['seed'] == 0)]['run'].item()
  expected = sweep.curves[sweep.curves['run'] == name]
  np.testing.assert_array_equal(drawn[4][1], expected['loss'])
  assert loss.get_yscale() == 'log'
  ((step, _),) = lines(loss, 'x')
  assert step == [120]  # the last finite loss of the run that diverged
  assert figure.get_supxlabel() == 'step (147K parameters)'


def test_training_curves_without_probes(sweep):
  curves = sweep.curves.assign(**{results.LOGIT: np.nan})
  figure = lr_curves.training_curves(sweep.results, curves)
  assert len(figure.axes) == 2


def test_exploding_run_does_not_flatten_others(sweep):
  curves = sweep.curves.copy()
  first_seed = sweep.results.runs['run'].iloc[-2]
  curves.loc[curves['run'] == first_seed, 'loss'] = 1e6
  _, high = lr_curves.training_curves(sweep.results, curves).axes[0].get_ylim()
  assert high < 2 * made_up.INITIAL_LOSS


MANY = {
    'six interventions of two fields': {
        'interventions': hyper.product([
            hyper.sweep('model.qk_norm', ['layernorm', 'none']),
            hyper.sweep('objective.z_loss', [0.0, 1e-4, 1e-3]),
        ])
    },
    'nine sizes': {
        'widths': (16, 32, 48, 64, 96, 128, 256, 512, 1024),
        'interventions': hyper.sweep('optimizer.eps', [1e-15, 1e-8, 1e-6, 1e-4]),
    },
}


@pytest.fixture(scope='module')
def many(tmp_path_factory):
  """All figures of the sweeps in MANY."""
  drawn = {}
  for case, options in MANY.items():
    sweep = Sweep(tmp_path_factory.mktemp('many'), seeds=(0,), **options)
    drawn[case] = sweep.all_figures()
    for figure in drawn[case].values():
      figure.draw_without_rendering()
  return drawn


@pytest.mark.slow
@pytest.mark.parametrize('case', MANY)
def test_many_panels_and_lines_do_not_overlap(many, case):
  for name, figure in many[case].items():
    across = {round(axis.get_position().x0, 2) for axis in figure.axes}
    assert len(across) <= 4, name
    titles = [axis.title.get_window_extent() for axis in figure.axes if axis.get_title()]
    for one, other in itertools.combinations(titles, 2):
      assert not one.overlaps(other), (name, one, other)
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0 and box.y1 <= figure.bbox.height, name
    assert all(axis.get_window_extent().x1 < box.x0 for axis in figure.axes), name


@pytest.mark.slow
def test_size_labels_do_not_overlap(many):
  for name in ('sensitivity', 'logits_size'):
    for axis in many['nine sizes'][name].axes:
      boxes = [tick.get_window_extent() for tick in axis.get_xticklabels()]
      assert len(boxes) >= 3, name
      for one, following in itertools.pairwise(boxes):
        assert one.x1 < following.x0, name


COLUMN = 3.25  # inches, a column of a paper


@pytest.mark.slow
@pytest.mark.parametrize(
    'interventions', [None, MANY['six interventions of two fields']['interventions']]
)
def test_nothing_collides_in_a_column_of_a_paper(tmp_path, interventions):
  sweep = Sweep(tmp_path, seeds=(0,), interventions=interventions)
  with style.for_paper(COLUMN):
    for name, figure in sweep.all_figures().items():
      assert collisions(figure) == [], name
      assert figure.get_figwidth() == COLUMN
      sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
      assert sizes <= {7, 7.5, 8}, name


def test_collisions_are_found(sweep):
  """The test above can fail: eight inches of labels do not fit into a column."""
  figure = lr_curves.loss_by_learning_rate(sweep.results)
  assert collisions(figure) == []
  figure.set_figwidth(COLUMN)
  assert collisions(figure)


def test_text_of_a_paper_stays_text(sweep):
  with style.for_paper(COLUMN):
    figure, again = (
        lr_curves.sensitivity_by_parameters(sweep.results, sweep.table) for _ in range(2)
    )
    svg, pdf = style.save(figure, 'svg'), style.save(again, 'pdf')
  assert f'width="{72 * COLUMN:g}pt"' in svg.decode() and '>LR sensitivity (nats)<' in svg.decode()
  assert b'/MediaBox [ 0 0 234 ' in pdf and b'/Subtype /Type0' in pdf  # Type 3 has outlines
  assert '>LR sensitivity (nats)<' not in style.save(figure, 'svg').decode()  # of the page


def test_axes_of_ones_own(sweep):
  """Text has the size of the user's settings, and the width is that of the axes."""
  with matplotlib.rc_context({'font.size': 6, 'axes.titlesize': 5}):
    figure, ax = pyplot.subplots(figsize=(COLUMN, 2))
    lr_curves.sensitivity_by_parameters(sweep.results, sweep.table, ax=ax)
  assert ax.get_legend().get_texts()[0].get_fontsize() == pytest.approx(6 * 1.0)
  assert ax.xaxis.label.get_fontsize() == 6
  assert figure.get_figwidth() == COLUMN and ax.get_xlabel() == 'parameters'
  pyplot.close(figure)


@pytest.mark.slow
@pytest.mark.parametrize('case', MANY)
def test_panels_share_their_scales(many, case):
  for name, figure in many[case].items():
    tops = figure.axes if name != 'curves' else [a for a in figure.axes if a.get_title()]
    assert len({axis.get_ylim() for axis in tops}) == 1, name
    assert len({axis.get_xlim() for axis in figure.axes}) == 1, name


@pytest.mark.slow
def test_figure_files_are_deterministic(sweep):
  first, second = sweep.all_figures(), sweep.all_figures()
  for name in first:
    assert style.save(first[name], 'svg') == style.save(second[name], 'svg'), name
  assert style.save(first['loss'], 'png').startswith(b'\x89PNG')


def test_control_characters_in_text(sweep):
  """Of fields, values and labels: SVG forbids them, and fonts lack them."""
  runs = sweep.results.runs
  runs = runs[runs['model.qk_norm'] == 'none'].assign(**{'a\x1b': 'b\x1b', 'c': 'd'})
  with style.for_paper(COLUMN), labels.replaced({'d': 'e\x1b'}):
    figure = lr_curves.loss_by_learning_rate(results.Results(runs, ['a\x1b', 'c'], []))
    ElementTree.fromstring(style.save(figure, 'svg'))
  assert figure.axes[0].get_title() == 'a\\x1b=b\\x1b, c=e\\x1b'


def test_user_text_is_escaped(sweep):
  runs = sweep.results.runs
  runs = runs[runs['model.qk_norm'] == 'none'].assign(method='$\\frac{$--><script>')
  figure = lr_curves.loss_by_learning_rate(results.Results(runs, ['method'], []))
  svg = style.save(figure, 'svg').decode()
  assert figure.axes[0].get_title() == 'method=$\\frac{$--><script>'
  ElementTree.fromstring(svg)
  assert '<script' not in svg


def test_loss_figure_without_parameters():
  runs = pd.DataFrame({
      'run': ['a', 'b'], 'status': 'done', 'parameters': pd.array([pd.NA, pd.NA], 'Int64'),
      'learning_rate': [0.1, 0.2], 'seed': 0, 'initial_loss': 4.0, 'final_loss': [3.0, 3.5],
  })  # fmt: skip
  figure = lr_curves.loss_by_learning_rate(results.Results(runs, [], []))
  assert legend(figure)[0] == '?'
  assert style.save(figure, 'svg')
