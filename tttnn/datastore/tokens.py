"""What a store of tokens holds beside its vectors: which token follows.

An entry is one token of a text: its vector is the key, a state of the model
that has read what comes before; its value is the token itself (Khandelwal et
al. 2020, arXiv 1911.00172). A text is a sequence, one a line of the corpus; of
pairs of texts it is the output, its end-of-text included.

    values/00.npy       int32 [entries], the tokens of all lines in a row
    sequences/00.npy    int64 [lines + 1], the first entry of each

Everything there is of the corpus: the texts are not needed any more.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
import dataclasses
import pathlib

import numpy as np
import numpy.typing as npt

KIND = 'tokens'  # Of such a store.


@dataclasses.dataclass(frozen=True)
class Entries:
  """Those of one shard, memory-mapped.

  Attributes:
    values: int32 [entries].
    sequences: int64 [lines + 1].
  """

  values: np.ndarray
  sequences: np.ndarray

  def __len__(self) -> int:
    return len(self.values)

  @property
  def lines(self) -> int:
    return len(self.sequences) - 1

  def line(self, entries: np.ndarray) -> np.ndarray:
    """The lines (0-based) that entries are of; one without any is skipped."""
    return np.searchsorted(self.sequences, entries, side='right') - 1


class Tokens:
  """The entries of several shards under global ids 0..len - 1.

  Args:
    shards: those that are here in order; None: one that is on another host.
    entries: how many each has.
  """

  def __init__(self, shards: Sequence[Entries | None], entries: Sequence[int]):
    self.shards = tuple(shards)
    self._begins = np.cumsum([0, *entries])

  def __len__(self) -> int:
    return int(self._begins[-1])

  def values(self, ids: npt.ArrayLike) -> np.ndarray:
    """The token of each entry: int32, of the shape of `ids`.

    An id of -1, which stands for no entry, has -1 for a token.

    Raises:
      ValueError: another id that is not in the store, or not on this host.
    """
    return self._look_up(ids, np.int32, lambda shard, rows: shard.values[rows])

  def next_ids(self, ids: npt.ArrayLike) -> np.ndarray:
    """The entry of the next token of the same text: int64, id + 1 or -1.

    -1 behind the last one of a text, and for -1. Errors as of `values`.
    """

    def follow(shard: Entries, rows: np.ndarray) -> np.ndarray:
      ends = shard.sequences[shard.line(rows) + 1]
      return np.where(rows + 1 < ends, 1, -1)

    steps = self._look_up(ids, np.int64, follow)
    return np.where(steps > 0, np.asarray(ids, np.int64) + 1, -1)

  def line(self, number: int) -> tuple[int, int]:
    """(first entry, the one behind the last) of a line, counted over shards.

    Raises:
      ValueError: for a line that is not in the store, or not on this host.
    """
    left = number
    for shard, begin in zip(self.shards, self._begins.tolist(), strict=False):
      if shard is None:
        raise ValueError(f'line {number} may be of a shard on another host')
      if 0 <= left < shard.lines:
        first, end = shard.sequences[left : left + 2].tolist()
        return begin + first, begin + end
      left -= shard.lines
    raise ValueError(f'line {number} is not in the store')

  def context(self, id_: int, tokens: int) -> np.ndarray:
    """At most so many tokens of its text before an entry, the last ones: int32.

    Raises:
      ValueError: as of `values`, and for -1.
    """
    number, row = self._locate(id_)
    shard = self.shards[number]
    begin = shard.sequences[shard.line(row)]
    return np.array(shard.values[max(begin, row - tokens) : row])

  def _locate(self, id_: int) -> tuple[int, int]:
    if id_ == -1:
      raise ValueError('id -1 stands for no entry')
    self._check(np.array([id_], np.int64))
    number = int(np.searchsorted(self._begins, id_, side='right')) - 1
    self._require(number)
    return number, int(id_ - self._begins[number])

  def _look_up(
    self,
    ids: npt.ArrayLike,
    dtype: type,
    function: Callable[[Entries, np.ndarray], np.ndarray],
  ) -> np.ndarray:
    """`function` of shards and rows in them; -1 for an id of -1."""
    ids = np.asarray(ids, np.int64)
    self._check(ids)
    numbers = np.searchsorted(self._begins, ids, side='right') - 1
    found = np.full(ids.shape, -1, dtype)
    for number in np.unique(numbers[ids >= 0]).tolist():
      self._require(number)
      here = numbers == number
      rows = ids[here] - self._begins[number]
      found[here] = function(self.shards[number], rows)
    return found

  def _check(self, ids: np.ndarray) -> None:
    wrong = ids[(ids < -1) | (ids >= len(self))]
    if wrong.size:
      raise ValueError(f'entry {wrong[0]} of a store with {len(self)} entries')

  def _require(self, number: int) -> None:
    if self.shards[number] is None:
      raise ValueError(f'the entries of shard {number} are not on this host')


def values_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'values' / f'{shard:02}.npy'


def sequences_path(directory: pathlib.Path, shard: int) -> pathlib.Path:
  return directory / 'sequences' / f'{shard:02}.npy'


def load(directory: pathlib.Path, shard: int) -> Entries:
  """Those of a shard; `ValueError` names a file that is damaged."""
  values = _load(values_path(directory, shard), np.int32)
  path = sequences_path(directory, shard)
  sequences = _load(path, np.int64)
  if not len(sequences) or (sequences[0], sequences[-1]) != (0, len(values)):
    raise ValueError(
      f'{path} goes from {sequences[:1]} to {sequences[-1:]}, but there are '
      f'{len(values)} values'
    )
  return Entries(values, sequences)


def open(
  directory: pathlib.Path,
  counts: Sequence[tuple[int, int]],
  here: Collection[int],
) -> Tokens:
  """The tokens of a store.

  Args:
    directory: of the store.
    counts: (entries, lines) of each shard.
    here: numbers of those that are here.

  Raises:
    ValueError: a file that is damaged, or is of other counts.
  """
  shards = []
  for number, expected in enumerate(counts):
    found = load(directory, number) if number in here else None
    if found is not None and (len(found), found.lines) != expected:
      raise ValueError(
        f'{values_path(directory, number)} and {number:02}.npy of sequences '
        f'hold {len(found)} entries of {found.lines} lines, the manifest says '
        f'{expected[0]} of {expected[1]}'
      )
    shards.append(found)
  return Tokens(shards, [entries for entries, _ in counts])


def _load(path: pathlib.Path, dtype: type) -> np.ndarray:
  try:
    found = np.load(path, mmap_mode='r', allow_pickle=False)
  except (OSError, EOFError, ValueError) as e:
    raise ValueError(f'{path} cannot be read: {e}') from e
  if found.dtype != dtype or found.ndim != 1:
    raise ValueError(
      f'{path} holds {found.dtype} {list(found.shape)}, not {dtype.__name__}'
    )
  return found.view(np.ndarray)
