"""Figures of probes and swept numbers show their data, and are left out where there is none."""

import numpy as np
import pytest
from helpers import simulated_sweeps as sim
from helpers.claim_cases import KAPPAS, SHAPE_GRID, kappa_loss
from helpers.figures import collisions
from helpers.simulated_sweeps import RATES, WIDTHS, Outcomes, grid, highest, simulate, sweep

from stability.report.plots import probe_plots, selection, style

PROBE_FIGURES = (probe_plots.gradients, probe_plots.outputs, probe_plots.norms)
UP, EPS = probe_plots.LAYER, probe_plots.EPS
QK_NORM, WARMUP = 'model.qk_norm', 'schedule.warmup_steps'


def gradient(c):
  return 1e-5 / sim.size(c) / sim.rate(c)


INSIDE = Outcomes(
    sim.flat,
    {
        f'gradient_rms/{UP}': lambda c: (gradient(c),) * 2,
        f'update_rms/{UP}': lambda c: (0.3 / (1 + c[EPS] / gradient(c)),) * 2,
        'block_2/output_rms': lambda c: (sim.rate(c),) * 2,
        'block_0/query_norm': lambda c: (1.0, 1 + sim.size(c)),
        'block_0/key_norm': (1.0, 3.0),
        'block_0/query_key_cosine': (0.1, 0.2),
    },
)


def lines(axis):
  """The x and y of the lines with points, in order."""
  return [
      (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float))
      for line in axis.lines
      if line.get_marker() == 'o' and len(line.get_xdata())
  ]


def legend(figure):
  return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.fixture(scope='module')
def sized():
  return simulate(sim.QK, INSIDE)


@pytest.fixture(scope='module')
def of_eps():
  eps = sweep(EPS, 1e-15, 1e-8, 1e-6, 1e-4)
  return simulate(grid(eps, RATES[2:]), INSIDE)


def test_gradients_and_updates_against_size(sized):
  figure = probe_plots.gradients(*sized)
  gradients, updates = figure.axes[0], figure.axes[2]
  x, y = lines(gradients)[-1]  # the highest learning rate, 1
  np.testing.assert_allclose(x, [9216, 36864, 147456])
  np.testing.assert_allclose(y, [1e-5, 1e-5 / 4, 1e-5 / 16])
  x, y = lines(updates)[-1]
  np.testing.assert_allclose(y, 0.3 / (1 + 1e-8 / np.array([1e-5, 1e-5 / 4, 1e-5 / 16])))
  assert (gradients.get_yscale(), gradients.get_xscale()) == ('log', 'log')
  assert legend(figure) == ['1e-3', '1e-2', '1e-1', '1', 'eps 1e-8 (below)']
  assert figure.get_supxlabel() == 'parameters'
  low, high = updates.get_ylim()
  assert high / low >= 4 - 1e-9  # noise does not look like a trend


def test_gradients_against_epsilon_with_its_line(of_eps):
  figure = probe_plots.gradients(*of_eps)
  gradients, updates = figure.axes
  assert [list(x) for x, _ in lines(updates)] == [[1e-15, 1e-8, 1e-6, 1e-4]] * 2
  (diagonal,) = [line for line in gradients.lines if line.get_linestyle() == '--']
  np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
  low, _ = gradients.get_ylim()
  assert low > 1e-8  # the line does not push the gradients into a corner
  assert legend(figure)[-1] == 'eps' and figure.get_supxlabel() == 'eps'


def test_outputs_of_block_2(sized):
  figure = probe_plots.outputs(*sized)
  drawn = [list(y) for _, y in lines(figure.axes[0])]
  assert drawn == [[rate] * 3 for rate in (1e-3, 1e-2, 0.1, 1)]
  assert 'block 2' in figure.get_supylabel()


def test_norms_are_those_of_the_largest_size(sized):
  figure = probe_plots.norms(*sized)
  assert len(figure.axes) == 6  # two interventions, three probes
  names = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
  assert names == ['query norm', 'key norm', 'cosine']
  line = figure.axes[0].lines[0]
  assert line.get_ydata()[-1] == pytest.approx(17.0)
  assert list(line.get_xdata()) == list(sim.STEPS)
  assert figure.get_supxlabel() == 'step (147K parameters)'


def test_unlogged_norms_have_no_row(sized):
  results, curves = sized
  figure = probe_plots.norms(results, curves.assign(**{'block_0/query_key_cosine': np.nan}))
  assert len(figure.axes) == 4


def test_loss_against_a_number():
  points = grid(WIDTHS, sweep(WARMUP, 5, 25, 100), RATES)
  results, _ = simulate(points, Outcomes(lambda c: 6.0 if highest(c) else 2 + c[WARMUP] / 100))
  figure = probe_plots.loss_by_number(results, WARMUP)
  assert [axis.get_title() for axis in figure.axes] == [
      '9.2K parameters', '37K parameters', '147K parameters'
  ]  # fmt: skip
  x, y = lines(figure.axes[2])[0]
  assert (list(x), list(y)) == ([5, 25, 100], [2.05, 2.25, 3.0])
  crosses = [line for line in figure.axes[0].lines if line.get_marker() == 'x']
  drawn = [(*line.get_xdata(), *line.get_ydata()) for line in crosses if len(line.get_xdata())]
  assert drawn == [(5, 1), (25, 1), (100, 1)]  # at the top edge
  assert figure.get_supxlabel() == 'warmup steps' and 'diverged' in legend(figure)
  assert figure.axes[0].get_xscale() == 'log'


def test_model_without_blocks_is_a_horizontal_line():
  results, _ = simulate(KAPPAS, Outcomes(kappa_loss(1e3)))
  figure = probe_plots.loss_by_number(results, 'model.logit_scale')
  (axis,) = figure.axes
  assert [list(line.get_ydata()) for line in axis.lines if line.get_linestyle() == '--'] == [[3, 3]]
  assert axis.get_title() == '' and len(lines(axis)[0][0]) == 6
  assert legend(figure)[-1] == 'no blocks:\na bigram model'


def test_zero_is_left_of_a_logarithmic_axis():
  results, _ = simulate(grid(sweep('optimizer.weight_decay', 0.0, 1e-4, 1e-2), RATES), INSIDE)
  (axis,) = probe_plots.loss_by_number(results, 'optimizer.weight_decay').axes
  assert axis.get_xscale() == 'symlog' and axis.get_xlim()[0] < 0
  assert [label.get_text() for label in axis.get_xticklabels()] == ['0', '1e-4', '1e-2']


def test_numbers_with_an_axis():
  def numbers(*points):
    return probe_plots.numbers(simulate(grid(*points, RATES), Outcomes(sim.flat))[0])

  assert numbers(WIDTHS, sim.BOTH_QK) == []  # no number; the size has its own figures
  assert numbers(sweep('objective.z_loss', 0.0, 1e-4)) == []  # two values make no axis
  assert numbers(sweep('data.seed', 0, 1, 2), sweep(WARMUP, 1, 2, 3)) == ['data.seed', WARMUP]
  assert numbers([{WARMUP: n, 'schedule.steps': 10 * n} for n in (1, 2, 4)]) == [WARMUP]


def test_figures_without_data_are_left_out(sized, of_eps):
  def named(results, curves):
    return [plot.name for plot in selection.probe_plots(results, curves)]

  assert named(*sized) == ['gradients', 'block_outputs', 'query_key_norms']
  assert named(*of_eps) == ['gradients', 'query_key_norms']  # one size
  results, curves = sized
  probes = probe_plots.probes(results)
  assert named(results, curves.assign(**dict.fromkeys(probes, np.nan))) == []
  alone = simulate(grid(WIDTHS[:1], RATES), INSIDE)
  assert named(*alone) == ['query_key_norms']  # one size and one eps


def test_model_without_blocks_has_no_block_outputs():
  assert probe_plots.output_rms(simulate(KAPPAS, Outcomes(sim.flat))[0]) is None
  shallow, _ = simulate(SHAPE_GRID, INSIDE)
  assert probe_plots.output_rms(shallow) == 'block_0/output_rms'


def test_probes_of_extensions(sized):
  results, curves = sized
  names = [f'mine/{n} <b>' for n in range(7)]
  curves = curves.assign(**{name: curves['block_2/output_rms'] for name in names})
  curves[names[1]] = np.nan  # never measured
  plots = selection.extension_plots(results, curves, names)
  assert [plot.name for plot in plots] == [f'probe_{n + 1}_mine-{m}--b-' for n, m in enumerate(
      [0, 2, 3, 4, 5]
  )]
  assert plots[1].title == 'mine/2 <b> against learning rate'
  said = [plot.caption.partition('Not shown: ')[2] for plot in plots]
  assert said == [''] * 4 + ['1 more, in metrics.jsonl and TensorBoard.']
  figure = plots[1].draw()
  assert [title.get_text() for title in (axis.title for axis in figure.axes)] == [
      'qk_norm=layernorm', 'qk_norm=none'
  ]
  assert figure._supylabel.get_text() == 'mine/2 <b>\nat the end of training'
  for axis in figure.axes:
    for x, y in lines(axis):  # the value is the learning rate
      np.testing.assert_allclose(y, x)
    assert len(lines(axis)) == 3 and axis.get_yscale() == 'log'
  one_rate = simulate(grid(sim.BOTH_QK, RATES[:1]), INSIDE)
  assert selection.extension_plots(*one_rate, ['block_2/output_rms']) == []


@pytest.mark.parametrize('last', [-1.0, 0.0])
def test_probes_of_extensions_that_are_not_positive(sized, last):
  results, curves = sized
  curves = curves.assign(mine=np.where(curves['step'] >= 480, last, 1.0))
  figure = probe_plots.by_learning_rate(results, curves, 'mine')
  assert figure.axes[0].get_yscale() == 'linear'


def test_nothing_collides_in_a_column_of_a_paper(sized):
  """With two interventions; a field with zero has its ticks where they fit."""
  decays = sweep('optimizer.weight_decay', 0.0, 1e-5, 1e-4, 1e-3, 1e-2)
  results, _ = simulate(grid(WIDTHS[:2], decays, RATES), INSIDE)
  with style.for_paper(3.25):
    drawn = {draw.__name__: draw(*sized) for draw in PROBE_FIGURES}
    curves = sized[1].assign(**{(long := 'of_a/probe ' * 9): sized[1]['block_2/output_rms']})
    drawn['extension'] = probe_plots.by_learning_rate(sized[0], curves, long)
    drawn['number'] = probe_plots.loss_by_number(results, 'optimizer.weight_decay')
    for name, figure in drawn.items():
      assert collisions(figure) == [], name


@pytest.mark.slow
def test_figure_files_are_deterministic(sized):
  for draw in PROBE_FIGURES:
    assert style.save(draw(*sized), 'svg') == style.save(draw(*sized), 'svg')
