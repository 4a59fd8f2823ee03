"""Figures of runs besides bars and curves of all domains, which `plots` has.

Lines have a colour, a marker and dashes of their own, bars a hatch: they are
told apart in grey and by every kind of colour vision.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math

from matplotlib import axes as axes_lib
from matplotlib import figure
from matplotlib import style
from matplotlib import ticker
import numpy as np

from tttnn.reporting import frontier_plots
from tttnn.reporting import plots
from tttnn.scoring import metrics

_LARGEST = 6  # Domains, as in Hardt & Sun's figures.
_GREY = '#666666'
# Six and seven colours: 42 bars before a look comes again.
_HATCHES = ('', '////', '....', 'xxxx', '\\\\\\\\', '++')
_MEASURES = (
  ('bits_per_byte', 'bits per byte'),
  ('byte_perplexity', 'byte perplexity'),
  ('word_perplexity', 'word perplexity'),
)


@dataclasses.dataclass(frozen=True)
class Bars:
  """Scores of a model or method in `compared`.

  Attributes:
    before: domain or total -> bits per byte before adapting; may be empty.
    after: likewise, after.
  """

  before: Mapping[str, float]
  after: Mapping[str, float]


def largest(rows: Sequence[Mapping], number: int = _LARGEST) -> list[str]:
  """The domains with the largest weights in the Pile, the largest first.

  Where there are others than the Pile's: those with most scored bytes.
  """
  size = {}
  for row in rows:
    size[row['task']] = size.get(row['task'], 0) + row['num_bytes']
  if size.keys() <= metrics.PILE_WEIGHTS.keys():
    size = {task: metrics.PILE_WEIGHTS[task] for task in size}
  return sorted(size, key=lambda task: (-size[task], task))[:number]


def only(table: metrics.Table, domains: Sequence[str]) -> metrics.Table:
  """The table with these domains; the totals stay those of all."""
  return dataclasses.replace(table, tasks={d: table.tasks[d] for d in domains})


@style.context(plots.STYLE)
def measures(
  table: metrics.Table, domains: Sequence[str], unit: str
) -> figure.Figure:
  """A panel a measure over the counts, a line a domain.

  Perplexities of domains can be powers of ten apart, so their axes are
  logarithmic.
  """
  fig = figure.Figure(figsize=(7.6, 3.4), layout='constrained')
  grid = fig.subplots(1, len(_MEASURES))
  for ax, (name, label) in zip(grid, _MEASURES, strict=True):
    for domain, look in zip(domains, frontier_plots.looks(), strict=False):
      color, marker, dashes = look
      scores = table.tasks[domain].by_count
      ax.plot(
        list(scores),
        [getattr(score, name) for score in scores.values()],
        color=color,
        marker=marker,
        linestyle=dashes,
        markersize=4,
        markevery=max(1, len(scores) // 10),
        linewidth=1.3,
        label=plots.two_lines(domain),
      )
    ax.set_title(label, loc='left')
    if name != 'bits_per_byte':
      ax.set_yscale('log')
      _plain(ax)
    plots.whole_numbers(ax)
  plots.legend_above(fig, grid[0], 3)
  fig.supxlabel(unit, fontsize=9)
  return fig


@style.context(plots.STYLE)
def losses(
  rows: Sequence[Mapping],
  table: metrics.Table,
  domains: Sequence[str],
  unit: str = 'neighbours',
) -> figure.Figure | None:
  """A panel a domain: bits per byte, and the loss of training, over neighbours.

  The loss, in nats a token on the right, is the mean over documents of each
  neighbour's first pass. None for runs without losses.
  """
  means = {domain: _mean_losses(rows, domain) for domain in domains}
  shown = [domain for domain in domains if np.isfinite(means[domain]).any()]
  if not shown:
    return None
  columns = min(3, len(shown))
  lines = math.ceil(len(shown) / columns)
  fig = figure.Figure(
    figsize=(2.9 * columns + 0.4, 0.9 + 1.9 * lines), layout='constrained'
  )
  grid = fig.subplots(lines, columns, squeeze=False).ravel()
  for ax, domain in zip(grid, shown, strict=False):
    scores = table.tasks[domain].by_count
    ax.plot(
      list(scores),
      [score.bits_per_byte for score in scores.values()],
      'o-',
      color='#0072b2',
      markersize=3.5,
      markevery=max(1, len(scores) // 10),
      label='bits per byte',
    )
    right = ax.twinx()
    right.plot(
      np.arange(1, len(means[domain]) + 1),
      means[domain],
      's--',
      color='#d55e00',
      markersize=3,
      markevery=max(1, len(means[domain]) // 10),
      label='training loss (right)',
    )
    right.grid(visible=False)
    right.spines['right'].set_visible(True)
    ax.set_title(plots.two_lines(domain), loc='left', parse_math=False)
    for axes in (ax, right):
      axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
      axes.yaxis.set_major_formatter(ticker.ScalarFormatter(useOffset=False))
    plots.whole_numbers(ax)
  for ax in grid[len(shown) :]:
    ax.remove()
  handles = [
    axes.get_legend_handles_labels() for axes in (grid[0], fig.axes[-1])
  ]
  fig.legend(
    handles[0][0] + handles[1][0],
    handles[0][1] + handles[1][1],
    loc='outside upper center',
    ncols=2,
    frameon=False,
  )
  fig.supxlabel(unit, fontsize=9)
  return fig


@style.context(plots.STYLE)
def cost_boxes(
  seconds: Mapping[str, Sequence[float]], one: str = 'neighbour'
) -> figure.Figure:
  """A box a domain: seconds of adapting to one neighbour, over documents.

  Boxes are quartiles with the median, whiskers the 10 % and 90 % quantiles; the
  axis is logarithmic. Cheapest first.
  """
  order = sorted(seconds, key=lambda task: np.median(seconds[task]))
  fig = figure.Figure(
    figsize=(5.0, 0.9 + 0.32 * len(order)), layout='constrained'
  )
  ax = fig.add_subplot()
  ax.boxplot(
    [np.maximum(seconds[task], 1e-9) for task in order],
    orientation='horizontal',
    whis=(10, 90),
    widths=0.6,
    patch_artist=True,
    boxprops={'facecolor': '#cfe3f1', 'edgecolor': '#0072b2'},
    medianprops={'color': '#000000', 'linewidth': 1.6},
    whiskerprops={'color': '#0072b2'},
    capprops={'color': '#0072b2'},
    flierprops={
      'marker': 'o',
      'markersize': 3,
      'markerfacecolor': 'none',
      'markeredgecolor': _GREY,
    },
  )
  names = [plots.two_lines(task) for task in order]
  ax.set_yticks(np.arange(len(order)) + 1, names, parse_math=False)
  ax.invert_yaxis()
  ax.set_xscale('log')
  # A decade at least: less would have many long ticks, and blow up noise.
  low, high = ax.get_xlim()
  wider = max(1, 10 * low / high) ** 0.5
  ax.set_xlim(low / wider, high * wider)
  _plain(ax, 'x')
  ax.set_xlabel(f'seconds a {one}, mean of a document')
  ax.grid(visible=False, axis='y')
  ax.tick_params(axis='y', length=0)
  return fig


@style.context(plots.STYLE)
def compared(
  scores: Mapping[str, Bars], domains: Sequence[str], note: str = ''
) -> figure.Figure:
  """A group a domain: models or methods side by side, before and after.

  The bar is after, the tick across it before adapting. What a run lacks has
  neither bar nor room.

  Args:
    scores: label -> its scores.
    domains: of the groups, from above.
    note: below the axis.
  """
  rows, places, end = [], {}, 0.0
  for domain in domains:
    own = [label for label, bars in scores.items() if domain in bars.after]
    rows.append(end + (len(own) - 1) / 2)
    places |= {(domain, label): end + n for n, label in enumerate(own)}
    end += max(len(own), 1) + 0.8
  fig = figure.Figure(
    figsize=(6.4, 1.2 + 0.1 * len(scores) + max(0.4 * len(rows), 0.16 * end)),
    layout='constrained',
  )
  ax = fig.add_subplot()
  looks = zip(itertools.cycle(_HATCHES), frontier_plots.looks(), strict=False)
  tick = 'before adapting'
  for (label, bars), (hatch, (color, *_)) in zip(
    scores.items(), looks, strict=False
  ):
    own = [domain for domain in domains if domain in bars.after]
    y = np.array([places[domain, label] for domain in own])
    before = [bars.before.get(domain, np.nan) for domain in own]
    ax.barh(
      y,
      [bars.after[domain] for domain in own],
      0.9,
      color=color,
      edgecolor='white',
      hatch=hatch,
      linewidth=0,
      label=plots.two_lines(label),
    )
    if np.isfinite(before).any():
      ax.vlines(before, y - 0.42, y + 0.42, 'black', label=tick)
      tick = None
  names = [plots.two_lines(domain) for domain in domains]
  ax.set_yticks(rows, names, parse_math=False)
  ax.set_ylim(end - 0.9, -0.9)
  ax.set_xlim(left=0)
  ax.set_xlabel('bits per byte' + (f'\n{note}' if note else ''))
  ax.grid(visible=False, axis='y')
  ax.tick_params(axis='y', length=0)
  plots.legend_above(fig, ax, 2)
  return fig


@style.context(plots.STYLE)
def over_counts(
  lines: Mapping[str, Mapping[int, float]], own: Sequence[str], note: str
) -> figure.Figure:
  """Bits per byte over the count, and their change; thick lines are `own`.

  The change, from the count 0, also shows runs of different data in one range.
  Runs that were not scored at 0 have none.
  """
  fig = figure.Figure(
    figsize=(7.6, 3.3 + 0.34 * math.ceil(len(lines) / 2)),
    layout='constrained',
  )
  left, right = fig.subplots(1, 2)
  for (label, points), (color, marker, dashes) in zip(
    lines.items(), frontier_plots.looks(), strict=False
  ):
    changes = [
      100 * (bits / points[0] - 1) if points.get(0) else np.nan
      for bits in points.values()
    ]
    for ax, values in ((left, list(points.values())), (right, changes)):
      ax.plot(
        list(points),
        values,
        color=color,
        marker=marker,
        linestyle=dashes,
        markersize=5,
        markevery=max(1, len(points) // 10),
        linewidth=2.4 if label in own else 1.2,
        label=plots.two_lines(label),
      )
  left.set_title('bits per byte', loc='left')
  right.set_title('change from 0 neighbours, %', loc='left')
  for ax in (left, right):
    plots.whole_numbers(ax)
  fig.supxlabel('neighbours' + (f'\n{note}' if note else ''), fontsize=9)
  plots.legend_above(fig, left, 2)
  return fig


def _mean_losses(rows: Sequence[Mapping], domain: str) -> np.ndarray:
  """Of each neighbour, over the documents of a domain; NaN where none is."""
  lists = [
    np.array(row.get('train_loss') or [], np.float64)
    for row in rows
    if row['task'] == domain
  ]
  longest = max(map(len, lists), default=0)
  padded = np.full((len(lists), longest), np.nan)
  for line, values in zip(padded, lists, strict=True):
    line[: len(values)] = values
  known = np.isfinite(padded)
  sums = np.where(known, padded, 0).sum(0)
  with np.errstate(invalid='ignore'):
    return sums / known.sum(0)


def _plain(ax: axes_lib.Axes, which: str = 'y') -> None:
  """Numbers of a logarithmic axis as 0.1, 1, 10."""
  axis = getattr(ax, f'{which}axis')
  axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=8))
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
  axis.set_minor_locator(ticker.NullLocator())
