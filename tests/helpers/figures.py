"""What collides in a figure."""

import itertools


def collisions(figure):
  """Pairs of names of texts, legends and axes that overlap, or that leave the figure."""
  figure.draw_without_rendering()
  boxes = dict(_boxes(figure))
  found = [
      (one, other)
      for (one, a), (other, b) in itertools.combinations(boxes.items(), 2)
      if a.overlaps(b)
  ]
  edge = figure.bbox.padded(1)
  inside = [edge.containsx(box.x0) and edge.containsx(box.x1) for box in boxes.values()]
  outside = [name for name, is_inside in zip(boxes, inside, strict=True) if not is_inside]
  outside += [name for name, box in boxes.items() if box.y0 < edge.y0 or box.y1 > edge.y1]
  return found + outside


def _boxes(figure):
  for name, label in (('x label', figure._supxlabel), ('y label', figure._supylabel)):
    if label is not None and label.get_text():
      yield name, label.get_window_extent()
  for legend in figure.legends:
    yield 'legend', legend.get_window_extent()
  for number, axis in enumerate(figure.axes):
    yield f'axes {number}', axis.get_window_extent().padded(-1)
    texts = [axis.title, axis.xaxis.label, axis.yaxis.label]
    for direction in (axis.xaxis, axis.yaxis):
      low, high = sorted(direction.get_view_interval())
      for tick in direction.get_major_ticks():
        if low <= tick.get_loc() <= high and tick.label1.get_visible():
          texts.append(tick.label1)
    for text in texts:
      if text.get_text():
        # Neighbouring letters may touch by a fraction of a pixel.
        yield f'{text.get_text()!r} of axes {number} ({id(text)})', text.get_window_extent()
