"""What the `train` benchmark found: a table, the words around it, a figure."""

from collections.abc import Mapping

from matplotlib import figure

from tttnn.benchmarks import report
from tttnn.reporting import plots
from tttnn.reporting import tables

FIGURE = 'Tokens a second'


def tables_of(result: Mapping) -> list[tuple[str, tables.Cells]]:
  """(title, cells) of each table."""
  cells = [
    [
      'shape and side',
      'seconds a step',
      'tokens/s',
      'times as long',
      'of peak',
      'memory',
    ]
  ]
  for name, shape in result['shapes'].items():
    for side, measured in shape['sides'].items():
      cells.append(
        [
          f'{name}: {side}',
          tables.number(measured['seconds_a_step'], 3),
          f'{measured["tokens_per_second"]:,.0f}',
          f'{shape["ratios"].get(side, 1.0):.2f}',
          f'{measured["share_of_peak"]:.0%}',
          report.memory(measured, result['device']['backend']),
        ]
      )
  return [('Steps of AdamW on packed rows.', cells)]


def sentences(result: Mapping) -> list[str]:
  """What one must know to read the table."""
  said = [report.where(result)]
  for name, shape in result['shapes'].items():
    about, losses = shape['shape'], shape['losses']
    said.append(
      f'{name}: {about["model_type"]} of {about["layers"]} layers of width '
      f'{about["width"]}, vocabulary {about["vocabulary"]:,}; '
      f'{about["rows"]} rows of {about["context"]} tokens a step; the loss '
      f'falls from {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps; '
      f'peak {shape["peak"] / 1e9:,.0f} GFLOP/s.'
    )
    for side, apart in shape['checks'].items():
      said.append(
        f'{name}: the losses of {side} differ by {apart:.0e} nats at most.'
      )
  said.append(
    'Operations are those that a step must do: of a masked LM the vocabulary '
    'is for hidden tokens alone, which PyTorch takes for all.'
  )
  return said + report.who(result)


def draw(result: Mapping) -> figure.Figure:
  """A panel of bars a shape."""
  return plots.bars(
    {
      name: {
        side: measured['tokens_per_second']
        for side, measured in shape['sides'].items()
      }
      for name, shape in result['shapes'].items()
    },
    'tokens a second',
  )
