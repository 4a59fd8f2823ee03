"""What all figures have to be."""

from matplotlib import style

from tttnn.reporting import plots


def assert_nothing_is_cut_off(fig) -> None:
  """All that is drawn lies within the figure, and fills its width."""
  plots.png(fig)  # Lays the figure out.
  # Where ticks stand follows from the style in force, also when one asks.
  with style.context(plots.STYLE):
    ink = fig.get_tightbbox()  # Inches, of all that is drawn.
  width, height = fig.get_size_inches()
  assert ink.x0 >= 0 and ink.x1 <= width
  assert ink.y0 >= 0 and ink.y1 <= height
  assert ink.width > 0.9 * width
