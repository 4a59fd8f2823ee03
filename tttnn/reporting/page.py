"""One HTML file that holds a report: readable offline, on paper, on a phone."""

import base64
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
from importlib import resources
import json
import math
import os
import statistics

import jinja2
import markupsafe

from tttnn.reporting import details
from tttnn.reporting import listing
from tttnn.reporting import plots
from tttnn.reporting import tables
from tttnn.scoring import intervals
from tttnn.scoring import metrics
from tttnn.scoring import paired

_SCRIPTS = (
  'page.js',
  'page_tokens.js',
  'page_neighbors.js',
  'page_document.js',
)
_LARGEST = 19_000_000  # Bytes of a page that documents may fill up.


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
    scores: of tokens; None: there are none.
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
  scores: details.Scores | None = None

  @property
  def near_duplicate(self) -> float:
    """From which overlap on a neighbour is one; as configured, or by default.

    0: none is.
    """
    config = self.origin.get('config') or {}
    return config.get('eval', {}).get('near_duplicate', 0.5)

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
  pages. Scripts and styles other than its own do not run, by its policy.
  """
  environment = jinja2.Environment(
    autoescape=True,
    lstrip_blocks=True,
    trim_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  style, script = _file('page.css'), '\n'.join(map(_file, _SCRIPTS))
  lines = [
    listing.lines(run.rows, f'r{number}', run.near_duplicate)
    for number, run in enumerate(runs)
  ]
  sections = [
    _section(run, number, of_run)
    for number, (run, of_run) in enumerate(zip(runs, lines, strict=True))
  ]
  html = environment.from_string(_file('page.html.j2')).render(
    title=title,
    policy=_policy(style, script),
    style=markupsafe.Markup(style),
    script=markupsafe.Markup(script),
    compared=compared,
    figures=figures,
    named=len(runs) + len(compared) > 1,
    sections=sections,
  )
  room = min(details.BUDGET, _LARGEST - len(html.encode()))
  # In text of data its bracket would be escaped.
  front, place, back = html.partition(
    '<script type="application/json" id="data">'
  )
  return front + place + _embedded(_data(runs, lines, room)) + back


def _data(
  runs: Sequence[Run], lines: Sequence[Sequence[listing.Line]], room: int
) -> dict:
  """What the script knows of runs, and of documents packed."""
  documents = [
    details.Document(line.row, run.scores, run.near_duplicate)
    for run, of_run in zip(runs, lines, strict=True)
    for line in of_run
  ]
  packed, limits = details.pack(documents, room)
  packed = iter(packed)
  return {
    'limits': dataclasses.asdict(limits),
    'runs': [
      {
        'name': run.name,
        'unit': run.unit,
        'documents': [next(packed) for _ in of_run],
      }
      for run, of_run in zip(runs, lines, strict=True)
    ],
  }


def _embedded(data: dict) -> str:
  """JSON that is safe within a script element, whatever it holds."""
  text = json.dumps(data)  # ASCII: U+2028 and others are escaped.
  for letter in '<>&':
    text = text.replace(letter, f'\\u{ord(letter):04x}')
  return text


def _file(name: str) -> str:
  return (resources.files(__package__) / name).read_text('utf-8')


def _policy(style: str, script: str) -> str:
  """Nothing is fetched, and nothing runs but these two."""

  def digest(text):
    found = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(found).decode()}'"

  return (
    f"default-src 'none'; img-src data:; style-src {digest(style)}; "
    f"script-src {digest(script)}; base-uri 'none'; form-action 'none'"
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


def _section(run: Run, number: int, lines: Sequence[listing.Line]) -> dict:
  """What the template shows of a run."""
  gained, lost = listing.extremes(lines, run.unit)
  return {
    'anchor': f'r{number}',
    'gained': gained,
    'lost': lost,
    'some_lost': any(line.change > 0 for line in lines),
    'moved': _moved(run),
    'domains': sorted({line.row['task'] for line in lines}),
    'near_duplicates': any(line.near for line in lines),
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
    'document_head': listing.head(run.unit),
    'documents': lines,
    'left_out': len(run.rows) - len(lines),
    'origin': json.dumps(run.origin, indent=2, ensure_ascii=False),
  }


def _moved(run: Run) -> str:
  """How many documents gained, in a sentence; '' where nothing can."""
  changes = [listing.change(row) for row in run.rows]
  known = [value for value in changes if math.isfinite(value)]
  if not known:
    return ''
  fell = sum(value < 0 for value in known)
  return f'{fell:,} of {len(known):,} documents gained.'


def _headline(score: metrics.Score, counts: tuple[int, int]) -> str:
  if not math.isfinite(score.bits_per_byte):
    return 'The bits per byte over all documents are undefined.'
  after = f'{tables.number(score.bits_per_byte)} bits per byte'
  if not counts[1]:
    return after
  before = tables.number(score.base_bits_per_byte)
  return f'{before} \u2192 {after} ({tables.percent(score.change)})'
