"""Figures of what methods gain and cost, from the points of `frontier`.

A run has a colour, a marker and a dash pattern of its own, so that lines are
told apart in grey too.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import textwrap

from matplotlib import axes as axes_lib
from matplotlib import colors
from matplotlib import figure
from matplotlib import patheffects
from matplotlib import style
from matplotlib import ticker
from matplotlib import transforms
import numpy as np

from tttnn.reporting import frontier
from tttnn.reporting import plots
from tttnn.reporting import tables

# Okabe & Ito's palette without its yellow, too light for lines on white. The
# lengths have no common factor: 315 lines before a look comes again.
_COLORS = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#000000',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
)
_MARKERS = 'os^DvPX*<'
_SIZES = {'P': 6, 'X': 6, '*': 8.5, 'D': 4.5}  # Points, else 5.
_DASHES = ('-', (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (9, 2)))
_GREY = '#666666'
_WIDTH = 7.6  # Inches.
_STAGE_LOOKS = (
  ('#e69f00', '....'),
  ('#cc79a7', 'xxxx'),
  ('#0072b2', ''),
  ('#56b4e9', '////'),
)
# Where a number may stand, seen from its point, in points: first where neither
# a falling line nor a bar runs.
_PLACES = (
  (4, 3, 'left', 'bottom'),
  (-4, -3, 'right', 'top'),
  (4, -3, 'left', 'top'),
  (-4, 3, 'right', 'bottom'),
  (0, 6, 'center', 'bottom'),
  (0, -6, 'center', 'top'),
  (6, 0, 'left', 'center'),
  (-6, 0, 'right', 'center'),
)


@style.context(plots.STYLE)
def over_seconds(found: Sequence[frontier.Point]) -> figure.Figure:
  """Bits per byte over the seconds a document: lower and further left wins.

  A line a run through its counts, which stand at its points where there is
  room. Bars are the 90 % intervals of the change, from the dashed line: the
  model that is not adapted.
  """
  lines = frontier.ordered(found)
  columns, height = _legend_shape(lines)
  fig = figure.Figure(figsize=(_WIDTH, 4.2 + height), layout='constrained')
  ax = fig.add_subplot()
  for line, look in zip(lines.values(), looks(), strict=False):
    _line(ax, [point.total_seconds for point in line], line, look)
  _base(ax, found)
  ax.set_xscale('log')
  _plain_log(ax)
  ax.set_xlabel('seconds a document: retrieve, select, adapt, score')
  ax.set_ylabel('bits per byte')
  ax.margins(x=0.06, y=0.08)
  _leave_out_what_is_far_above(ax, found)
  plots.legend_above(fig, ax, columns, spacing=1.4)
  _write_counts(fig, ax, lines)
  return fig


@style.context(plots.STYLE)
def over_counts(found: Sequence[frontier.Point]) -> figure.Figure:
  """Bits per byte over the count, for methods at equal counts.

  Lines and bars as in `over_seconds`, runs a little apart where they share a
  count. A run that only has the count 0 is the dashed line.
  """
  lines = frontier.ordered(found)
  counts = sorted({point.count for point in found if point.count})
  columns, height = _legend_shape(lines)
  fig = figure.Figure(figsize=(_WIDTH, 3.4 + height), layout='constrained')
  ax = fig.add_subplot()
  shifts = np.linspace(-0.06, 0.06, len(lines))
  for line, look, shift in zip(lines.values(), looks(), shifts, strict=False):
    line = [point for point in line if point.count]
    if line:
      _line(ax, [p.count * math.exp(shift) for p in line], line, look)
  _base(ax, found)
  ax.set_xscale('log')
  ticks = tables.thinned(counts)
  ax.set_xticks(ticks, [f'{count:,}' for count in ticks])
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.set_xlabel(_unit(found))
  ax.set_ylabel('bits per byte')
  _leave_out_what_is_far_above(ax, found)
  plots.legend_above(fig, ax, columns, spacing=1.4)
  return fig


@style.context(plots.STYLE)
def seconds(found: Sequence[frontier.Point]) -> figure.Figure:
  """Bars of the seconds a document at each run's largest count, by stage."""
  last = [line[-1] for line in frontier.ordered(found).values()]
  fig = figure.Figure(
    figsize=(_WIDTH, 1.0 + 0.36 * len(last)), layout='constrained'
  )
  ax = fig.add_subplot()
  rows, left = np.arange(len(last)), np.zeros(len(last))
  for stage, (color, hatch) in zip(frontier.STAGES, _STAGE_LOOKS, strict=True):
    widths = np.array([point.seconds[stage] for point in last])
    ax.barh(
      rows,
      widths,
      0.66,
      left,
      color=color,
      edgecolor='white',
      hatch=hatch,
      label=stage,
      linewidth=0,
    )
    left = left + widths
  for row, point in zip(rows, last, strict=True):
    ax.annotate(
      f'{point.total_seconds:.3g}',
      (point.total_seconds, row),
      xytext=(4, 0),
      textcoords='offset points',
      verticalalignment='center',
      fontsize=8,
    )
  labels = [plots.two_lines(f'{p.label} ({p.count:,})') for p in last]
  ax.set_yticks(rows, labels, parse_math=False)
  ax.set_ylim(len(last) - 0.5, -0.5)
  ax.set_xlim(0, 1.1 * max(left.max(), 1e-6))
  ax.set_xlabel(
    f'seconds a document, each at its largest number of {_unit(found)}'
  )
  ax.grid(visible=False, axis='y')
  ax.tick_params(axis='y', length=0)
  plots.legend_above(fig, ax, 4, spacing=1.4)
  return fig


def looks():
  """Colour, marker and dashes of one run after the other."""
  return zip(
    itertools.cycle(_COLORS),
    itertools.cycle(_MARKERS),
    itertools.cycle(_DASHES),
    strict=False,
  )


def _line(
  ax: axes_lib.Axes,
  x: Sequence[float],
  line: Sequence[frontier.Point],
  look: tuple,
) -> None:
  color, marker, dashes = look
  y = np.array([point.bits_per_byte for point in line])
  base = np.array([point.base_bits_per_byte for point in line])
  low, high = np.array([point.interval for point in line]).T
  # An interval of quantiles need not hold the measured value itself.
  bars = np.maximum(0, [y - base * (1 + low), base * (1 + high) - y])
  marked = _marked(line)
  ax.plot(
    x,
    y,
    color=color,
    marker=marker,
    markersize=_SIZES.get(marker, 5),
    markeredgecolor='white',
    markeredgewidth=0.6,
    markevery=marked,
    linestyle=dashes,
    linewidth=1.4,
    label=plots.two_lines(line[0].label),
  )
  ax.errorbar(
    np.array(x)[marked],
    y[marked],
    bars[:, marked],
    fmt='none',
    zorder=1.9,  # Below lines, lest short ones hide their markers.
    ecolor=color,
    elinewidth=0.9,
    capsize=2,
  )


def _marked(line: Sequence[frontier.Point]) -> list[int]:
  """The places of the points that a line has room to mark."""
  counts = [point.count for point in line]
  return [counts.index(count) for count in tables.thinned(counts)]


def _base(ax: axes_lib.Axes, found: Sequence[frontier.Point]) -> None:
  ax.axhline(
    found[0].base_bits_per_byte,
    color=_GREY,
    linestyle='--',
    linewidth=1,
    zorder=1,
    label='not adapted',
  )


def _leave_out_what_is_far_above(
  ax: axes_lib.Axes, found: Sequence[frontier.Point]
) -> None:
  """Lest one run that diverges press all others into a line; it is named.

  Far is further above the base than the best interval reaches below it.
  """
  base = found[0].base_bits_per_byte
  lowest = min(
    point.base_bits_per_byte * (1 + min(point.interval[0], 0))
    for point in found
  )
  top = base + max(base - lowest, 0.01 * base)
  above = [point for point in found if point.bits_per_byte > top]
  if not above:
    return
  ax.set_ylim(top=top)
  parts = [
    f'{label} at '
    + ', '.join(f'{p.count:,} ({p.bits_per_byte:.2f})' for p in line)
    for label, line in frontier.ordered(above).items()
  ]
  note = textwrap.fill('Above the edge: ' + '; '.join(parts), 100)
  ax.set_title(note, fontsize=8, loc='left', parse_math=False)


def _plain_log(ax: axes_lib.Axes) -> None:
  """Seconds as 0.1, 1, 10, with 2 and 5 between where decades are few."""
  ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
  ax.xaxis.set_minor_formatter(ticker.NullFormatter())


def _legend_shape(labels: Iterable[str]) -> tuple[int, float]:
  """Columns of a legend of these and the base, and its height in inches."""
  parts = [plots.two_lines(label).split('\n') for label in labels]
  longest = max((len(part) for label in parts for part in label), default=0)
  columns = min(4, int(_WIDTH / (0.62 + 0.068 * max(longest, 11))))
  rows = math.ceil((len(parts) + 1) / columns)
  return columns, 0.1 + rows * (0.16 * max(map(len, parts), default=1) + 0.04)


def _write_counts(
  fig: figure.Figure,
  ax: axes_lib.Axes,
  lines: Mapping[str, Sequence[frontier.Point]],
) -> None:
  """Writes counts at points, where they cover neither point nor number."""
  fig.draw_without_rendering()  # Decides where points come to lie.
  size = 3 * fig.dpi / 72
  taken = [
    transforms.Bbox.from_extents(x - size, y - size, x + size, y + size)
    for line in lines.values()
    for x, y in ax.transData.transform(
      [(line[i].total_seconds, line[i].bits_per_byte) for i in _marked(line)]
    )
  ]
  for line, (color, *_) in zip(lines.values(), looks(), strict=False):
    dark = 0.7 * np.array(colors.to_rgb(color))  # Small letters need contrast.
    for point in (line[place] for place in _marked(line)):
      for dx, dy, horizontal, vertical in _PLACES:
        text = ax.annotate(
          f'{point.count:,}',
          (point.total_seconds, point.bits_per_byte),
          (dx, dy),
          textcoords='offset points',
          color=dark,
          fontsize=7,
          horizontalalignment=horizontal,
          verticalalignment=vertical,
          path_effects=[patheffects.withStroke(linewidth=2, foreground='w')],
        )
        box = text.get_window_extent()
        inside = ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max)
        if inside and not any(map(box.overlaps, taken)):
          taken.append(box)
          break
        text.remove()


def _unit(found: Sequence[frontier.Point]) -> str:
  """'neighbours', or 'neighbours or passes' where runs differ."""
  return ' or '.join(sorted({point.unit for point in found}))
