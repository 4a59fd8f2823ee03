"""Several runs beside each other, and beside published ones."""

from collections.abc import Mapping
from collections.abc import Sequence
import math

from tttnn.reporting import frontier
from tttnn.reporting import frontier_plots
from tttnn.reporting import page
from tttnn.reporting import published as published_lib
from tttnn.reporting import run_plots
from tttnn.reporting import tables
from tttnn.scoring import metrics
from tttnn.scoring import paired

# (name, title, cells).
Tables = list[tuple[str, str, tables.Cells]]

NOT_THE_PILE = (
  'Published figures are of the 22 tasks of the Pile; what is not marked as '
  'published is of other data, and does not compare.'
)
_PILE = (
  'Published figures are of the 22 tasks of the Pile, and so are the rest.'
)
_ALL = ('all', 'pile_all')
# What `pile_all` is defined of.
_WEIGHTED = ('bits_per_byte', 'training_cost')


def of_runs(
  runs: Sequence[page.Run], parts: Mapping[str, Sequence[paired.Rows]]
) -> tuple[Tables, list[page.Figure]]:
  """Tables and figures of several runs, over the documents that all have.

  Differences, paired over documents, are those from the first run of ttt.

  Args:
    runs: to compare.
    parts: name -> the rows of what a run consists of, where counts are runs of
      their own; those of the run itself else.
  """
  found = [
    ('methods', page.comparison_title(runs), page.comparison(runs)),
  ]
  shared = [run.rows for run in runs]
  shared = paired.common(list(zip(parts, shared, strict=True)))
  scored = [metrics.aggregate(rows) for rows in shared]
  domains = run_plots.largest(shared[0])
  bars = {
    run.name: _bars(table) for run, table in zip(runs, scored, strict=True)
  }
  figures = [
    page.Figure.draw(
      'compared.png',
      'Bits per byte of each run, over all documents and in the largest '
      'domains.',
      run_plots.compared(bars, _shown(bars, domains)),
    )
  ]
  ids = {row['doc_id'] for row in shared[0]}
  lines = {
    name: [[row for row in rows if row['doc_id'] in ids] for rows in lists]
    for name, lists in parts.items()
  }
  more, drawn = _over_seconds(runs, lines)
  return found + more, figures + drawn


def with_published(
  name: str, runs: Sequence[page.Run]
) -> tuple[Tables, list[page.Figure]]:
  """Tables and figures of a published set, with one's own runs if there are.

  Raises:
    ValueError: if there is no such set.
  """
  theirs = published_lib.load(name)
  note = ''
  if runs:
    alike = all(published_lib.is_pile(run.table) for run in runs)
    note = _PILE if alike else NOT_THE_PILE
  head = ['run', 'before', 'after', 'change', 'N', 'data', 'source']
  cells = [head] + [_own(run) for run in runs] + [_theirs(r) for r in theirs]
  title = f'Bits per byte, domains weighted as in the Pile. {note}'.strip()
  found = [('published', title, cells)]

  lines = {
    f'{run.name}, {_total_name(run.table)}': {
      count: score.bits_per_byte
      for count, score in _total(run.table).by_count.items()
    }
    for run in runs
  }
  own = list(lines)
  lines |= {
    run.label: {count: run.total(count) for count in run.counts}
    for run in theirs
    if len(run.counts) > 1
  }
  counts = {
    count for run in theirs if len(run.counts) > 1 for count in run.counts
  }
  cells = _by_count(lines, sorted(counts))
  found.append(('published_by_count', 'The same by neighbours.', cells))
  title = f'Bits per byte after adapting, by domain of the Pile. {note}'.strip()
  found.append(('published_by_domain', title, _by_domain(runs, theirs)))
  bars = {run.name: _bars(run.table) for run in runs}
  bars |= {
    run.label: run_plots.Bars(
      _with_total(run, min(run.counts)), _with_total(run, max(run.counts))
    )
    for run in theirs
    if len(run.counts) > 1
  }
  domains = sorted(
    metrics.PILE_WEIGHTS, key=lambda domain: -metrics.PILE_WEIGHTS[domain]
  )
  shown = _shown(bars, domains[:6])
  short = 'not all of it is of the Pile' if note == NOT_THE_PILE else ''
  figures = [
    page.Figure.draw(
      'published_curves.png',
      f'Bits per byte over neighbours. {note}'.strip(),
      run_plots.over_counts(lines, own, short),
    ),
    page.Figure.draw(
      'published_domains.png',
      f'Bits per byte in the Pile\u2019s largest domains. {note}'.strip(),
      run_plots.compared(bars, shown, short),
    ),
  ]
  return found, figures


def _over_seconds(
  runs: Sequence[page.Run], lines: Mapping[str, Sequence[paired.Rows]]
) -> tuple[Tables, list[page.Figure]]:
  """Quality against seconds and counts, or why there is none.

  Args:
    runs: to compare.
    lines: name -> rows of its parts, of the documents that all runs have.
  """
  last = {name: lists[-1] for name, lists in lines.items()}
  try:
    points = [
      point
      for name, lists in lines.items()
      for rows in lists
      for point in frontier.points(name, rows)
    ]
    frontier.check(last)
  except ValueError as error:
    cells = [['why there is no plot over seconds'], [str(error)]]
    return [('frontier', 'Quality against seconds.', cells)], []
  found = [('frontier', frontier.title(points), frontier.table(points))]
  reference = next((run.name for run in runs if run.method == 'ttt'), None)
  differences = frontier.against(reference, last) if reference else []
  if differences:
    title = frontier.differences_title(differences)
    cells = frontier.differences_table(differences)
    found.append(('differences', title, cells))
  figures = [
    page.Figure.draw(
      'frontier.png',
      'Bits per byte over seconds a document: lower and left is better.',
      frontier_plots.over_seconds(points),
    ),
    page.Figure.draw(
      'counts.png',
      'Bits per byte over the number of neighbours.',
      frontier_plots.over_counts(points),
    ),
    page.Figure.draw(
      'seconds.png',
      'Seconds a document by stage.',
      frontier_plots.seconds(points),
    ),
  ]
  return found, figures


def published_scores(name: str) -> tables.Cells:
  """The figures of a published set: run, domain, metric, count, '', value.

  With all digits that are known, and `pile_all`, computed, of what every task
  has.

  Raises:
    ValueError: if there is no such set.
  """
  cells = []
  for run in published_lib.load(name):
    for metric, count in sorted({key[1:] for key in run.values}):
      values = run.by_domain(count, metric)
      if metric in _WEIGHTED and len(values) == len(metrics.PILE_WEIGHTS):
        values['pile_all'] = run.total(count, metric)
      for domain, value in values.items():
        label = f'{run.name} (published)'
        cells.append([label, domain, metric, str(count), '', repr(value)])
  return cells


def _bars(table: metrics.Table) -> run_plots.Bars:
  lines = _lines(table)
  if len(table.tasks) == 1:
    lines['all'] = table.all
  return run_plots.Bars(
    {
      name: curve.last.base_bits_per_byte
      for name, curve in lines.items()
      if curve.last_counts[1]
    },
    {name: curve.last.bits_per_byte for name, curve in lines.items()},
  )


def _lines(table: metrics.Table) -> dict[str, metrics.Curve]:
  """The domains and totals; `pile_all` only of the whole Pile."""
  lines = dict(table.lines())
  if not published_lib.is_pile(table):
    lines.pop('pile_all', None)
  return lines


def _shown(
  bars: Mapping[str, run_plots.Bars], domains: Sequence[str]
) -> list[str]:
  """The totals and domains for which there is a bar."""
  return [
    name
    for name in (*_ALL, *domains)
    if any(name in run.after for run in bars.values())
  ]


def _total(table: metrics.Table) -> metrics.Curve:
  return table.pile_all if published_lib.is_pile(table) else table.all


def _total_name(table: metrics.Table) -> str:
  if published_lib.is_pile(table):
    return 'pile_all'
  return 'all documents, not of the Pile'


def _own(run: page.Run) -> list[str]:
  curve = _total(run.table)
  return [
    run.name,
    tables.number(curve.last.base_bits_per_byte),
    tables.number(curve.last.bits_per_byte),
    tables.percent(curve.last.change),
    tables.count_range(curve.last_counts),
    'the Pile' if published_lib.is_pile(run.table) else 'other data',
    'here',
  ]


def _theirs(run: published_lib.Run) -> list[str]:
  last = max(run.counts)
  before = run.total(0)
  after = run.total(last)
  return [
    run.label,
    tables.number(before),
    tables.number(after) if last else '-',
    tables.percent(after / before - 1) if last else '-',
    str(last),
    'the Pile',
    f'published: {run.source}',
  ]


def _by_count(
  lines: Mapping[str, Mapping[int, float]], counts: Sequence[int]
) -> tables.Cells:
  return [['run', *map(str, counts)]] + [
    [
      label,
      *(tables.number(line[n]) if n in line else '-' for n in counts),
    ]
    for label, line in lines.items()
  ]


def _by_domain(
  runs: Sequence[page.Run], theirs: Sequence[published_lib.Run]
) -> tables.Cells:
  """A line a domain of the Pile, the heaviest first, a column a run.

  Of one's own those with such domains, of the published those with a curve.
  """
  columns = {}
  for run in runs:
    known = {
      name: curve.last.bits_per_byte
      for name, curve in _lines(run.table).items()
      if name in metrics.PILE_WEIGHTS or name == 'pile_all'
    }
    if known:
      last = tables.count_range(run.table.all.last_counts)
      columns[f'{run.name} at {last}'] = known
  for run in theirs:
    last = max(run.counts)
    if len(run.counts) > 1:
      columns[f'{run.label} at {last}'] = _with_total(run, last)
  domains = sorted(
    metrics.PILE_WEIGHTS, key=lambda domain: -metrics.PILE_WEIGHTS[domain]
  )
  return [['domain', *columns]] + [
    [
      domain,
      *(tables.number(c.get(domain, math.nan)) for c in columns.values()),
    ]
    for domain in ['pile_all', *domains]
  ]


def _with_total(run: published_lib.Run, count: int) -> dict[str, float]:
  return run.by_domain(count) | {'pile_all': run.total(count)}
