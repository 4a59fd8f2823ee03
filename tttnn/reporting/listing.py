"""The documents of a run as the page lists them, and which to look at."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math

from tttnn.reporting import details
from tttnn.reporting import tables
from tttnn.scoring import metrics
from tttnn.scoring import paired

MOST = 2000  # Lines of the table that browsers bear.
_EXTREMES = 5  # Documents that gained most, and as many that lost most.

Cell = tuple[str, float | None]  # What it says, and a number to sort by.


@dataclasses.dataclass(frozen=True)
class Line:
  """A document of the table.

  Attributes:
    row: of results.jsonl.
    cells: (text, number to sort by; None: by the text).
    near: whether a neighbour is nearly the document.
    anchor: of the link to it.
  """

  row: Mapping
  cells: list[Cell]
  near: bool
  anchor: str

  @property
  def change(self) -> float:
    """Of the bits per byte, relative; NaN where it is not known."""
    return change(self.row)


@dataclasses.dataclass(frozen=True)
class Extreme:
  """A document to look at, and why."""

  name: str
  change: str
  why: str
  anchor: str


def head(unit: str) -> list[str]:
  """Of the cells of lines."""
  names = f'document domain before after change {unit} nearest bytes seconds'
  return names.split()


def lines(
  rows: Sequence[Mapping], anchor: str, near_duplicate: float
) -> list[Line]:
  """A line a document, by id, integers first: files are in order of finishing.

  Of more than the table has room for, those are left out whose change is
  nearest to none.
  """
  if len(rows) > MOST:
    rows = sorted(rows, key=lambda row: -_size(change(row)))[:MOST]
  return [
    Line(
      row,
      cells(row),
      any(details.is_near(n, near_duplicate) for n in row['neighbors']),
      f'{anchor}d{number}',
    )
    for number, row in enumerate(sorted(rows, key=paired.by_id))
  ]


def extremes(
  found: Sequence[Line], unit: str
) -> tuple[list[Extreme], list[Extreme]]:
  """Those whose bits per byte fell most, and those whose rose most.

  The first most of all; where none rose, the others are those that fell least.
  """
  known = [line for line in found if not math.isnan(line.change)]
  known.sort(key=lambda line: line.change)
  fell = [line for line in known if line.change < 0]
  rose = [line for line in known if line.change > 0]
  best = fell[:_EXTREMES]
  worst = (rose or fell[_EXTREMES:])[: -_EXTREMES - 1 : -1]
  best, worst = (
    [_extreme(line, unit) for line in lines_] for lines_ in (best, worst)
  )
  return best, worst


def cells(row: Mapping) -> list[Cell]:
  """Of a document's line."""
  before, after = _before_after(row)
  last = max(row['at'])
  distances = [n['distance'] for n in row['neighbors']]
  nearest = min((d for d in distances if d is not None), default=math.nan)
  seconds = sum(row['seconds'].values())
  doc_id = row['doc_id']
  return [
    (str(doc_id), None if isinstance(doc_id, str) else doc_id),
    (row['task'], None),
    (tables.number(before), before),
    (tables.number(after), after),
    (tables.percent(change(row)), change(row)),
    (str(last), last),
    (tables.number(nearest, 3), nearest),
    (f'{row["num_bytes"]:,}', row['num_bytes']),
    (tables.number(seconds, 2), seconds),
  ]


def change(row: Mapping) -> float:
  """Of the bits per byte from 0 to the last count, relative."""
  before, after = _before_after(row)
  return after / before - 1 if before and max(row['at']) else math.nan


def _before_after(row: Mapping) -> tuple[float, float]:
  nats = dict(zip(row['at'], row['log_likelihood'], strict=True))
  before = metrics.bits_per_byte(nats.get(0), row['num_bytes'])
  return before, metrics.bits_per_byte(nats[max(nats)], row['num_bytes'])


def _size(value: float) -> float:
  return -1.0 if math.isnan(value) else abs(value)


def _extreme(line: Line, unit: str) -> Extreme:
  before, after = (text for text, _ in line.cells[2:4])
  why = [f'{before} \u2192 {after}', f'{line.row["num_bytes"]:,} bytes']
  why += _reasons(line.row, unit)
  if line.near:
    why.append('has a near-duplicate')
  name = f'{line.row["doc_id"]} \u00b7 {line.row["task"]}'
  return Extreme(name, line.cells[4][0], ', '.join(why), line.anchor)


def _reasons(row: Mapping, unit: str) -> list[str]:
  """At which count most of it came, and how near neighbours are."""
  found = []
  bits = [
    metrics.bits_per_byte(n, row['num_bytes']) for n in row['log_likelihood']
  ]
  if len(bits) > 2 and all(map(math.isfinite, bits)):
    steps = [after - before for before, after in itertools.pairwise(bits)]
    sign = math.copysign(1, bits[-1] - bits[0])
    place = max(range(len(steps)), key=lambda i: sign * steps[i])
    first, last = row['at'][place] + 1, row['at'][place + 1]
    one = {'passes': 'pass', 'entries': 'entry'}.get(unit, 'neighbour')
    which = f'{one} {last}' if first == last else f'{unit} {first} to {last}'
    found.append(f'most by {which} ({steps[place]:+.4f})')
  neighbors = row['neighbors']
  distances = [n['distance'] for n in neighbors if n['distance'] is not None]
  if distances:
    found.append(f'nearest at {tables.number(min(distances), 3)}')
  shared = max((n.get('overlap') or 0 for n in neighbors), default=0)
  if shared >= 0.01:
    found.append(f'one neighbour shares {100 * shared:.0f}% of its word runs')
  return found
