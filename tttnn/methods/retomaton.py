"""RetoMaton: neighbours of the last token point at those of the next.

Alon et al., "Neuro-Symbolic Language Modeling with Automaton-augmented
Retrieval", ICML 2022 (arXiv 2201.12431). The store of `knn_lm` becomes an
automaton: where entry i was near the last context and its value was the token
that came, entry i + 1 is likely to be near the next context. Entries whose keys
are alike are one state, so that such pointers lead to all of a state's entries.
Only where too few pointers are left is the store searched.

All this for B rows at once, each a text of its own: what becomes of a row does
not depend on the others.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import Self

import numpy as np

from tttnn.datastore import metric as metric_lib
from tttnn.methods import automaton as automaton_lib


@dataclasses.dataclass(frozen=True)
class Settings:
  """How pointers are followed; fields as `retomaton` of `configs/base.py`.

  Attributes:
    min_knns: a row with fewer pointers searches; above max_knns, at each step.
    max_knns: M, entries at most that pointers lead to; 0: none, and with every
      step a search this is kNN-LM.
    dedupe: whether an entry that is found twice counts once, as in the paper's
      text, or twice, as in its code.
    clusters: states of the automaton; 0: each entry is its own.
  """

  min_knns: float = 1
  max_knns: int = 1024
  dedupe: bool = True
  clusters: int = 0

  @classmethod
  def create(cls, section: Mapping[str, Any]) -> Self:
    """From the section `retomaton` of the config, which may have more."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: section[name] for name in names})

  def __post_init__(self):
    if not self.min_knns >= 1:
      raise ValueError(
        f'retomaton.min_knns={self.min_knns} is not 1 or more: without a '
        'search there is nothing to point from'
      )
    if self.max_knns < 0:
      raise ValueError(f'retomaton.max_knns={self.max_knns} is not 0 or more')
    if self.clusters < 0:
      raise ValueError(f'retomaton.clusters={self.clusters} is not 0 or more')


def exact(
  metric: str, gather: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
  """For `Walk`: distances to the keys themselves, as an exact search has them.

  Args:
    metric: of the store.
    gather: (ids) -> their keys, as prepared for it, float32 [ids, D].
  """

  def distances(queries_BxD, ids_BxM):
    found_BxM = np.full(ids_BxM.shape, np.inf, np.float32)
    queries_BxD = metric_lib.prepared(metric, queries_BxD)
    for query_D, ids_M, found_M in zip(
      queries_BxD, ids_BxM, found_BxM, strict=True
    ):
      there_M = ids_M >= 0
      if there_M.any():
        keys_MxD = gather(ids_M[there_M])
        found_M[there_M] = metric_lib.distances(metric, query_D, keys_MxD)
    return found_BxM

  return distances


class Walk:
  """B rows on their way through the automaton, a token of each at a time.

  A step is `ask`, a search for the rows that need one, `candidates`, and, once
  the next tokens are known, `advance`.

  Attributes:
    steps_B: that each row took since it was reset.
    searches_B: in how many of them it searched.
  """

  def __init__(
    self,
    automaton: automaton_lib.Automaton,
    settings: Settings,
    distances: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    rows: int,
    neighbors: int,
  ):
    """All rows at the beginning of a sequence.

    Args:
      automaton: of the store.
      settings: how pointers are followed.
      distances: (queries_BxD, ids_BxM) -> distances [B, M] as of a search; what
        it says of id -1 does not count. See `exact`.
      rows: B.
      neighbors: k of a search.
    """
    self._automaton = automaton
    self._settings = settings
    self._distances = distances
    self._neighbors = neighbors
    self._pointers_BxM = np.full((rows, settings.max_knns), -1, np.int64)
    self._active_B = self._need_B = None  # Between `ask` and `advance`.
    self._found = None  # Between `candidates` and `advance`.
    self.steps_B = np.zeros(rows, np.int64)
    self.searches_B = np.zeros(rows, np.int64)
    self._totals = np.zeros(2, np.int64)  # Steps and searches of all times.

  @property
  def saved(self) -> float:
    """Steps without a search / all steps so far (FoSS); NaN of none."""
    steps, searches = self._totals.tolist()
    return 1 - searches / steps if steps else math.nan

  def ask(self, active_B: np.ndarray | None = None) -> np.ndarray:
    """Begins a step: which rows need a search, bool [B].

    Args:
      active_B: rows that take the step; None: all. The others stay as they are
        and are not counted.

    Raises:
      ValueError: if rows have candidates that they did not advance from.
    """
    if self._found is not None and self._active_B.any():
      raise ValueError(
        'a step has not ended: rows have to advance or to be reset'
      )
    count_B = np.count_nonzero(self._pointers_BxM >= 0, axis=1)
    if active_B is None:
      active_B = np.ones(len(count_B), bool)
    self._active_B = np.array(active_B, bool)
    self._need_B = self._active_B & (count_B < self._settings.min_knns)
    self._found = None
    return self._need_B

  def candidates(
    self,
    queries_BxD: np.ndarray,
    distances_Rxk: np.ndarray | None = None,
    ids_Rxk: np.ndarray | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """What the next token is predicted from.

    Args:
      queries_BxD: keys of the rows' contexts.
      distances_Rxk: a search's answer for the rows that `ask` named, in their
        order; None where it named none.
      ids_Rxk: likewise.

    Returns:
      distances_BxM, float32, and ids_BxM, int64, with M = k + max_knns: what
      was searched, then what pointers lead to; inf and -1 where there is none.

    Raises:
      ValueError: without `ask`, and for an answer that is not to its question.
    """
    if self._need_B is None:
      raise ValueError('candidates of a step that nobody has asked for')
    need_B, k = self._need_B, self._neighbors
    if distances_Rxk is None:
      distances_Rxk, ids_Rxk = np.empty((2, 0, k))
    wanted = (np.count_nonzero(need_B), k)
    for array in (distances_Rxk, ids_Rxk):
      if array.shape != wanted:
        raise ValueError(
          f'an answer of shape {list(array.shape)} to {wanted[0]} queries for '
          f'{wanted[1]} neighbours'
        )
    led_BxM = self._pointers_BxM
    if not self._active_B.all():
      led_BxM = np.where(self._active_B[:, None], led_BxM, -1)
    dedupe = self._settings.dedupe
    led_BxM = automaton_lib.expand(self._automaton, led_BxM, dedupe=dedupe)
    rows, most = led_BxM.shape
    ids_BxM = np.full((rows, k + most), -1, np.int64)
    distances_BxM = np.full(ids_BxM.shape, np.inf, np.float32)
    ids_BxM[need_B, :k] = ids_Rxk
    distances_BxM[need_B, :k] = distances_Rxk
    if dedupe and need_B.any():
      entries = len(self._automaton.values_N)
      led_BxM = led_BxM.copy()
      led_BxM[need_B] = _without(led_BxM[need_B], ids_BxM[need_B, :k], entries)
    there_BxM = led_BxM >= 0
    if there_BxM.any():
      ids_BxM[:, k:] = led_BxM
      found_BxM = self._distances(queries_BxD, led_BxM)
      np.copyto(distances_BxM[:, k:], found_BxM, where=there_BxM)
    self.steps_B += self._active_B
    self.searches_B += need_B
    self._totals += self._active_B.sum(), need_B.sum()
    self._need_B = None
    self._found = distances_BxM, ids_BxM
    return self._found

  def advance(self, tokens_B: np.ndarray) -> None:
    """Ends a step: each row goes on with its token, emitted or given.

    Raises:
      ValueError: without `candidates`.
    """
    if self._found is None:
      raise ValueError('a step cannot end before its candidates are known')
    self._check_rows(tokens_B, 'tokens')
    pointers_BxM = automaton_lib.follow(
      self._automaton, *self._found, tokens_B, self._settings.max_knns
    )
    self._pointers_BxM[self._active_B] = pointers_BxM[self._active_B]
    self._active_B = self._found = None

  def reset(self, rows: np.ndarray) -> None:
    """Rows, by number or as bool [B], begin a sequence.

    A row whose last token is predicted need not advance before.

    Raises:
      ValueError: between `ask` and `candidates`.
    """
    self._check_unasked()
    self._pointers_BxM[rows] = -1
    self.steps_B[rows] = self.searches_B[rows] = 0
    if self._active_B is not None:
      self._active_B[rows] = False

  def regather(self, rows_B: np.ndarray) -> None:
    """Each row goes on from where another is, as beams do.

    Between `candidates` and `advance`, whose tokens are then those of the rows
    as they are now; or after it. What rows have counted stays where it is.

    Raises:
      ValueError: between `ask` and `candidates`, or for another number of rows.
    """
    self._check_unasked()
    self._check_rows(rows_B, 'rows')
    self._pointers_BxM = self._pointers_BxM[rows_B]
    if self._found is not None:
      self._found = tuple(array[rows_B] for array in self._found)
      self._active_B = self._active_B[rows_B]

  def _check_unasked(self) -> None:
    if self._need_B is not None:
      raise ValueError('rows cannot change between ask and candidates')

  def _check_rows(self, array: np.ndarray, name: str) -> None:
    if np.shape(array) != self.steps_B.shape:
      raise ValueError(
        f'{name} of shape {list(np.shape(array))} for {len(self.steps_B)} rows'
      )


def _without(
  ids_BxM: np.ndarray, others_Bxk: np.ndarray, entries: int
) -> np.ndarray:
  """-1 in place of the ids that are among the others of their row."""
  # A number for each row and id.
  first_Bx1 = np.arange(len(ids_BxM))[:, None] * entries
  others = np.sort((first_Bx1 + others_Bxk)[others_Bxk >= 0])
  if not len(others):
    return ids_BxM
  there_BxM = ids_BxM >= 0
  keys = (first_Bx1 + ids_BxM)[there_BxM]
  places = np.minimum(np.searchsorted(others, keys), len(others) - 1)
  kept_BxM = ids_BxM.copy()
  kept_BxM[there_BxM] = np.where(others[places] == keys, -1, ids_BxM[there_BxM])
  return kept_BxM
