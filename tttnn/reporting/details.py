"""What the page shows of one document: texts, tokens, neighbours, as bytes.

Each document is packed by itself, and unpacked by the page when it is opened:
zlib of (length of the head uint32, head as JSON, numbers int16 [C, G]). The
numbers are of groups of tokens that share a character, in hundredths of a bit:
in the first line the log-likelihoods at the first count, in the others the
changes from it. All numbers are little-endian.
"""

import base64
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import struct
from typing import Protocol
import zlib

import numpy as np

from tttnn.scoring import metrics
from tttnn.scoring import token_scores

BUDGET = 14_000_000  # Characters of a page that documents may take.
_UNKNOWN = -(1 << 15)
_LARGEST = (1 << 15) - 1
_SAMPLE = 40  # Documents that tell how large all would be.


class Scores(Protocol):
  """Where token scores come from, as `token_scores.Reader`."""

  ids: Iterable[str | int]

  def read(self, doc_id: str | int) -> token_scores.Tokens: ...


@dataclasses.dataclass(frozen=True)
class Limits:
  """How much is shown of a document.

  Attributes:
    groups: of tokens, from the beginning.
    counts: that its tokens' scores are shown at; the first, the last, and
      evenly spread ones.
    chars: of each neighbour, and of the query.
  """

  groups: int
  counts: int
  chars: int


LIMITS = (
  Limits(40_000, 52, 4000),
  Limits(15_000, 21, 4000),
  Limits(8000, 12, 2000),
  Limits(4000, 9, 1200),
  Limits(2500, 7, 700),
  Limits(1500, 6, 400),
  Limits(800, 4, 250),
  Limits(400, 3, 150),
  Limits(0, 2, 0),
)


@dataclasses.dataclass(frozen=True)
class Document:
  """A row with the token scores it may have.

  Attributes:
    row: of results.jsonl.
    scores: of its run; None: there are none.
    near_duplicate: as of `eval.near_duplicate`; 0: nothing is marked.
  """

  row: Mapping
  scores: Scores | None
  near_duplicate: float

  def pack(self, limits: Limits) -> str:
    """As the page has it, in base64."""
    head = self._head()
    numbers = np.zeros((0, 0), '<i2')
    if self.scores and self.row['doc_id'] in self.scores.ids:
      tokens = self.scores.read(self.row['doc_id'])
      more, numbers = _tokens(tokens, self.row, limits)
      head |= more
      for neighbor, text, chars in zip(
        head['neighbors'], tokens.neighbors, tokens.neighbor_chars, strict=True
      ):
        neighbor |= {'text': _whole(text[: limits.chars]), 'chars': chars}
    data = json.dumps(head, ensure_ascii=False, allow_nan=False).encode()
    data = struct.pack('<I', len(data)) + data + numbers.tobytes()
    return base64.b64encode(zlib.compress(data)).decode()

  def _head(self) -> dict:
    row = self.row
    bits = [
      metrics.bits_per_byte(value, row['num_bytes'])
      for value in row['log_likelihood']
    ]
    passes = []  # Losses, where what is trained on is no neighbour.
    if not row['neighbors']:
      passes = [_number(loss) for loss in row.get('train_loss', ())]
    return {
      'id': str(row['doc_id']),
      'task': row['task'],
      'bytes': row['num_bytes'],
      'at': list(row['at']),
      'bits': [_number(value) for value in bits],
      'passes': passes,
      'missing': row['missing_neighbors'],
      'neighbors': [
        {
          'id': None if neighbor['id'] is None else str(neighbor['id']),
          'distance': _number(neighbor['distance']),
          'overlap': _number(neighbor.get('overlap')),
          'loss': _number(_at(row.get('train_loss', ()), place)),
          'steps': _at(row.get('steps', ()), place),
          'near': is_near(neighbor, self.near_duplicate),
        }
        for place, neighbor in enumerate(row['neighbors'])
      ],
    }


def pack(
  documents: Sequence[Document], budget: int = BUDGET
) -> tuple[list[str], Limits]:
  """Packs them with the widest limits under which they fit the budget.

  Returns:
    (the documents, the limits). The last limits are taken even where what
    remains does not fit.
  """
  some = documents[:: -(-len(documents) // _SAMPLE)] if documents else []
  for number, limits in enumerate(LIMITS):
    last = number == len(LIMITS) - 1
    size = sum(len(document.pack(limits)) for document in some)
    # Where the sample is all, it is exact; else leave room for its error.
    exact = len(some) == len(documents)
    guess = size if exact else 0.8 * size * len(documents) / len(some)
    if guess > budget and not last:
      continue
    packed = [document.pack(limits) for document in documents]
    if last or sum(map(len, packed)) <= budget:
      return packed, limits
  raise AssertionError('the last limits are always taken')


def is_near(neighbor: Mapping, share: float) -> bool:
  """Whether a neighbour is nearly the document; a share of 0: none is."""
  if not share:
    return False
  distance = neighbor['distance']
  known = math.inf if distance is None else distance
  return metrics.has_near_duplicate(
    {'neighbors': [{**neighbor, 'distance': known}]}, share
  )


def _tokens(
  tokens: token_scores.Tokens, row: Mapping, limits: Limits
) -> tuple[dict, np.ndarray]:
  """What the head says of a document's tokens, and their numbers [C, G]."""
  bits_CxT = tokens.of_row(row).astype(np.float64) / math.log(2)
  ends_T = tokens.ends_T.astype(np.int64)
  begins_T = np.concatenate([[0], ends_T])[:-1]
  # A token with a character begins a group; the first does anyway.
  first_G = np.flatnonzero((ends_T > begins_T) | (np.arange(len(ends_T)) == 0))
  sizes_G = np.diff(np.append(first_G, len(ends_T)))
  total = len(first_G)
  places = spread(len(tokens.at), limits.counts)
  first_G = first_G[: limits.groups]
  sizes_G = sizes_G[: limits.groups]
  numbers = np.zeros((len(places), 0))
  ends_G = np.zeros(0, np.int64)
  if len(first_G):
    used = int(first_G[-1] + sizes_G[-1])
    numbers = np.add.reduceat(bits_CxT[places, :used], first_G, axis=1)
    ends_G = ends_T[first_G + sizes_G - 1]
  pieces = [
    _whole(tokens.text[begin:end])
    for begin, end in zip([0, *ends_G], ends_G, strict=False)
  ]
  with np.errstate(invalid='ignore'):
    numbers[1:] -= numbers[:1]
  head = {
    'text': ''.join(pieces),
    'lengths': [_utf16(piece) for piece in pieces],
    'several': {
      str(i): int(size) for i, size in enumerate(sizes_G) if size > 1
    },
    'shown_at': [tokens.at[place] for place in places],
    'groups': total,
    'query': _whole(tokens.query[: limits.chars]),
  }
  return head, _hundredths(numbers)


def spread(count: int, most: int) -> list[int]:
  """At most so many of 0 .. count - 1, evenly, with the first and the last."""
  if count <= most:
    return list(range(count))
  return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _hundredths(numbers: np.ndarray) -> np.ndarray:
  """As int16, cut off at its ends; its smallest stands for what is no number.

  Minus infinity is cut off, too.
  """
  unknown = np.isnan(numbers)
  rounded = np.round(100 * np.where(unknown, 0, numbers))
  rounded = np.clip(rounded, -_LARGEST, _LARGEST)
  return np.where(unknown, _UNKNOWN, rounded).astype('<i2')


def _at(values: Sequence, place: int):
  return values[place] if place < len(values) else None


def _number(value: float | None) -> float | None:
  """Nine digits, so that four round as the table's; None where it is none."""
  if value is None or not math.isfinite(value):
    return None
  return float(f'{value:.9g}')


def _utf16(text: str) -> int:
  """Length as JavaScript counts it."""
  return len(text) + sum(ord(letter) > 0xFFFF for letter in text)


def _whole(text: str) -> str:
  """Halves of surrogate pairs, which UTF-8 has no bytes for, are replaced."""
  return text.encode('utf-8', 'replace').decode()
