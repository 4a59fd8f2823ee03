"""What the `embed` benchmark found: a table, the words around it, a figure."""

from collections.abc import Mapping

from matplotlib import figure

from tttnn.benchmarks import report
from tttnn.reporting import plots
from tttnn.reporting import tables

FIGURE = 'Texts a second'


def tables_of(result: Mapping) -> list[tuple[str, tables.Cells]]:
  """(title, cells) of each table."""
  cells = [
    [
      'shape and side',
      'texts/s',
      'times as long',
      'padding',
      'of matmul peak',
      'memory',
    ]
  ]
  for name, shape in result['shapes'].items():
    for side, measured in shape['sides'].items():
      cells.append(
        [
          f'{name}: {side}',
          tables.number(measured['texts_per_second'], 4),
          f'{shape["ratios"].get(side, 1.0):.2f}',
          f'{measured["padded_share"]:.0%}',
          f'{measured["share_of_peak"]:.0%}',
          report.memory(measured, result['device']['backend']),
        ]
      )
  return [('From texts to embeddings on the host.', cells)]


def sentences(result: Mapping) -> list[str]:
  """What one must know to read the table."""
  said = [report.where(result)]
  for name, shape in result['shapes'].items():
    about = shape['shape']
    said.append(
      f'{name}: {about["layers"]} layers of width {about["width"]}; '
      f'{shape["texts"]} texts of {shape["tokens"] / shape["texts"]:.0f} '
      f'tokens on average, {shape["cut_off"]} of them cut off at '
      f'{about["context"]}; matrix product at '
      f'{shape["matmul_peak"] / 1e9:,.0f} GFLOP/s.'
    )
    for side, apart in shape['checks'].items():
      said.append(
        f'{name}: the embeddings of {side} differ by {apart:.0e} of their '
        'length at most.'
      )
  return said + report.who(result)


def draw(result: Mapping) -> figure.Figure:
  """A panel of bars a shape."""
  return plots.bars(
    {
      name: {
        side: measured['texts_per_second']
        for side, measured in shape['sides'].items()
      }
      for name, shape in result['shapes'].items()
    },
    'texts a second',
  )
