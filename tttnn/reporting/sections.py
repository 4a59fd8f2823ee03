"""What the section of a run shows: its intervals, tables and figures."""

import dataclasses

from tttnn.reporting import costs
from tttnn.reporting import neighbor_plots
from tttnn.reporting import page
from tttnn.reporting import plots
from tttnn.reporting import run_plots
from tttnn.scoring import intervals


def drawn(
  shown: page.Run, number: int, *, as_published: bool = False
) -> page.Run:
  """The run with intervals, tables and figures.

  Args:
    shown: the run, with its rows and their table.
    number: that tells its files from those of other runs.
    as_published: as of `intervals.of_table`.
  """
  rows, table, unit = shown.rows, shown.table, shown.unit
  known = curves = None
  if table.all.last_counts[1] and 0 in table.all.by_count:
    known = intervals.of_table(rows, table, as_published=as_published)
  if len(table.all.by_count) > 1:
    curves = page.Figure.draw(
      f'curves_{number}.png',
      f'Bits per byte over {unit}, a panel a domain.',
      plots.curves(table, unit),
    )
  more = [('seconds', 'Seconds a document.', costs.seconds_table(rows))]
  spent = costs.per_neighbor(rows)
  if spent:
    cells = costs.cost_table(rows, unit)
    title = f'What adapting to a {_one(unit)} costs.'
    more.insert(0, ('cost', title, cells))
  return dataclasses.replace(
    shown,
    known=known,
    before_after=page.Figure.draw(
      f'before_after_{number}.png',
      'Bars of bits per byte by domain, the numbers of the table above.',
      plots.before_after(table, unit, known),
    ),
    curves=curves,
    more_tables=more,
    more_figures=list(_more_figures(shown, number, spent, known)),
  )


def _more_figures(shown: page.Run, number: int, spent, known):
  table, unit = shown.table, shown.unit
  domains = run_plots.largest(shown.rows)
  if len(table.tasks) > len(domains):
    few = run_plots.only(table, domains)
    yield page.Figure.draw(
      f'largest_{number}.png',
      f'The {len(domains)} largest domains before and after.',
      plots.before_after(few, unit, known),
    )
  if len(table.all.by_count) > 1:
    yield page.Figure.draw(
      f'measures_{number}.png',
      f'Bits per byte and perplexities over {unit}, the largest domains.',
      run_plots.measures(table, domains, unit),
    )
    losses = run_plots.losses(shown.rows, table, domains, unit)
    if losses:
      yield page.Figure.draw(
        f'losses_{number}.png',
        f'Bits per byte, and the loss of training, over {unit}.',
        losses,
      )
  if spent:
    yield page.Figure.draw(
      f'cost_{number}.png',
      'Seconds of adapting once, by domain.',
      run_plots.cost_boxes(spent, _one(unit)),
    )
  distances_Bxk = neighbor_plots.distances(shown.rows)
  if distances_Bxk.size:
    yield page.Figure.draw(
      f'distances_{number}.png',
      'Distances of the neighbours from their documents.',
      neighbor_plots.draw(distances_Bxk),
    )


def _one(unit: str) -> str:
  """What is adapted to at a time."""
  return 'pass' if unit == 'passes' else 'neighbour'
