"""The automaton of RetoMaton: entries of a store, their states, what follows.

See `retomaton`. Flat arrays, so that those of a large store can stay in files,
and numpy on all rows of a batch at once: they are on the host. What becomes of
a row does not depend on the others.
"""

from collections.abc import Iterable
import contextlib
import dataclasses
import os
from typing import Self

import jax
import numpy as np

from tttnn import files
from tttnn.datastore import kmeans


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton:
  """N entries in the order of the text, as flat arrays.

  Attributes:
    values_N: the token that followed.
    has_next_N: whether the next entry is of the same sequence.
    cluster_N: int32, the state of each; None: each is its own.
    members_N: int32 or int64, the entries by state, in each ascending.
    offsets: int64 [C + 1], where each state begins in members_N, and N.
  """

  values_N: np.ndarray
  has_next_N: np.ndarray
  cluster_N: np.ndarray | None = None
  members_N: np.ndarray | None = None
  offsets: np.ndarray | None = None

  def __post_init__(self):
    entries = len(self.values_N)
    for name in ('has_next_N', 'cluster_N', 'members_N'):
      found = getattr(self, name)
      if found is not None and len(found) != entries:
        raise ValueError(f'{name} has {len(found)} entries, values_N {entries}')
    states = (self.cluster_N, self.members_N, self.offsets)
    if len({one is None for one in states}) > 1:
      raise ValueError(
        'only some of cluster_N, members_N and offsets are there'
      )
    if self.offsets is not None and self.offsets[-1] != entries:
      raise ValueError(
        f'offsets end at {self.offsets[-1]}, values_N has {entries} entries'
      )

  def save(self, directory: str) -> None:
    """Writes a file an array."""
    os.makedirs(directory, exist_ok=True)
    for field in dataclasses.fields(self):
      path = _path(directory, field.name)
      array = getattr(self, field.name)
      if array is None:
        with contextlib.suppress(FileNotFoundError):
          os.unlink(path)
        continue
      with files.atomic(path) as file:
        np.save(file, array)

  @classmethod
  def load(cls, directory: str) -> Self:
    """What `save` wrote, memory-mapped.

    Raises:
      FileNotFoundError: if values or their ends of sequences are not there.
      ValueError: for files that do not fit together.
    """
    arrays = {}
    for field in dataclasses.fields(cls):
      path = _path(directory, field.name)
      needed = field.default is dataclasses.MISSING
      if needed or os.path.exists(path):
        arrays[field.name] = np.load(path, mmap_mode='r', allow_pickle=False)
    return cls(**arrays)


def _path(directory: str, name: str) -> str:
  return os.path.join(directory, f'{name.removesuffix("_N")}.npy')


def build(
  values_N: np.ndarray,
  sequence_starts: np.ndarray,
  cluster_N: np.ndarray | None = None,
) -> Automaton:
  """The automaton of a store.

  Args:
    values_N: of its entries.
    sequence_starts: the entry that each sequence begins with, the first 0; one
      without entries begins where the next does. With [0] alone pointers go on
      from one text to the next, as in the paper's code.
    cluster_N: the state of each entry, from 0; None: each is its own.

  Raises:
    ValueError: for starts that do not ascend from 0, or states of another
      number of entries.
  """
  starts, entries = np.asarray(sequence_starts, np.int64), len(values_N)
  if (
    not len(starts)
    or starts[0]
    or starts[-1] > entries
    or (np.diff(starts) < 0).any()
  ):
    raise ValueError(
      f'sequences that start at {starts.tolist()[:8]} ... do not ascend from 0 '
      f'to {entries} entries'
    )
  has_next_N = np.ones(entries, bool)
  ends = np.append(starts[1:], entries)
  has_next_N[ends[ends > 0] - 1] = False
  if cluster_N is None:
    return Automaton(values_N, has_next_N)
  cluster_N = np.asarray(cluster_N, np.int32)
  kind = np.int32 if entries <= np.iinfo(np.int32).max else np.int64
  members_N = np.argsort(cluster_N, kind='stable').astype(kind)
  offsets = np.concatenate([[0], np.cumsum(np.bincount(cluster_N))])
  return Automaton(values_N, has_next_N, cluster_N, members_N, offsets)


def clusters(
  sample_SxD: np.ndarray,
  keys: Iterable[np.ndarray],
  count: int,
  *,
  seed: int,
  iterations: int = 20,
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """The state of each entry, int32 [N]: the nearest of k-means' centroids.

  Args:
    sample_SxD: keys to find centroids with.
    keys: of all entries, in blocks [n, D].
    count: of states; the paper has one for 100 to 200 entries.
    seed: see `kmeans.train`.
    iterations: likewise.
    mesh: likewise.

  Raises:
    ValueError: as `kmeans.train` and `kmeans.assign`.
  """
  centroids_CxD = kmeans.train(
    sample_SxD, count, iterations=iterations, seed=seed, mesh=mesh
  )
  centroids_CxD = kmeans.place(centroids_CxD, mesh)
  found = [np.empty(0, np.int32)]
  for block in keys:
    nearest = kmeans.assign(block, centroids_CxD, mesh=mesh)
    found.append(nearest.astype(np.int32))
  return np.concatenate(found)


def expand(
  automaton: Automaton,
  pointers_BxM: np.ndarray,
  *,
  dedupe: bool = True,
) -> np.ndarray:
  """Pointers, and after them the other entries of their states, [B, M].

  The states that most pointers lead to come first, then those of lower number,
  until there are M entries.

  Args:
    automaton: of the store.
    pointers_BxM: int64, entries, -1 after the last one of a row.
    dedupe: whether pointers do not come again as entries of their states.
  """
  if automaton.offsets is None or not pointers_BxM.size:
    return pointers_BxM
  most = pointers_BxM.shape[1]
  used_B = np.count_nonzero(pointers_BxM >= 0, axis=1)
  growing_BxM = (pointers_BxM >= 0) & (used_B < most)[:, None]
  pointers, rows = pointers_BxM[growing_BxM], rows_of(growing_BxM)
  if not len(pointers):
    return pointers_BxM
  rows, states, state_of = _states(automaton, rows, pointers, most)
  begins = automaton.offsets[states]
  sizes = automaton.offsets[states + 1] - begins
  # Of each state so many entries as there is room for after those before it.
  before = np.cumsum(sizes) - sizes
  before -= before[_firsts(rows)]
  room_B = np.full(len(used_B), most) if dedupe else most - used_B
  sizes = np.clip(room_B[rows] - before, 0, sizes)
  slots = np.repeat(begins - (np.cumsum(sizes) - sizes), sizes)
  slots += np.arange(len(slots))
  members = np.take(automaton.members_N, slots).astype(np.int64)
  rows = np.repeat(rows, sizes)
  if dedupe:
    # Ascending, as the entries of a state are.
    keys = np.repeat(np.arange(len(sizes)) * len(automaton.values_N), sizes)
    keys += members
    known = state_of * len(automaton.values_N) + pointers
    found = np.minimum(np.searchsorted(keys, known), len(keys) - 1)
    fresh = np.ones(len(keys), bool)
    fresh[found[keys[found] == known]] = False
    members, rows = members[fresh], rows[fresh]
  # Of each row so many as there is room for.
  counts_B = np.bincount(rows, minlength=len(used_B))
  firsts_B = np.cumsum(counts_B) - counts_B
  fits = np.arange(len(rows)) < np.repeat(firsts_B + most - used_B, counts_B)
  places_B = most * np.arange(len(used_B)) + used_B - firsts_B
  places = np.arange(len(rows)) + np.repeat(places_B, counts_B)
  expanded_BxM = pointers_BxM.copy()
  expanded_BxM.ravel()[places[fits]] = members[fits]
  return expanded_BxM


def _states(
  automaton: Automaton,
  rows: np.ndarray,
  pointers: np.ndarray,
  most: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """States that pointers lead to, by row and then rank, without repeats.

  Returns:
    The row of each, the state, and which of them each pointer leads to.
  """
  count = len(automaton.offsets) - 1
  keys, key_of, pointing = np.unique(
    rows * count + np.take(automaton.cluster_N, pointers),
    return_inverse=True,
    return_counts=True,
  )
  rows, states = np.divmod(keys, count)
  # Stable: of equal ranks the lower state first.
  order = np.argsort(rows * (most + 1) - pointing, kind='stable')
  place_of = np.empty_like(order)
  place_of[order] = np.arange(len(order))
  return rows[order], states[order], place_of[key_of]


def rows_of(chosen_BxM: np.ndarray) -> np.ndarray:
  """The row of each of the chosen, which are bool, in order."""
  counts_B = np.count_nonzero(chosen_BxM, axis=1)
  return np.repeat(np.arange(len(counts_B)), counts_B)


def _firsts(rows: np.ndarray) -> np.ndarray:
  """For each of the ascending rows, the place of the first that is equal."""
  counts = np.bincount(rows)
  return (np.cumsum(counts) - counts)[rows]


def follow(
  automaton: Automaton,
  distances_BxM: np.ndarray,
  ids_BxM: np.ndarray,
  tokens_B: np.ndarray,
  most: int,
) -> np.ndarray:
  """Where a token leads to: pointers int64 [B, most], -1 after the last one.

  From the candidates whose value is the token and that are not the last of
  their sequence, the nearest first, and of equally near ones the first.

  Args:
    automaton: of the store.
    distances_BxM: float32, of candidates in any order.
    ids_BxM: of them; -1: there is none.
    tokens_B: that came.
    most: M, how many are kept.
  """
  there_BxM = ids_BxM >= 0
  places, rows = np.flatnonzero(there_BxM), rows_of(there_BxM)
  ids = ids_BxM.ravel()[places]
  # Tokens are signed, so that they may be where values are not.
  wanted = np.asarray(tokens_B, np.int64)[rows]
  kept = np.flatnonzero(np.take(automaton.values_N, ids) == wanted)
  kept = kept[np.take(automaton.has_next_N, ids[kept])]
  ids, rows = ids[kept], rows[kept]
  keys = _integers(distances_BxM.ravel()[places[kept]])
  order = np.argsort((rows << 32) + keys, kind='stable')
  ids = ids[order]  # The rows are in order as they were.
  places = np.arange(len(rows)) - _firsts(rows)
  fits = places < most
  pointers_BxM = np.full((len(ids_BxM), most), -1, np.int64)
  pointers_BxM.ravel()[(rows * most + places)[fits]] = ids[fits] + 1
  return pointers_BxM


def _integers(distances: np.ndarray) -> np.ndarray:
  """Of 32 bits that order as distances do; they sort faster together with rows.

  The bits of floats from 0 on do, those of the others the other way round.
  """
  bits = (np.asarray(distances, np.float32) + np.float32(0)).view(np.int32)
  return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
