"""Figures of a run that read the same in grey and to the colour-blind.

Drawn without pyplot, so figures share no state, and in this file's own style
whatever matplotlibrc says: equal tables give equal bytes.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import io
import itertools
import math
import textwrap

from matplotlib import axes as axes_lib
from matplotlib import figure
from matplotlib import style
from matplotlib import ticker
import numpy as np

from tttnn.reporting import tables
from tttnn.scoring import intervals
from tttnn.scoring import metrics

# Of Okabe & Ito's palette, which every kind of colour vision tells apart.
_BETTER, _WORSE, _GREY = '#0072b2', '#d55e00', '#666666'
_MAX_DOMAINS = 40  # More would be neither readable nor within Agg's limits.
STYLE = (
  'default',
  {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 9,
    'figure.dpi': 192,
    'font.size': 9,
    'grid.alpha': 0.35,
    'hatch.linewidth': 0.7,
    'xtick.labelsize': 8,
    'ytick.labelsize': 8,
  },
)


@dataclasses.dataclass(frozen=True)
class Line:
  """Points, and the straight line through them."""

  x: Sequence[float]
  y: Sequence[float]
  intercept: float
  slope: float


@dataclasses.dataclass(frozen=True)
class Panel:
  """Axes of `panels`.

  Attributes:
    x_label: with its unit.
    y_label: likewise.
    lines: points (x, y) by name.
    levels: y by name, of what is the same for all x.
  """

  x_label: str
  y_label: str
  lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
  levels: Mapping[str, float]


@style.context(STYLE)
def before_after(
  table: metrics.Table,
  unit: str = 'neighbours',
  known: Mapping[str, intervals.Intervals] | None = None,
) -> figure.Figure:
  """Bars of bits per byte at 0 and at each document's last count.

  Totals come first, then the domains, largest gain first; the number at a
  pair of bars is the relative change. A run without adaptation has one bar.
  With intervals by label, bars have them.
  """
  totals, domains = table.totals(), _domains(table)
  lines = totals + domains
  scores = [curve.last for _, curve in lines]
  rows = np.arange(len(lines)) + 0.0
  rows[len(totals) :] += 0.5 if totals else 0  # A gap below the totals.

  fig = figure.Figure(
    figsize=(4.6, 1.1 + 0.36 * len(lines)), layout='constrained'
  )
  ax = fig.add_subplot()
  if table.all.last_counts[1]:
    drawn = [known[name] for name, _ in lines] if known else []
    _paired_bars(ax, rows, scores, table.all.last_counts, unit, drawn)
    fig.legend(
      loc='outside upper center',
      ncols=3,
      columnspacing=1.2,
      fontsize=8,
      frameon=False,
      handlelength=1.6,
    )
  else:
    ax.barh(rows, [s.bits_per_byte for s in scores], 0.6, color=_BETTER)
  ax.set_yticks(rows, [two_lines(name) for name, _ in lines], parse_math=False)
  ax.set_ylim(rows[-1] + 0.6, -0.6)
  ax.set_xlim(0, 1.18 * max(_finite(_reach(scores, known)), default=1))
  ax.set_xlabel('bits per byte' + _note(table))
  ax.grid(visible=False, axis='y')
  ax.tick_params(axis='y', length=0)
  return fig


@style.context(STYLE)
def curves(table: metrics.Table, unit: str = 'neighbours') -> figure.Figure:
  """A panel a domain: bits per byte over the number of neighbours.

  The dashed line is the unadapted model on the very documents that reached
  each count; where it is not level, documents dropped out.
  """
  lines = table.totals() + _domains(table)
  columns = min(3, len(lines))
  rows = math.ceil(len(lines) / columns)
  fig = figure.Figure(
    figsize=(max(2.4 * columns, 4), 0.9 + 1.75 * rows), layout='constrained'
  )
  grid = fig.subplots(rows, columns, squeeze=False).ravel()
  largest = max(table.all.by_count) or 1
  for ax, (name, curve) in zip(grid, lines, strict=False):
    _panel(ax, curve)
    ax.set_title(two_lines(name), loc='left', parse_math=False)
    ax.set_xlim(-0.03 * largest, 1.03 * largest)
  for ax in grid[len(lines) :]:
    ax.remove()
  fig.legend(
    *grid[0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=2,
    frameon=False,
  )
  fig.supxlabel(unit + _note(table), fontsize=9)
  fig.supylabel('bits per byte', fontsize=9)
  return fig


@style.context(STYLE)
def straight_lines(
  panels: Mapping[str, Mapping[str, Line]], unit: str
) -> figure.Figure:
  """A panel for each x axis: measured points, and the line through them.

  Args:
    panels: label of the x axis -> name -> its points and line.
    unit: label of the y axis.
  """
  fig = figure.Figure(
    figsize=(max(3.0 * len(panels), 4), 2.9), layout='constrained'
  )
  grid = fig.subplots(1, len(panels), squeeze=False, sharey=True)[0]
  looks = [('o-', _BETTER), ('s--', _WORSE), ('^:', _GREY)]
  for ax, (label, lines) in zip(grid, panels.items(), strict=True):
    for (marks, color), (name, line) in zip(looks, lines.items(), strict=False):
      ends = np.array([0, max(line.x)])
      ax.plot(line.x, line.y, marks[0], color=color, markersize=4, label=name)
      ax.plot(ends, line.intercept + line.slope * ends, marks[1:], color=color)
    ax.set_xlabel(label)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    whole_numbers(ax)
  grid[0].set_ylabel(unit)
  fig.legend(
    *grid[0].get_legend_handles_labels(),
    loc='outside upper center',
    ncols=3,
    frameon=False,
  )
  return fig


@style.context(STYLE)
def bars(panels: Mapping[str, Mapping[str, float]], unit: str) -> figure.Figure:
  """A panel a title: a bar a name, with its number.

  Args:
    panels: title -> name -> value.
    unit: of the values, below them.
  """
  most = max(map(len, panels.values()))
  fig = figure.Figure(
    figsize=(5.0, 0.4 + (0.4 + 0.3 * most) * len(panels)),
    layout='constrained',
  )
  grid = fig.subplots(len(panels), 1, squeeze=False)[:, 0]
  for ax, (title, values) in zip(grid, panels.items(), strict=True):
    colors = [_BETTER, *[_GREY] * (len(values) - 1)]
    shown = ax.barh(range(len(values)), [*values.values()], 0.7, color=colors)
    ax.bar_label(shown, [f'{v:.3g}' for v in values.values()], padding=3)
    ax.set_yticks(range(len(values)), [*values], parse_math=False)
    ax.set_ylim(most - 0.5, -0.5)
    ax.set_xlim(0, 1.15 * max(values.values()))
    ax.set_title(title, loc='left', parse_math=False)
    ax.grid(visible=False, axis='y')
    ax.tick_params(axis='y', length=0)
  grid[-1].set_xlabel(unit)
  return fig


@style.context(STYLE)
def log_lines(
  lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  x_label: str,
  y_label: str,
) -> figure.Figure:
  """Lines (x, y) by name, both axes logarithmic."""
  fig = figure.Figure(figsize=(4.6, 3.2), layout='constrained')
  ax = fig.subplots()
  looks = [('o-', _BETTER), ('s--', _WORSE), ('^:', _GREY)]
  for (name, (x, y)), (marks, color) in zip(lines.items(), looks, strict=False):
    ax.plot(x, y, marks, color=color, markersize=4, label=name)
  ax.set_xscale('log', base=2)
  ax.set_yscale('log')
  for axis in (ax.xaxis, ax.yaxis):
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
  ax.set_xlabel(x_label)
  ax.set_ylabel(y_label)
  ax.legend(frameon=False)
  return fig


@style.context(STYLE)
def panels(shown: Sequence[Panel]) -> figure.Figure:
  """Axes one below the other, each with its lines, levels and legend."""
  fig = figure.Figure(figsize=(5.0, 3.1 * len(shown)), layout='constrained')
  grid = fig.subplots(len(shown), 1, squeeze=False)[:, 0]
  for ax, panel in zip(grid, shown, strict=True):
    # Together twelve looks, where the next line has both another.
    colors = itertools.cycle([_BETTER, _WORSE, _GREY])
    marks = itertools.cycle(['o-', 's--', '^:', 'D-.'])
    for name, (x, y) in panel.lines.items():
      ax.plot(x, y, next(marks), color=next(colors), markersize=4, label=name)
    dashes = itertools.cycle(['-', '--', ':'])
    for dash, (name, level) in zip(dashes, panel.levels.items(), strict=False):
      ax.axhline(level, color=_GREY, linestyle=dash, linewidth=1, label=name)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.legend(
      loc='center left', bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False
    )
  return fig


@style.context(STYLE)
def png(fig: figure.Figure) -> bytes:
  """The figure as PNG; the same bytes each time."""
  buffer = io.BytesIO()
  fig.savefig(buffer, format='png', metadata={'Software': None})
  return buffer.getvalue()


@style.context(STYLE)
def pdf(fig: figure.Figure) -> bytes:
  """The figure as PDF; the same bytes each time."""
  buffer = io.BytesIO()
  fig.savefig(buffer, format='pdf', metadata={'CreationDate': None})
  return buffer.getvalue()


def _paired_bars(
  ax: axes_lib.Axes,
  rows: np.ndarray,
  scores: Sequence[metrics.Score],
  counts: tuple[int, int],
  unit: str,
  known: Sequence[intervals.Intervals],
) -> None:
  # Worse by at least what the printed number shows.
  worse = np.array([round(score.change, 3) > 0 for score in scores])
  after = np.array([score.bits_per_byte for score in scores])
  ax.barh(
    rows - 0.2,
    [score.base_bits_per_byte for score in scores],
    0.38,
    color='white',
    edgecolor=_GREY,
    hatch='/////',
    label=f'0 {unit}',
  )
  label = f'{tables.count_range(counts)} {unit}'
  for kind, color, hatch, suffix in (
    (~worse, _BETTER, '', ''),
    (worse, _WORSE, 'xxx', ', worse'),
  ):
    if kind.any():
      ax.barh(
        rows[kind] + 0.2,
        after[kind],
        0.38,
        color=color,
        edgecolor='white' if hatch else color,
        hatch=hatch,
        label=label + suffix,
      )
  ends = [_values([score]) for score in scores]
  for row, own, end in zip(rows, known, ends, strict=False):
    for shift, (low, high) in ((-0.2, own.before), (0.2, own.after)):
      ax.plot(
        [low, high], [row + shift] * 2, '|-', color='black', markersize=4, lw=1
      )
      end.append(high)
  for row, score, end in zip(rows, scores, ends, strict=True):
    ax.annotate(
      tables.percent(score.change),
      (max(_finite(end), default=0), row),
      xytext=(4, 0),
      textcoords='offset points',
      verticalalignment='center',
      fontsize=8,
    )


def _panel(ax: axes_lib.Axes, curve: metrics.Curve) -> None:
  counts, scores = list(curve.by_count), list(curve.by_count.values())
  base = [score.base_bits_per_byte for score in scores]
  adapted = [score.bits_per_byte for score in scores]
  ax.plot(counts, base, '--', color=_GREY, label='not adapted')
  ax.plot(
    counts,
    adapted,
    'o-',
    color=_BETTER,
    markersize=3.5,
    markevery=max(1, len(counts) // 10),
    label='adapted',
  )
  values = _finite(_values(scores))
  if values:
    # Two percent of the value at least, so that noise does not look like news.
    middle, half = (max(values) + min(values)) / 2, np.ptp(values) / 2
    half = 1.1 * max(half, 0.01 * abs(middle), 1e-6)
    ax.set_ylim(middle - half, middle + half)
  else:
    ax.text(0.5, 0.5, 'undefined', transform=ax.transAxes, ha='center')
  whole_numbers(ax)
  ax.yaxis.set_major_locator(ticker.MaxNLocator(4))
  ax.yaxis.set_major_formatter(ticker.ScalarFormatter(useOffset=False))


def _domains(table: metrics.Table) -> list[tuple[str, metrics.Curve]]:
  """The domains that a figure has room for, largest gain first."""
  most = sorted(table.tasks.items(), key=lambda d: -d[1].last.documents)

  def gain(line):
    change = line[1].last.change
    return math.isnan(change), change, line[0]

  return sorted(most[:_MAX_DOMAINS], key=gain)


def _note(table: metrics.Table) -> str:
  if len(table.tasks) <= _MAX_DOMAINS:
    return ''
  return (
    f' (the {_MAX_DOMAINS} domains with most documents, '
    f'of {len(table.tasks):,})'
  )


def whole_numbers(ax: axes_lib.Axes) -> None:
  """A few ticks of the x axis at numbers that one counts in."""
  ax.xaxis.set_major_locator(
    ticker.MaxNLocator(5, integer=True, steps=[1, 2, 5, 10])
  )


def legend_above(
  fig: figure.Figure, ax: axes_lib.Axes, columns: int, spacing: float = 2.0
) -> None:
  """The legend of the axes, above them all; names as they are."""
  legend = fig.legend(
    *ax.get_legend_handles_labels(),
    loc='outside upper center',
    ncols=columns,
    columnspacing=spacing,
    fontsize=8,
    frameon=False,
    handlelength=3.2,
  )
  for text in legend.get_texts():
    text.set_parse_math(False)


def two_lines(name: str) -> str:
  """The name on at most two lines."""
  first, *rest = textwrap.wrap(tables.plain(name), 28) or ['']
  if len(rest) > 1:
    rest = [rest[0][:27] + '\u2026']
  return '\n'.join([first, *rest])


def _values(scores: Iterable[metrics.Score]) -> list[float]:
  return [v for s in scores for v in (s.bits_per_byte, s.base_bits_per_byte)]


def _reach(
  scores: Iterable[metrics.Score],
  known: Mapping[str, intervals.Intervals] | None,
) -> list[float]:
  """How far bars and their intervals reach."""
  ends = [end for i in (known or {}).values() for end in (*i.before, *i.after)]
  return _values(scores) + ends


def _finite(values: Iterable[float]) -> list[float]:
  return [value for value in values if math.isfinite(value)]
