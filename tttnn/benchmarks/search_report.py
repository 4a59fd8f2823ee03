"""What the `search` benchmark found: tables, words around them, a figure."""

from collections.abc import Mapping

from matplotlib import figure
import numpy as np

from tttnn.benchmarks import bench
from tttnn.reporting import plots
from tttnn.reporting import tables

FIGURE = 'Milliseconds a query'


def tables_of(result: Mapping) -> list[tuple[str, tables.Cells]]:
  """(title, cells) of each table."""
  rows = int(result['shape']['rows'])
  speeds = [['queries', 'faiss Flat', 'host', 'times', 'device', 'times']]
  for count, taken in result['batches'].items():
    cells = [count, f'{1e3 * taken["faiss"]:.1f} ms']
    for way in ('host', 'device'):
      cells += [
        f'{1e3 * taken[way]:.1f} ms',
        f'{taken["faiss"] / taken[way]:.2f}',
      ]
    speeds.append(cells)
  trips = [['vectors', 'in this process', 'through the server', 'more']]
  for vectors, trip in result['round_trips'].items():
    keys = ('here_seconds', 'server_seconds', 'more_seconds')
    trips.append([vectors, *(f'{1e3 * trip[key]:.2f} ms' for key in keys)])
  best = max(map(np.median, result['load'].values()))
  answers = [['side', 'answers/s', 'of the best']]
  for side, rates in result['load'].items():
    rate = float(np.median(rates))
    answers.append([side, f'{rate:,.0f}', f'{rate / best:.3f}'])
  return [
    (f'Exact search in {rows:,} vectors.', speeds),
    ('The round trip of one query.', trips),
    ('Many clients.', answers),
  ]


def sentences(result: Mapping) -> list[str]:
  """What one must know to read the tables."""
  shape, rates = result['shape'], result['load']
  ours = float(np.median(rates[bench.ENGINE]))
  others = {k: float(np.median(v)) for k, v in rates.items()}
  del others[bench.ENGINE]
  said = [
    f'{shape["dim"]} dimensions, k = {result["k"]}, {result["cores"]} cores; '
    f'{shape["clients"]} clients with {shape["outstanding"]} queries '
    'outstanding each.',
    f'A host of {shape["large"]:,} vectors starts in '
    f'{np.median(result["start_seconds"]):.2f} s.',
  ]
  if others:
    name = max(others, key=others.get)
    said.append(f'{ours / others[name]:.1f} times the answers of {name}.')
  return said


def draw(result: Mapping) -> figure.Figure:
  """Milliseconds a query over the queries of a search."""
  counts = [int(count) for count in result['batches']]
  lines = {
    label: (
      counts,
      [1e3 * taken[way] / int(n) for n, taken in result['batches'].items()],
    )
    for way, label in (
      ('device', 'on the device'),
      ('faiss', 'faiss Flat'),
      ('host', 'search host'),
    )
  }
  return plots.log_lines(lines, 'queries of one search', 'milliseconds a query')
