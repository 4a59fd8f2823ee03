"""A study of distances as a table, sentences, JSON and a figure."""

from typing import Any

from matplotlib import axes as axes_lib
from matplotlib import colormaps
from matplotlib import figure
from matplotlib import style
from matplotlib import ticker
import numpy as np

from tttnn.datastore import distances as distances_lib
from tttnn.reporting import plots
from tttnn.reporting import tables

_RANKS = (1, 10)  # And the last one.
_BINS = 100
_NAMES = {'l2': 'distance', 'cosine': '1 - cosine'}
_LONG_NAMES = {'l2': 'Euclidean', 'cosine': '1 minus the cosine'}
_NEAREST, _PAIRS = '#0072b2', '#444444'


def table(study: distances_lib.Study) -> tables.Cells:
  """A line a fraction."""
  head = ['fraction', 'documents']
  head += [f'mean at rank {rank}' for rank in _ranks(study)]
  cells = [[*head, 'median at rank 1', 'near-exact']]
  for line in _lines(study):
    cells.append(
      [
        f'{line["fraction"]:g}',
        f'{line["documents"]:,}',
        *(tables.number(mean) for mean in line['mean_at_rank'].values()),
        tables.number(line['median_at_rank_1']),
        f'{line["near_exact_share"]:.1%}',
      ]
    )
  return cells


def sentences(study: distances_lib.Study) -> list[str]:
  """What the table leaves open, a line each."""
  queries = study.distances_FxQxk.shape[1]
  near = _lines(study)[-1]['near_exact']
  return [
    f'Distances are {_LONG_NAMES[study.metric]}.',
    f'Near-exact: the nearest document is closer than {distances_lib.NEAR:g}; '
    f'{near:,} of {queries:,} queries at the fraction '
    f'{study.fractions[-1]:g}.',
    f'Random pairs of two different queries: mean '
    f'{tables.number(_mean(study.random))}, standard deviation '
    f'{tables.number(_std(study.random))} ({len(study.random):,} pairs).',
  ]


def to_json(study: distances_lib.Study) -> dict[str, Any]:
  """Everything that the table and the sentences say."""
  return {
    'metric': study.metric,
    'queries': study.distances_FxQxk.shape[1],
    'neighbors': study.distances_FxQxk.shape[2],
    'near': distances_lib.NEAR,
    'fractions': _lines(study),
    'random_pairs': {
      'number': len(study.random),
      'mean': _mean(study.random),
      'standard_deviation': _std(study.random),
    },
  }


@style.context(plots.STYLE)
def draw(study: distances_lib.Study) -> figure.Figure:
  """Panels: by rank, by fraction, and histograms of the nearest."""
  fig = figure.Figure(figsize=(10, 6), layout='constrained')
  grid = fig.subplots(2, 3)
  name = _NAMES[study.metric]
  _by_rank(grid[0, 0], grid[1, 2], study)
  _against_pairs(grid[0, 1], study)
  _by_fraction(grid[0, 2], study)
  _histograms(grid[1, 0], study)
  _near(grid[1, 1], study)
  for ax in grid.flat[:3]:
    ax.set_ylabel(name)
  grid[1, 0].set_xlabel(name)
  return fig


def _by_rank(ax: axes_lib.Axes, names: axes_lib.Axes, study) -> None:
  """A line a fraction; the darker, the larger. `names` gets the legend."""
  means_Fxk = study.distances_FxQxk.mean(axis=1, dtype=np.float64)
  shades = colormaps['cividis_r'](np.linspace(0.1, 1, len(means_Fxk)))
  ranks = np.arange(1, means_Fxk.shape[1] + 1)
  for fraction, documents, mean_k, shade in zip(
    study.fractions, study.documents, means_Fxk, shades, strict=True
  ):
    label = f'{fraction:g} ({documents:,} documents)'
    ax.plot(ranks, mean_k, _mark(ranks), color=shade, label=label)
  ax.set_title('mean by rank, for each fraction', loc='left')
  ax.set_xlabel('rank')
  names.axis('off')
  names.legend(
    *ax.get_legend_handles_labels(),
    title='fraction of the store',
    loc='center left',
    frameon=False,
    fontsize=8,
  )


def _against_pairs(ax: axes_lib.Axes, study) -> None:
  distances_Qxk = study.distances_FxQxk[-1].astype(np.float64)
  mean_k, std_k = distances_Qxk.mean(axis=0), distances_Qxk.std(axis=0)
  ranks = np.arange(1, len(mean_k) + 1)
  ax.fill_between(
    ranks,
    mean_k - std_k,
    mean_k + std_k,
    color=_NEAREST,
    alpha=0.25,
    linewidth=0,
    label='\u00b1 standard deviation',
  )
  ax.plot(ranks, mean_k, _mark(ranks), color=_NEAREST, label='mean')
  ax.axhline(
    _mean(study.random), color=_PAIRS, linestyle='--', label='random pairs'
  )
  ax.set_ylim(bottom=min(0, ax.get_ylim()[0]), top=1.45 * ax.get_ylim()[1])
  ax.legend(loc='upper left', frameon=False, fontsize=8)
  ax.set_title(f'by rank, fraction {study.fractions[-1]:g}', loc='left')
  ax.set_xlabel('rank')


def _by_fraction(ax: axes_lib.Axes, study) -> None:
  nearest_FxQ = study.distances_FxQxk[:, :, 0].astype(np.float64)
  for look, color, name, values in (
    ('o-', _NEAREST, 'mean', nearest_FxQ.mean(axis=1)),
    ('s--', _PAIRS, 'median', np.median(nearest_FxQ, axis=1)),
  ):
    ax.plot(
      study.fractions, values, look, color=color, markersize=4, label=name
    )
  ax.set_xlim(0, 1.05 * study.fractions[-1])
  ax.legend(frameon=False, fontsize=8)
  ax.set_title('the nearest, by size of the store', loc='left')
  ax.set_xlabel('fraction of the store')


def _histograms(ax: axes_lib.Axes, study) -> None:
  nearest_Q = study.distances_FxQxk[-1, :, 0]
  both = np.concatenate([nearest_Q, study.random])
  bins = np.linspace(min(0, both.min()), both.max() or 1, _BINS + 1)
  ax.hist(nearest_Q, bins, density=True, color=_NEAREST, label='nearest')
  ax.hist(
    study.random,
    bins,
    density=True,
    histtype='step',
    color=_PAIRS,
    label='random pairs',
  )
  ax.set_ylim(top=1.25 * ax.get_ylim()[1])
  ax.legend(loc='upper right', ncols=2, frameon=False, fontsize=8)
  ax.set_title('the nearest, and random pairs', loc='left')
  ax.set_ylabel('density')


def _near(ax: axes_lib.Axes, study) -> None:
  nearest_Q = study.distances_FxQxk[-1, :, 0].astype(np.float64)
  near_Q = nearest_Q[nearest_Q < distances_lib.NEAR] / distances_lib.NEAR
  ax.set_title(
    f'near-exact: {len(near_Q):,} of {len(nearest_Q):,} queries', loc='left'
  )
  ax.set_xlabel(f'{_NAMES[study.metric]} of the nearest, in {_near_unit()}')
  if not len(near_Q):
    ax.text(
      0.5,
      0.5,
      f'none is below {distances_lib.NEAR:g}',
      transform=ax.transAxes,
      ha='center',
    )
    ax.set(xticks=[], yticks=[])
    return
  ax.hist(near_Q, np.linspace(min(0, near_Q.min()), 1, _BINS + 1), color=_PAIRS)
  ax.set_ylabel('queries')
  ax.yaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))


def _near_unit() -> str:
  return f'$10^{{{round(np.log10(distances_lib.NEAR))}}}$'


def _mark(ranks: np.ndarray) -> str:
  """A line; a point where there is only one."""
  return '-' if len(ranks) > 1 else 'o'


def _ranks(study) -> list[int]:
  """Ranks of the table, counted from 1."""
  k = study.distances_FxQxk.shape[2]
  return sorted({rank for rank in (*_RANKS, k) if rank <= k})


def _lines(study) -> list[dict[str, Any]]:
  lines = []
  for fraction, documents, distances_Qxk in zip(
    study.fractions, study.documents, study.distances_FxQxk, strict=True
  ):
    nearest_Q = distances_Qxk[:, 0]
    near = nearest_Q < distances_lib.NEAR
    lines.append(
      {
        'fraction': float(fraction),
        'documents': int(documents),
        'mean_at_rank': {
          rank: _mean(distances_Qxk[:, rank - 1]) for rank in _ranks(study)
        },
        'median_at_rank_1': float(np.median(nearest_Q.astype(np.float64))),
        'near_exact': int(near.sum()),
        'near_exact_share': float(near.mean()),
      }
    )
  return lines


def _mean(values: np.ndarray) -> float:
  return float(values.mean(dtype=np.float64))


def _std(values: np.ndarray) -> float:
  return float(values.std(dtype=np.float64))
