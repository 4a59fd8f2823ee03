"""Bits per byte of kNN-LM by its settings: tables, a CSV file, a figure."""

from collections.abc import Sequence
import dataclasses
import itertools
import math

from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib
from matplotlib import style
from matplotlib import ticker
import numpy as np

from tttnn.methods import knn_lm
from tttnn.methods import knn_tuning
from tttnn.reporting import frontier_plots
from tttnn.reporting import plots
from tttnn.reporting import tables

_GREY = '#666666'


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
  """What settings give on the same documents.

  Attributes:
    grid: the settings.
    bits_LxtxK: bits per byte of each.
    base: of the model alone.
  """

  grid: knn_tuning.Grid
  bits_LxtxK: np.ndarray
  base: float

  def at(self, settings: knn_lm.Settings) -> float:
    """Bits per byte of settings that are in the grid."""
    return float(
      self.bits_LxtxK[
        self.grid.lambdas.index(settings.lambda_),
        self.grid.temperatures.index(settings.temperature),
        self.grid.ks.index(settings.neighbors),
      ]
    )


def tables_of(
  sweep: Sweep, best: knn_lm.Settings
) -> list[tuple[str, tables.Cells]]:
  """(title, cells): lambda by temperature at the best k; the best of each k."""
  grid = sweep.grid
  place = grid.ks.index(best.neighbors)
  cells = [['lambda', *(f'T {value:g}' for value in grid.temperatures)]]
  for lambda_, bits_t in zip(
    grid.lambdas, sweep.bits_LxtxK[:, :, place], strict=True
  ):
    cells.append([f'{lambda_:g}', *map(tables.number, bits_t)])
  title = (
    f'Chosen: lambda {best.lambda_:g}, temperature {best.temperature:g}, k '
    f'{best.neighbors:,}. Bits per byte at that k by lambda and temperature T; '
    f'of the model alone {tables.number(sweep.base)}.'
  )
  found = [(title, cells)]
  if len(grid.ks) > 1:
    lines = [['k', 'lambda', 'temperature', 'bits per byte']]
    for place, k in enumerate(grid.ks):
      bits_Lxt = sweep.bits_LxtxK[:, :, place]
      filled_Lxt = np.where(np.isnan(bits_Lxt), np.inf, bits_Lxt)
      at = np.unravel_index(filled_Lxt.argmin(), bits_Lxt.shape)
      settings = f'{grid.lambdas[at[0]]:g}', f'{grid.temperatures[at[1]]:g}'
      lines.append([f'{k:,}', *settings, tables.number(bits_Lxt[at])])
    found.append(('The best for each k.', lines))
  return found


def bins_table(bins: knn_tuning.Bins) -> tables.Cells:
  """A line a bin."""
  begins = ['-', *(f'{edge:g}' for edge in bins.edges)]
  return [['distance from', 'lambda']] + [
    [begin, f'{lambda_:g}']
    for begin, lambda_ in zip(begins, bins.lambdas, strict=True)
  ]


def csv(sweep: Sweep) -> str:
  """A line a setting, in full digits; empty where there is no number."""
  grid = sweep.grid
  lines = ['lambda,temperature,k,bits_per_byte']
  for settings, bits in zip(
    itertools.product(grid.lambdas, grid.temperatures, grid.ks),
    sweep.bits_LxtxK.ravel().tolist(),
    strict=True,
  ):
    shown = repr(bits) if math.isfinite(bits) else ''
    lines.append(','.join([*map(repr, settings), shown]))
  return '\n'.join(lines) + '\n'


@style.context(plots.STYLE)
def figure(sweep: Sweep, best: knn_lm.Settings) -> figure_lib.Figure:
  """A panel a k: bits per byte over lambda, a line a temperature.

  The other way round where there are more temperatures. A ring is at the best,
  the dashed line is the model alone. What is far above it is left out.
  """
  ks = _shown(sweep.grid.ks, best.neighbors)
  columns = 2 if len(ks) == 4 else min(3, len(ks))
  rows = math.ceil(len(ks) / columns)
  fig = figure_lib.Figure(
    figsize=(max(2.6 * columns, 4.6), 0.9 + 2.3 * rows), layout='constrained'
  )
  grid = fig.subplots(rows, columns, squeeze=False, sharey=True).ravel()
  for ax, k in zip(grid, ks, strict=False):
    _panel(ax, sweep, best, k)
  for ax in grid[len(ks) :]:
    ax.remove()
  grid[0].set_ylim(*_limits(sweep))
  handles = {}
  for ax in grid[: len(ks)]:  # One of them has what is chosen.
    for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
      handles.setdefault(name, handle)
  fig.legend(
    handles.values(),
    handles.keys(),
    loc='outside upper center',
    ncols=(3, 3, 5)[columns - 1],
    columnspacing=1.4,
    fontsize=8,
    frameon=False,
    handlelength=3.2,
  )
  fig.supylabel('bits per byte', fontsize=9)
  return fig


def _panel(
  ax: axes_lib.Axes, sweep: Sweep, best: knn_lm.Settings, k: int
) -> None:
  grid = sweep.grid
  bits_Lxt = sweep.bits_LxtxK[:, :, grid.ks.index(k)]
  x, names, bits = grid.lambdas, grid.temperatures, bits_Lxt.T
  label, other = 'lambda', 'temperature'
  at, of = best.lambda_, best.temperature
  if len(grid.temperatures) > len(grid.lambdas):
    x, names, bits = grid.temperatures, grid.lambdas, bits_Lxt
    label, other, at, of = other, label, of, at
    ax.set_xscale('log')
    ticks = tables.thinned(x)
    ax.set_xticks(ticks, [f'{value:g}' for value in ticks])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
  looks = frontier_plots.looks()
  for look, name in zip(looks, _shown(names, of), strict=False):
    color, marker, dashes = look
    ax.plot(
      x,
      bits[names.index(name)],
      color=color,
      marker=marker,
      markersize=4,
      markeredgecolor='white',
      markeredgewidth=0.5,
      linestyle=dashes,
      linewidth=1.3,
      label=f'{other} {name:g}',
    )
  ax.axhline(
    sweep.base, color=_GREY, linestyle='--', linewidth=1, label='model alone'
  )
  if k == best.neighbors:
    ax.plot(
      [at],
      [sweep.at(best)],
      'o',
      color='black',
      fillstyle='none',
      markersize=9,
      markeredgewidth=1.2,
      label='chosen',
    )
  ax.set_xlabel(label)
  ax.set_title(f'k {k:,}', loc='left')


def _shown(values: Sequence[float], best: float) -> list[float]:
  """As many as there is room for, the best among them."""
  return sorted({*tables.thinned(values), best})


def _limits(sweep: Sweep) -> tuple[float, float]:
  """Of the axis: nothing is further above the base than the best is below."""
  bits = sweep.bits_LxtxK[np.isfinite(sweep.bits_LxtxK)]
  values = [*bits.tolist(), sweep.base]
  values = [value for value in values if math.isfinite(value)]
  if not values:
    return 0.0, 1.0
  low, high = min(values), max(values)
  if math.isfinite(sweep.base):
    high = min(high, sweep.base + max(sweep.base - low, 0.01 * sweep.base))
  room = 0.06 * max(high - low, 0.01 * abs(high), 1e-6)
  return low - room, high + room
