"""What the `ttt` benchmark found: tables, the words around them, a figure."""

from collections.abc import Mapping

from matplotlib import figure

from tttnn.benchmarks import bench
from tttnn.benchmarks import report
from tttnn.reporting import plots
from tttnn.reporting import tables

FIGURE = 'Seconds a document'


def tables_of(result: Mapping) -> list[tuple[str, tables.Cells]]:
  """(title, cells) of each table."""
  speed = [
    [
      'shape and side',
      's a neighbour',
      'documents/s',
      'times as long',
      'of peak, steps',
      'of peak, all',
      'memory',
    ]
  ]
  for name, shape in result['shapes'].items():
    speed += [
      _speed_row(name, shape, side, measured, result['device']['backend'])
      for side, measured in shape['sides'].items()
    ]
  found = [('Adapting and scoring around every neighbour.', speed)]
  phases = [
    [name, shape['phases']]
    for name, shape in result['shapes'].items()
    if shape['phases']
  ]
  if phases:
    head = [
      'shape',
      'documents x tokens',
      'gradient',
      'of matmul peak',
      'optimizer',
      'of bandwidth',
      'dispatch',
    ]
    cells = [head] + [_phases_row(name, phase) for name, phase in phases]
    found.append(('A step of the engine in its parts.', cells))
  return found


def _speed_row(
  name: str, shape: Mapping, side: str, measured: Mapping, backend: str
) -> list[str]:
  ratio = shape['ratios'].get(side, 1.0)
  shares = measured['share_of_peak']
  return [
    f'{name}: {side}',
    tables.number(measured['seconds_per_neighbor'], 4),
    tables.number(measured['documents_per_second'], 3),
    f'{ratio:.2f}',
    f'{shares["steps"]:.0%}',
    f'{shares["all"]:.0%}',
    report.memory(measured, backend),
  ]


def _phases_row(name: str, phases: Mapping) -> list[str]:
  return [
    name,
    f'{phases["rows"]} x {phases["size"]}',
    f'{1e3 * phases["gradient_seconds"]:.2f} ms',
    f'{phases["gradient_share_of_peak"]:.0%}',
    f'{1e3 * phases["optimizer_seconds"]:.2f} ms',
    f'{phases["optimizer_share_of_bandwidth"]:.0%}',
    f'{1e3 * phases["dispatch_seconds"]:.2f} ms',
  ]


def sentences(result: Mapping) -> list[str]:
  """What one must know to read the tables."""
  said = [report.where(result)]
  for name, shape in result['shapes'].items():
    ours = shape['sides'][bench.ENGINE]
    usage = ours['usage']['step']
    rest = ours['median_parts']['rest'] / ours['median_seconds']
    said.append(
      f'{name}: {shape["documents"]} documents with {shape["neighbors"]} '
      f'neighbours each, {len(shape["matmul"])} repeats; matrix product at '
      f'{shape["matmul_peak"] / 1e9:,.0f} GFLOP/s; in {bench.ENGINE} '
      f'{usage["documents_a_dispatch"]:.1f} documents a step, '
      f'{usage["padded_share"]:.0%} of its tokens padding, {rest:.0%} of the '
      'time moving documents in and out.'
    )
    for side, apart in shape['checks'].items():
      shown = ', '.join(f'{k} {v:.0e}' for k, v in apart.items())
      said.append(f'{name}: {side} differs by {shown}.')
  said += report.who(result)
  scaling = result['scaling']
  for over, curves in scaling['curves'].items():
    for side, curve in curves.items():
      line = curve['line']
      said.append(
        f'{side}, {scaling["shape"]}: {line["intercept"]:.4f} s + '
        f'{line["slope"]:.4f} s x {over}, r2 {line["r2"]:.4f}.'
      )
  return said


def draw(result: Mapping) -> figure.Figure:
  """Seconds a document over neighbours and over windows, with their lines."""
  labels = {
    'neighbors': 'neighbours of one window',
    'windows': 'windows of one neighbour',
  }
  scaling = result['scaling']
  panels = {}
  for over, curves in scaling['curves'].items():
    panels[labels[over]] = {
      side: plots.Line(
        curve['counts'],
        curve['median_seconds'],
        curve['line']['intercept'],
        curve['line']['slope'],
      )
      for side, curve in curves.items()
    }
  return plots.straight_lines(
    panels, f'seconds a document ({scaling["shape"]})'
  )
