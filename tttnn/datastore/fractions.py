"""Random parts of a store, the smaller ones within the larger ones.

Each document has a random number in [0, 1), which depends on seed and id alone;
those with a number below f are the fraction f.
"""

from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from tttnn.corpus import jsonl
from tttnn.datastore import store as store_lib

Progress = Callable[[int, int], None]
NONE = np.empty((0, 2), np.int64)  # No pairs of a document and a query.


@dataclasses.dataclass(frozen=True)
class Fractions:
  """Nested random parts of a store.

  Attributes:
    values: of the F fractions, ascending, in (0, 1].
    group: [rows], the number of the smallest fraction that a document belongs
      to; F for those in none, or that no search returns.
  """

  values: tuple[float, ...]
  group: np.ndarray

  @functools.cached_property
  def documents(self) -> np.ndarray:
    """How many each fraction has, [F]."""
    numbers = range(len(self.values))
    return np.cumsum([np.count_nonzero(self.group == i) for i in numbers])


def draw(
  manifest: store_lib.Manifest, values: tuple[float, ...], seed: int
) -> Fractions:
  """Fractions of a store: a document's depends on seed and id alone.

  Raises:
    ValueError: values that do not ascend, or are not in (0, 1].
  """
  ascending = all(a < b for a, b in zip(values, values[1:], strict=False))
  if not values or not ascending or not 0 < values[0] <= values[-1] <= 1:
    raise ValueError(
      f'distances.fractions={list(values)} must ascend, above 0 and up to 1'
    )
  rng = np.random.default_rng(seed)
  dtype = np.min_scalar_type(len(values))
  parts = [np.empty(0, dtype)]
  for shard in manifest.shards:
    numbers = rng.random(shard.rows)
    group = np.searchsorted(values, numbers, side='right').astype(dtype)
    group[list(shard.left_out)] = len(values)
    parts.append(group)
  return Fractions(values, np.concatenate(parts))


def copies(
  corpus: jsonl.Corpus,
  fractions: Fractions,
  texts: list[str],
  progress: Progress | None = None,
) -> np.ndarray:
  """Documents that have the very text of a query: (id, query) [n, 2].

  Reads every text of the fractions, once. Ids ascend. `progress` gets the
  documents passed, and how many there are.
  """
  queries = {}
  for number, text in enumerate(texts):
    queries.setdefault(text, []).append(number)
  found = []
  for id_, group in enumerate(fractions.group):
    if group < len(fractions.values):
      own = queries.get(corpus.text(id_), ())
      found.extend((id_, number) for number in own)
    done = id_ + 1
    if progress and (done % 1024 == 0 or done == len(fractions.group)):
      progress(done, len(fractions.group))
  return np.array(found, np.int64).reshape(-1, 2)


def check_enough(
  fractions: Fractions, k: int, excluded: np.ndarray, queries: int
) -> None:
  """Raises `ValueError` if some query has fewer than k neighbours.

  Arguments are as of `distances.nearest`, which calls this too.
  """
  own_FxQ = np.zeros((len(fractions.values), queries), np.int64)
  np.add.at(own_FxQ, (fractions.group[excluded[:, 0]], excluded[:, 1]), 1)
  copies_F = own_FxQ.cumsum(axis=0).max(axis=1)
  for value, documents, number in zip(
    fractions.values, fractions.documents, copies_F, strict=True
  ):
    if documents - number < k:
      but = f', {number} of them copies of one query' if number else ''
      raise ValueError(
        f'{k} neighbours asked of the fraction {value} of the store, which has '
        f'{documents} documents{but}'
      )
