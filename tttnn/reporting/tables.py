"""Tables of a run: Markdown, CSV and LaTeX for files, text for terminals.

A table is a list of rows of cells, the header first; the first column is text,
the others are numbers.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import csv
import io
import math
import re

import numpy as np

from tttnn.scoring import intervals
from tttnn.scoring import metrics

Cells = list[list[str]]
_COLUMNS = 8  # Neighbour counts that a table has room for.


def count_unit(method: str) -> str:
  """What the neighbour counts of a method's results really count."""
  units = {
    'dynamic_eval': 'passes',
    'knn_lm': 'entries',
    'retomaton': 'entries',
  }
  return units.get(method, 'neighbours')


def markdown(table: metrics.Table, unit: str = 'neighbours') -> str:
  """Both tables as Markdown; `unit` is what the counts count."""
  parts = [before_after_title(table, unit)]
  parts.append(render_markdown(before_after(table, unit)))
  if len(table.all.by_count) > 1:
    parts.append(by_count_title(table, unit))
    parts.append(render_markdown(by_count(table)))
  return '\n\n'.join(part.strip() for part in parts) + '\n'


def text(table: metrics.Table, unit: str = 'neighbours') -> str:
  """The before/after table, aligned for a terminal."""
  return render_text(before_after(table, unit))


def before_after(
  table: metrics.Table,
  unit: str = 'neighbours',
  known: Mapping[str, intervals.Intervals] | None = None,
) -> Cells:
  """Bits per byte of each domain at 0 and at the last count.

  Each document enters with the last count it was scored at, so both columns
  are over the same documents; the column named `unit` shows the counts. With
  intervals by label, there is a column of those of the change.
  """
  if not table.all.last_counts[1]:
    head = ['domain', 'bits per byte', 'documents']
    return [head] + [
      [name, number(c.last.bits_per_byte), f'{c.last.documents:,}']
      for name, c in table.lines()
    ]
  head = ['domain', 'before', 'after', 'change', unit, 'documents']
  if known:
    head.insert(4, 'interval')
  cells = [head]
  for name, curve in table.lines():
    line = [
      name,
      number(curve.last.base_bits_per_byte),
      number(curve.last.bits_per_byte),
      percent(curve.last.change),
      count_range(curve.last_counts),
      f'{curve.last.documents:,}',
    ]
    if known:
      line.insert(4, percent_range(known[name].change))
    cells.append(line)
  return cells


def before_after_title(
  table: metrics.Table, unit: str = 'neighbours', *, known: bool = False
) -> str:
  """What `before_after` shows, in a sentence or two; `known`: intervals."""
  if not table.all.last_counts[1]:
    return 'Bits per byte.'
  title = f'Bits per byte at 0 {unit} and at each document\u2019s last.'
  if known:
    title += (
      f' Interval of the change: the middle {intervals.LEVEL:.0%} (paired '
      'bootstrap over documents).'
    )
  return title


def by_count(table: metrics.Table) -> Cells:
  """Bits per byte of each domain, a column a neighbour count.

  Where not all of a domain's documents were scored at a count, the number of
  those that were follows in brackets.
  """
  counts = thinned(sorted(table.all.by_count))
  cells = [['domain', *map(str, counts)]]
  for name, curve in table.lines():
    row = [name]
    for count in counts:
      score = curve.by_count.get(count)
      value = number(score.bits_per_byte) if score else '-'
      if score and score.documents < curve.last.documents:
        value += f' ({score.documents:,})'
      row.append(value)
    cells.append(row)
  return cells


def by_count_title(table: metrics.Table, unit: str = 'neighbours') -> str:
  """What `by_count` shows, in a sentence or two."""
  title = f'Bits per byte by number of {unit}.'
  if any(
    s.documents < table.all.last.documents for s in table.all.by_count.values()
  ):
    title += ' In brackets: the documents scored there, where not all were.'
  return title


def thinned(counts: Sequence[int]) -> list[int]:
  """At most _COLUMNS counts, the first and last among them, closer early on."""
  if len(counts) <= _COLUMNS:
    return list(counts)
  places = np.geomspace(1, len(counts), _COLUMNS).round().astype(int) - 1
  return [counts[place] for place in sorted(set(places.tolist()))]


def number(value: float, digits: int = 4) -> str:
  """A fixed-point number; '-' where there is none."""
  return f'{value:z,.{digits}f}' if math.isfinite(value) else '-'


def percent(value: float) -> str:
  """A signed percentage; '-' where there is none."""
  return f'{value:+z.1%}' if math.isfinite(value) else '-'


def percent_range(interval: tuple[float, float]) -> str:
  """'-3.1% to -1.0%'; '-' where an end is not known."""
  if not all(map(math.isfinite, interval)):
    return '-'
  return ' to '.join(map(percent, interval))


def count_range(counts: tuple[int, int]) -> str:
  """'5', or '3-5' where documents differ."""
  return '-'.join(map(str, sorted(set(counts))))


def plain(value: str) -> str:
  """One line of printable characters, for names that come from data."""
  line = ' '.join(value.split())
  return ''.join(c if c.isprintable() else '\ufffd' for c in line)


def render_text(cells: Cells) -> str:
  """The cells in columns, the first to the left, the others to the right."""
  rows = [[plain(cell) for cell in row] for row in cells]
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for first, *others in rows:
    line = [first.ljust(widths[0])]
    line += [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
    lines.append('  '.join(line))
  lines.insert(1, '-' * len(lines[0]))
  return '\n'.join(lines) + '\n'


def render_markdown(cells: Cells) -> str:
  """The cells as a Markdown table that shows them as they are."""
  head, *rows = [[escape(cell) for cell in row] for row in cells]
  rule = ['---'] + ['---:'] * (len(head) - 1)
  return ''.join(f'| {" | ".join(row)} |\n' for row in [head, rule, *rows])


def escape(value: str) -> str:
  """Markdown that shows `value` as plain text, in a table too."""
  return re.sub(r'([\\`*\[\]<>|&~])', r'\\\1', plain(value))


def render_csv(cells: Cells) -> str:
  """The cells as CSV; numbers without separators of thousands."""
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  for row in cells:
    writer.writerow([_GROUPED.sub('', plain(cell)) for cell in row])
  return buffer.getvalue()


def render_latex(cells: Cells, caption: str) -> str:
  """The cells as a LaTeX table by the package booktabs, captioned."""
  head, *rows = [[_latex(cell) for cell in row] for row in cells]
  lines = [
    r'\begin{table}',
    rf'\caption{{{_latex(caption)}}}',
    r'\centering',
    rf'\begin{{tabular}}{{l{"r" * (len(head) - 1)}}}',
    r'\toprule',
    f'{" & ".join(head)} \\\\',
    r'\midrule',
    *(f'{" & ".join(row)} \\\\' for row in rows),
    r'\bottomrule',
    r'\end{tabular}',
    r'\end{table}',
  ]
  return '\n'.join(lines) + '\n'


# A comma between digits of a number that is grouped by it.
_GROUPED = re.compile(r'(?<=\d),(?=\d{3}(?:\D|$))')
_LATEX = {
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '<': r'\textless{}',
  '>': r'\textgreater{}',
  '|': r'\textbar{}',
  '\u2019': "'",
  **{sign: rf'\{sign}' for sign in '&%$#_{}'},
}


def _latex(value: str) -> str:
  """LaTeX that shows `value` as plain text; a sign before a number as such."""
  text = ''.join(_LATEX.get(sign, sign) for sign in plain(value))
  return re.sub(r'(?<![\w.])-(?=\d)', '$-$', text)
