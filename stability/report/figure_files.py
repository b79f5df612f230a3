"""The figures of a report as files and as elements of its page."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from stability.errors import BadInput
from stability.report.options import Options
from stability.report.plots import style
from stability.report.plots.selection import Plot
from stability.storage import files

FORMATS = ('pdf', 'svg', 'png')


def choose(plots: Sequence[Plot], names: Sequence[str]) -> list[Plot]:
  """The figures of these names, in this order; all figures if there are no names.

  Raises:
    BadInput: there is no such figure, or the runs lack the data for it.
  """
  if not names:
    return list(plots)
  by_name = {plot.name: plot for plot in plots}
  for name in names:
    if name not in by_name:
      available = [plot.name for plot in plots if plot.draw is not None]
      allowed = f'one of {", ".join(available)}' if available else 'left out: there is none'
      raise BadInput(f'--figures={name}: must be {allowed}')
    if by_name[name].draw is None:
      raise BadInput(f'--figures={name}: {by_name[name].absent}')
  return [by_name[name] for name in dict.fromkeys(names)]


def write(plot: Plot, folder: Path, options: Options) -> tuple[Plot, Markup | None]:
  """Draws a figure to files; returns the plot, and its SVG or None if it cannot be drawn.

  The page shows it in the page's own width, also if the files are for a paper.
  """
  if plot.draw is None:
    return plot, None
  try:
    figure = plot.draw()
    svg = style.save(figure, 'svg')
    figure.set_layout_engine('none')  # it stays as it is: to lay it out takes as long as to draw it
    if options.figure_format is None and options.figure_width is None:
      contents = {'svg': svg, 'png': style.save(figure, 'png')}
    else:
      contents = _for_paper(plot, options)
  except style.FigureTooLarge as error:
    return dataclasses.replace(plot, absent=str(error)), None
  for kind, content in contents.items():
    files.write_atomic(folder / f'{plot.name}.{kind}', content)
  return plot, _inline(svg, plot.name)


def _for_paper(plot: Plot, options: Options) -> dict[str, bytes]:
  """The files of a figure for a paper: format -> content."""
  kinds = dict.fromkeys(filter(None, ('svg', 'png', options.figure_format)))
  with style.for_paper(options.figure_width or style.WIDTH):
    figure = plot.draw()
    return {kind: style.save(figure, kind) for kind in kinds}


def _inline(svg: bytes, name: str) -> Markup:
  """An SVG file as an element of the page, with a prefix that makes its ids unique there."""
  text = svg.decode()
  text = text[text.index('<svg') :]
  return Markup(re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{name}-', text))
