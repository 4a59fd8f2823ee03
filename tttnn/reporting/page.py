"""One HTML file that holds a report: readable offline, on paper, on a phone."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from importlib import resources
import json
import math
import os
import statistics

import jinja2

from tttnn.reporting import plots
from tttnn.reporting import tables
from tttnn.scoring import intervals
from tttnn.scoring import metrics
from tttnn.scoring import paired

_MAX_DOCUMENTS = 2000  # Lines of the table of documents that browsers bear.


@dataclasses.dataclass(frozen=True)
class Figure:
  """A drawn figure: its file name, what it shows in words, PNG and PDF."""

  name: str
  description: str
  png: bytes
  pdf: bytes = b''

  @classmethod
  def draw(cls, name: str, description: str, figure) -> 'Figure':
    """Draws a figure of matplotlib; `name` is that of the PNG."""
    return cls(name, description, plots.png(figure), plots.pdf(figure))

  @property
  def files(self) -> dict[str, bytes]:
    """File name -> content."""
    stem, _ = os.path.splitext(self.name)
    return {self.name: self.png, f'{stem}.pdf': self.pdf}

  @property
  def width(self) -> int:
    """In CSS pixels: half of the PNG's, for sharpness on dense screens."""
    return int.from_bytes(self.png[16:20], 'big') // 2

  @property
  def uri(self) -> str:
    """The image itself as a URI."""
    return f'data:image/png;base64,{base64.b64encode(self.png).decode()}'


@dataclasses.dataclass(frozen=True)
class Run:
  """A run to show.

  Attributes:
    name: heading of its section.
    progress: what is missing; '' for a finished run.
    rows: of results.jsonl.
    table: the rows aggregated.
    before_after: bars by domain; None before they are drawn.
    curves: curves by domain; None, too, where the run has one count.
    origin: JSON values that say where the numbers come from: configuration,
      versions. May be empty.
    known: intervals of the lines of `table`, by their label.
    more_tables: (name, title, cells) of each.
    more_figures: besides the two.
  """

  name: str
  progress: str
  rows: Sequence[Mapping]
  table: metrics.Table
  before_after: Figure | None
  curves: Figure | None
  origin: Mapping
  known: Mapping[str, intervals.Intervals] | None = None
  more_tables: Sequence[tuple[str, str, tables.Cells]] = ()
  more_figures: Sequence[Figure] = ()

  @property
  def method(self) -> str:
    """Of all rows."""
    return self.rows[0]['method']

  @property
  def protocol(self) -> str:
    """Of all rows, with their windows where these are not the usual ones."""
    named = self.rows[0]['protocol']
    if window := self.rows[0].get('window'):
      named += f', windows of {window}'
    if stride := self.rows[0].get('stride'):
      named += f', stride {stride}'
    return named

  @property
  def unit(self) -> str:
    """What the counts of `at` count."""
    return tables.count_unit(self.method)


def render(
  title: str,
  runs: Sequence[Run],
  compared: Sequence[tuple[str, str, tables.Cells]] = (),
  figures: Sequence[Figure] = (),
) -> str:
  """The page as HTML. Names and ids from data are shown as text.

  Before the runs come the tables (name, title, cells) and figures that are of
  several.

  It has no time stamp and asks nothing of the network: equal runs give equal
  pages.
  """
  source = resources.files(__package__) / 'page.html.j2'
  environment = jinja2.Environment(
    autoescape=True,
    lstrip_blocks=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.from_string(source.read_text('utf-8')).render(
    title=title,
    compared=compared,
    figures=figures,
    named=len(runs) + len(compared) > 1,
    sections=[_section(run) for run in runs],
  )


def comparison(runs: Sequence[Run]) -> tables.Cells:
  """A line a run: what it was and its bits per byte.

  Over the documents that all runs have, each at its last count.

  Raises:
    ValueError: as `paired.common`.
  """
  head = ['run', 'before', 'after', 'change', 'documents', 'method', 'protocol']
  lines = [head]
  for run, rows in zip(runs, _common(runs), strict=True):
    score = metrics.aggregate(rows).all.last
    lines.append(
      [
        run.name,
        tables.number(score.base_bits_per_byte),
        tables.number(score.bits_per_byte),
        tables.percent(score.change),
        f'{score.documents:,}',
        run.method,
        run.protocol,
      ]
    )
  return lines


def comparison_title(runs: Sequence[Run]) -> str:
  """What `comparison` shows, in a sentence."""
  documents = len(_common(runs)[0])
  if all(len(run.rows) == documents for run in runs):
    return 'Bits per byte over all documents of each run.'
  noun = 'document' if documents == 1 else 'documents'
  return f'Bits per byte over the {documents:,} {noun} that all runs have.'


def _common(runs: Sequence[Run]) -> list[list[Mapping]]:
  return paired.common([(run.name, run.rows) for run in runs])


def summary(run: Run) -> list[tuple[str, str]]:
  """(name, value) of what to know before the figures."""
  score = run.table.all.last
  seconds = [sum(row['seconds'].values()) for row in run.rows]
  facts = [
    ('Method', run.method),
    ('Protocol', run.protocol),
    ('Documents', f'{len(run.rows):,}'),
    ('Scored text', f'{sum(r["num_bytes"] for r in run.rows) / 1e6:,.2f} MB'),
    ('Byte perplexity', tables.number(score.byte_perplexity, 3)),
    ('Word perplexity', tables.number(score.word_perplexity, 1)),
    ('Seconds per document', f'{statistics.median(seconds):,.2f} (median)'),
  ]
  few = sum(bool(row['missing_neighbors']) for row in run.rows)
  lost = sum(None in row['log_likelihood'] for row in run.rows)
  for name, count in (
    ('Documents with too few neighbours', few),
    ('Documents without a finite score', lost),
  ):
    if count:
      facts.append((name, f'{count:,}'))
  return facts


def documents(run: Run) -> list[list[tuple[str, float | None]]]:
  """A line of cells a document: (text, number to sort by; None: by the text).

  Ordered by document id, integers first, since the file is in the order in
  which documents finished.
  """
  return [_document(row) for row in sorted(run.rows, key=paired.by_id)]


def _section(run: Run) -> dict:
  """What the template shows of a run."""
  lines = documents(run)
  head = f'document domain before after change {run.unit} nearest bytes seconds'
  return {
    'name': run.name,
    'progress': run.progress,
    'facts': summary(run),
    'headline': _headline(run.table.all.last, run.table.all.last_counts),
    'before_after': tables.before_after(run.table, run.unit, run.known),
    'before_after_title': tables.before_after_title(
      run.table, run.unit, known=bool(run.known)
    ),
    'before_after_figure': run.before_after,
    'by_count': tables.by_count(run.table),
    'by_count_title': tables.by_count_title(run.table, run.unit),
    'by_count_figure': run.curves,
    'tables': run.more_tables,
    'figures': run.more_figures,
    'totals': len(run.table.totals()),
    'document_head': head.split(),
    'documents': lines[:_MAX_DOCUMENTS],
    'left_out': max(0, len(lines) - _MAX_DOCUMENTS),
    'origin': json.dumps(run.origin, indent=2, ensure_ascii=False),
  }


def _headline(score: metrics.Score, counts: tuple[int, int]) -> str:
  if not math.isfinite(score.bits_per_byte):
    return 'The bits per byte over all documents are undefined.'
  after = f'{tables.number(score.bits_per_byte)} bits per byte'
  if not counts[1]:
    return after
  before = tables.number(score.base_bits_per_byte)
  return f'{before} \u2192 {after} ({tables.percent(score.change)})'


def _document(row: Mapping) -> list[tuple[str, float | None]]:
  nats = dict(zip(row['at'], row['log_likelihood'], strict=True))
  last = max(nats)
  before = metrics.bits_per_byte(nats.get(0), row['num_bytes'])
  after = metrics.bits_per_byte(nats[last], row['num_bytes'])
  change = after / before - 1 if before else math.nan
  distances = [n['distance'] for n in row['neighbors']]
  nearest = min((d for d in distances if d is not None), default=math.nan)
  seconds = sum(row['seconds'].values())
  doc_id = row['doc_id']
  return [
    (str(doc_id), None if isinstance(doc_id, str) else doc_id),
    (row['task'], None),
    (tables.number(before), before),
    (tables.number(after), after),
    (tables.percent(change), change),
    (str(last), last),
    (tables.number(nearest, 3), nearest),
    (f'{row["num_bytes"]:,}', row['num_bytes']),
    (tables.number(seconds, 2), seconds),
  ]
