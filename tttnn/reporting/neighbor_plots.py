"""A figure of how far the neighbours of a run's documents are.

The job `distances` draws the same for parts of a store and random pairs; this
one needs no more than the rows of a run.
"""

from collections.abc import Mapping
from collections.abc import Sequence

from matplotlib import figure
from matplotlib import style
from matplotlib import ticker
import numpy as np

from tttnn.reporting import plots
from tttnn.reporting import tables
from tttnn.scoring import metrics

_BINS = 40
_NEAREST = '#0072b2'


def distances(rows: Sequence[Mapping]) -> np.ndarray:
  """Distances [documents, most neighbours], in the order of the neighbours.

  NaN where a document has fewer. Documents without neighbours are left out.
  """
  lists = [[n['distance'] for n in row['neighbors']] for row in rows]
  lists = [values for values in lists if values]
  found_Bxk = np.full((len(lists), max(map(len, lists), default=0)), np.nan)
  for line, values in zip(found_Bxk, lists, strict=True):
    line[: len(values)] = values
  return found_Bxk


@style.context(plots.STYLE)
def draw(distances_Bxk: np.ndarray) -> figure.Figure:
  """Mean and standard deviation by place, and a histogram of the nearest."""
  fig = figure.Figure(figsize=(7.2, 2.9), layout='constrained')
  left, right = fig.subplots(1, 2)
  mean_k = np.nanmean(distances_Bxk, axis=0)
  std_k = np.nanstd(distances_Bxk, axis=0)
  places = np.arange(1, len(mean_k) + 1)
  shown = [place - 1 for place in tables.thinned(places.tolist())]
  left.plot(places, mean_k, 'o-', color=_NEAREST, markersize=4, markevery=shown)
  left.errorbar(
    places[shown],
    mean_k[shown],
    std_k[shown],
    fmt='none',
    ecolor='#666666',
    elinewidth=0.9,
    capsize=2,
  )
  left.set_ylim(bottom=min(0, left.get_ylim()[0]))
  left.set_title('mean \u00b1 standard deviation', loc='left')
  left.set_xlabel('neighbour, as they were taken')
  left.set_ylabel('distance')
  plots.whole_numbers(left)
  nearest_B = np.nanmin(distances_Bxk, axis=1)
  near = int((nearest_B < metrics.NEAR_EXACT).sum())
  bins = np.linspace(min(0, nearest_B.min()), nearest_B.max() or 1, _BINS + 1)
  right.hist(nearest_B, bins, color=_NEAREST, edgecolor='white', linewidth=0.4)
  right.set_title(
    f'the nearest; near-exact: {near:,} of {len(nearest_B):,}', loc='left'
  )
  right.set_xlabel('distance')
  right.set_ylabel('documents')
  right.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  return fig
