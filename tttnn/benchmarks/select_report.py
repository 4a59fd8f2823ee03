"""What the `select` benchmark found: a table, words around it, a figure."""

from collections.abc import Mapping

from matplotlib import figure
import numpy as np

from tttnn.benchmarks import select
from tttnn.reporting import plots
from tttnn.reporting import tables

FIGURE = 'Milliseconds a query'


def tables_of(result: Mapping) -> list[tuple[str, tables.Cells]]:
  """(title, cells) of each table."""
  taken = _milliseconds(result)
  sift = taken[select.WAYS['sift']]
  cells = [['way', 'a query', 'of SIFT']]
  for name, milliseconds in taken.items():
    cells.append([name, f'{milliseconds:.2f} ms', f'{milliseconds / sift:.2f}'])
  shape = result['shape']
  title = f'{shape["picks"]} picks of {shape["pool"]} candidates.'
  return [(title, cells)]


def sentences(result: Mapping) -> list[str]:
  """What one must know to read the table."""
  shape, different = result['shape'], result['different']
  said = [
    f'{shape["dim"]} dimensions, {shape["queries"]} queries at a time, '
    f'{result["cores"]} cores, lambda {result["lambda"]:g}; '
    f'{shape["topics"]} topics, {shape["copies"]} near-copies in a pool.',
    f'Different texts among the picks: {different["sift"]:.1f} of SIFT, '
    f'{different["frank_wolfe"]:.1f} of Frank-Wolfe.',
  ]
  taken = _milliseconds(result)
  if select.RIVAL in taken:
    times = taken[select.RIVAL] / taken[select.WAYS['sift']]
    said.append(f'{times:.1f} times as fast as whole covariances; same picks.')
  return said


def draw(result: Mapping) -> figure.Figure:
  """A bar a way."""
  (title, _), *_ = tables_of(result)
  return plots.bars({title: _milliseconds(result)}, 'milliseconds a query')


def _milliseconds(result: Mapping) -> dict[str, float]:
  """Median of each way, of one query."""
  queries = result['shape']['queries']
  return {
    name: 1e3 * float(np.median(seconds)) / queries
    for name, seconds in result['seconds'].items()
  }
