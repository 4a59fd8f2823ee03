"""Nearest neighbours by JAX, over vectors that lie on the devices of a mesh.

A row x has the score s = |x|^2 / 2 - qx, which ascends as |q - x|^2 does (for
inner products s = -qx). Its float32 is one matrix product, but it misorders
rows that lie close together, so that it only proposes candidates, as a scan
does in `engine`: distances are computed again in float64 from the vectors as
stored, and a bound on the error of a score says which rows could belong to the
k nearest. Where the candidates may lack one, a second pass over the devices
takes every row within the bound. So the answer is exact, with ties in row
order, and the same whatever the batch, the mesh and the dtype on the devices.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np

from tttnn import sharding
from tttnn.datastore import metric as metric_lib

DTYPES = ('float32', 'bfloat16', 'float16')

# Queries are padded to one of these, so that few programs compile.
_BATCHES = (1, 4, 16, 32, 64, 128, 256)
_SCORES_BYTES = 1 << 30  # Of a batch, on each device.
# Rows of one matrix product: its scores stay in a CPU's cache; elsewhere one
# product must be worth the launch.
_BLOCK_ROWS = 1 << 12
_BLOCK_ROWS_ACCELERATOR = 1 << 16
_GROUP = 64  # Rows that the selection looks at by their minimum first.
_GATHER_ROWS = 1 << 14
_RECALL_TARGET = 0.95
_TINY = float(np.finfo(np.float32).tiny)


class DeviceIndex:
  """Vectors spread by rows over all devices of a mesh, and search over them.

  One search at a time: on several devices it communicates.

  Args:
    blocks: consecutive rows [any number, dim], float32 or float16 and finite.
      Each is let go once it lies on its device.
    count: rows in all.
    dim: width of the vectors.
    mesh: with devices of this process; by default all there are.
    dtype: on the devices, one of DTYPES. A narrower one than the vectors have
      halves the memory and costs more candidates; answers stay the same.
    metric: see `metric`; vectors and queries are prepared for it.
    approximate: candidates by `jax.lax.approx_min_k`, which is faster on TPU
      only, and no bound that makes sure of them; see `recall`.
    gather: vectors of some positions, any order: [n, dim] as in `blocks`.

  Raises:
    ValueError: dtype or metric not known, other rows than count and dim say,
      not finite or beyond the range of dtype, or a mesh over other processes.
  """

  def __init__(
    self,
    blocks: Iterable[np.ndarray],
    count: int,
    dim: int,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = 'float32',
    metric: str = 'l2',
    approximate: bool = False,
    gather: Callable[[np.ndarray], np.ndarray],
  ):
    if dtype not in DTYPES:
      raise ValueError(f'dtype={dtype!r} is not one of {", ".join(DTYPES)}')
    metric_lib.check(metric)
    if count < 1:
      raise ValueError(f'{count} vectors; there must be one to find')
    self.count = count
    self.exact = not approximate
    self._dim = dim
    self._dtype = jnp.dtype(dtype)
    self._metric = metric
    self._gather = gather
    self._mesh = sharding.make_mesh(0, 1) if mesh is None else mesh
    if self._mesh.is_multi_process:
      raise ValueError(
        f'mesh {dict(self._mesh.shape)} has devices of other processes than '
        f'{jax.process_index()}; device search knows those of its own only'
      )
    self._largest = 0.0  # Norm of a row.
    # |x - x on the device| is at most narrowing |x| + flushed, where flushed is
    # for numbers so small that a device may take them for 0.
    self._narrowing = 0.0
    self._flushed = dim**0.5 * float(jnp.finfo(self._dtype).tiny)
    self._vectors_CxRxD, self._halves_CxR = self._load(blocks)
    rows = self._halves_CxR.size // self._mesh.size
    fitting = [n for n in _BATCHES if n * rows * 4 <= _SCORES_BYTES]
    self._batches = fitting or _BATCHES[:1]

  def search(
    self, queries_QxD: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of each query.

    Args:
      queries_QxD: finite, cast to float32.
      k: number of neighbours.

    Returns:
      distances_Qxk: float32, ascending, see `metric`;
      positions_Qxk: int64, ascending where distances are equal.

    Raises:
      ValueError: another dim, a query that is not finite, or k below 1 or above
        the number of rows.
    """
    return self._search(queries_QxD, k, exact=self.exact)

  def recall(self, queries_QxD: np.ndarray, k: int) -> float:
    """The share of the k nearest that `approx_min_k` finds, here measured.

    Whatever `approximate` says. On CPU and GPU it searches all, so that only
    rounding takes it from 1; arguments and errors as `search`.
    """
    _, exact_Qxk = self._search(queries_QxD, k, exact=True)
    _, found_Qxk = self._search(queries_QxD, k, exact=False)
    pairs = zip(exact_Qxk, found_Qxk, strict=True)
    return float(np.mean([np.isin(exact, found) for exact, found in pairs]))

  def _load(self, blocks) -> tuple[jax.Array, jax.Array]:
    """Vectors [C, R, D] and |x|^2 / 2 [C, R], inf for the rows that pad."""
    devices = self._mesh.devices.ravel()
    on_cpu = devices[0].platform == 'cpu'
    block = _BLOCK_ROWS if on_cpu else _BLOCK_ROWS_ACCELERATOR
    share = -(-self.count // len(devices))
    block = min(block, -(-share // _GROUP) * _GROUP)
    chunks = -(-share // block)
    pieces = _cut(blocks, block, self.count, self._dim)
    vectors, halves = [], []
    for i, device in enumerate(devices):
      shape = (chunks, block, self._dim)
      vectors_CxRxD = jnp.zeros(shape, self._dtype, device=device)
      halves_CxR = np.full(shape[:2], np.inf, np.float32)
      here = range(i * chunks, (i + 1) * chunks)
      for chunk, _ in enumerate(n for n in here if n * block < self.count):
        piece_NxD = next(pieces)
        # New each time: a device of a CPU may go on reading what it was given.
        padded_RxD = np.zeros(shape[1:], self._dtype)
        padded_RxD[: len(piece_NxD)] = self._narrow(piece_NxD)
        halves_CxR[chunk, : len(piece_NxD)] = self._note(piece_NxD, padded_RxD)
        vectors_CxRxD = _put(vectors_CxRxD, padded_RxD, chunk)
      vectors.append(vectors_CxRxD)
      halves.append(jax.device_put(halves_CxR, device))
    next(pieces, None)  # Rows beyond the count are an error, too.
    where = jax.NamedSharding(self._mesh, P(self._mesh.axis_names))
    return tuple(
      jax.make_array_from_single_device_arrays(
        (len(devices) * chunks, *parts[0].shape[1:]), where, parts
      )
      for parts in (vectors, halves)
    )

  def _narrow(self, piece_NxD: np.ndarray) -> np.ndarray:
    largest = float(np.abs(piece_NxD).max())
    limit = float(jnp.finfo(self._dtype).max)
    if largest > limit:
      raise ValueError(
        f'{largest} in a vector, but {self._dtype} ends at {limit}'
      )
    return piece_NxD.astype(self._dtype)

  def _note(self, piece_NxD: np.ndarray, padded_RxD: np.ndarray) -> np.ndarray:
    """|x|^2 / 2 of rows (0 for 'ip'), whose norms and rounding are noted."""
    exact_NxD = piece_NxD.astype(np.float64)
    squares_N = np.square(exact_NxD).sum(axis=1)
    self._largest = max(self._largest, float(np.sqrt(squares_N.max())))
    if self._dtype not in (np.float32, piece_NxD.dtype):
      exact_NxD -= padded_RxD[: len(piece_NxD)].astype(np.float64)
      lost_N = np.sqrt(np.square(exact_NxD).sum(axis=1)) - self._flushed
      shares_N = lost_N / np.sqrt(np.maximum(squares_N, _TINY))
      self._narrowing = max(self._narrowing, float(shares_N.max()))
    if self._metric != 'l2':
      return np.zeros(len(piece_NxD), np.float32)
    with np.errstate(over='ignore'):  # `metric.overflows` tells.
      return (squares_N / 2).astype(np.float32)

  def _search(self, queries_QxD, k: int, *, exact: bool):
    queries_QxD = np.ascontiguousarray(queries_QxD, np.float32)
    metric_lib.check_queries(queries_QxD, k, self._dim, self.count)
    distances_Qxk = np.empty((len(queries_QxD), k), np.float32)
    positions_Qxk = np.empty((len(queries_QxD), k), np.int64)
    width = min(1 << (2 * k + 15).bit_length(), self.count)
    wide = {}  # Query -> the radius within which all rows must be looked at.
    for begin, batch_QxD in self._padded(queries_QxD):
      near_QxM, rows_QxM = self._candidates(batch_QxD, width, exact)
      for q in range(begin, min(begin + len(batch_QxD), len(queries_QxD))):
        near_M, rows_M = near_QxM[q - begin], rows_QxM[q - begin]
        inside = np.searchsorted(near_M, np.inf)  # Without rows that pad.
        if inside < k or metric_lib.overflows(queries_QxD[q], self._largest):
          wide[q] = np.inf
          continue
        distances_k = self._distances(queries_QxD[q], rows_M[:k])
        if exact:
          radius = metric_lib.limit(
            self._metric,
            queries_QxD[q],
            distances_k.max(),
            self._largest,
            narrowing=self._narrowing,
            flushed=self._flushed,
          )
          if width < self.count and near_M[-1] <= radius:
            wide[q] = radius
            continue
          inside = max(k, np.searchsorted(near_M, radius, side='right'))
        more = self._distances(queries_QxD[q], rows_M[k:inside])
        distances_Qxk[q], positions_Qxk[q] = _nearest(
          np.concatenate([distances_k, more]), rows_M[:inside], k
        )
    for q, rows in self._within(queries_QxD, wide):
      distances = self._distances(queries_QxD[q], rows)
      distances_Qxk[q], positions_Qxk[q] = _nearest(distances, rows, k)
    return distances_Qxk, positions_Qxk

  def _padded(self, queries_QxD) -> Iterator[tuple[int, np.ndarray]]:
    """(first query, queries) of batches; rows of zeros fill up the last."""
    largest = self._batches[-1]
    for begin in range(0, len(queries_QxD), largest):
      batch_QxD = queries_QxD[begin : begin + largest]
      size = next(n for n in self._batches if n >= len(batch_QxD))
      yield begin, np.pad(batch_QxD, ((0, size - len(batch_QxD)), (0, 0)))

  def _candidates(self, batch_QxD, width: int, exact: bool):
    """Scores [Q, width], ascending, and positions, on the host."""
    near_QxM, owners_QxM, rows_QxM = jax.device_get(
      _candidates(
        batch_QxD,
        self._vectors_CxRxD,
        self._halves_CxR,
        mesh=self._mesh,
        width=width,
        exact=exact,
      )
    )
    share = self._halves_CxR.size // self._mesh.size
    # On the host, since a device has no int64.
    return near_QxM, owners_QxM.astype(np.int64) * share + rows_QxM

  def _within(self, queries_QxD, wide: dict[int, np.float32]):
    """(query, all its rows with scores up to the radius) for those in `wide`.

    Where float32 may overflow, the radius is infinite: all rows there are.
    """
    numbers = [q for q, radius in wide.items() if np.isfinite(radius)]
    for begin, batch_QxD in self._padded(queries_QxD[numbers]):
      here = numbers[begin : begin + len(batch_QxD)]
      radii_Q = np.full(len(batch_QxD), -np.inf, np.float32)
      radii_Q[: len(here)] = [wide[q] for q in here]
      inside_QxN = _inside(
        batch_QxD,
        radii_Q,
        self._vectors_CxRxD,
        self._halves_CxR,
        mesh=self._mesh,
      )
      for q, inside_N in zip(here, np.asarray(inside_QxN), strict=False):
        yield q, np.flatnonzero(inside_N)
    for q in wide.keys() - set(numbers):
      yield q, np.arange(self.count)

  def _distances(self, query_D, positions: np.ndarray) -> np.ndarray:
    """Float32 of the distances, computed in float64 from the vectors."""
    result = np.empty(len(positions), np.float32)
    for begin in range(0, len(positions), _GATHER_ROWS):
      part = positions[begin : begin + _GATHER_ROWS]
      result[begin : begin + len(part)] = metric_lib.distances(
        self._metric, query_D, self._gather(part)
      )
    return result


def _nearest(distances, positions, k: int) -> tuple[np.ndarray, np.ndarray]:
  order = np.lexsort((positions, distances))[:k]
  return distances[order], positions[order]


def _cut(
  blocks: Iterable[np.ndarray], rows: int, count: int, dim: int
) -> Iterator[np.ndarray]:
  """The same rows in pieces of `rows`, the last one less, checked."""
  held, waiting, seen = [], 0, 0
  for block_NxD in blocks:
    if block_NxD.ndim != 2 or block_NxD.shape[1] != dim:
      raise ValueError(f'vectors {list(block_NxD.shape)}, not of dim {dim}')
    bad = np.flatnonzero(~np.isfinite(block_NxD).all(axis=1))
    if bad.size:
      raise ValueError(f'vector {seen + bad[0]} of {count} is not finite')
    seen += len(block_NxD)
    if seen > count:
      raise ValueError(f'{seen} vectors or more, not {count}')
    while len(block_NxD):
      part_NxD = block_NxD[: rows - waiting]
      block_NxD = block_NxD[len(part_NxD) :]
      held.append(part_NxD)
      waiting += len(part_NxD)
      if waiting == rows:
        yield np.concatenate(held)
        held, waiting = [], 0
  if seen < count:
    raise ValueError(f'{seen} vectors, not {count}')
  if held:
    yield np.concatenate(held)


@functools.partial(jax.jit, donate_argnums=0)
def _put(vectors_CxRxD, block_RxD, chunk) -> jax.Array:
  return vectors_CxRxD.at[chunk].set(block_RxD)


def _scores(queries_QxD, vectors_RxD, halves_R) -> jax.Array:
  products_QxR = jnp.dot(
    queries_QxD,
    vectors_RxD.astype(jnp.float32).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  return halves_R - products_QxR


@functools.partial(jax.jit, static_argnames=('mesh', 'width', 'exact'))
def _candidates(
  queries_QxD, vectors_CxRxD, halves_CxR, *, mesh, width: int, exact: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The rows with the lowest scores, of all devices.

  Returns:
    scores_QxM, ascending; owners_QxM: the numbers of devices; rows_QxM on them.
  """
  devices = mesh.size

  def local(queries_QxD, vectors_CxRxD, halves_CxR):
    def body(_, block):
      scores_QxR = _scores(queries_QxD, *block)
      groups_QxExG = scores_QxR.reshape(len(queries_QxD), -1, _GROUP)
      return None, (scores_QxR, groups_QxExG.min(axis=2))

    _, found = jax.lax.scan(body, None, (vectors_CxRxD, halves_CxR))
    scores_CxQxR, minima_CxQxE = found
    most = min(width, halves_CxR.size)
    if exact:
      near, rows = _lowest(scores_CxQxR, minima_CxQxE, most)
    else:
      near, rows = jax.lax.approx_min_k(
        _flat(scores_CxQxR),
        most,
        recall_target=_RECALL_TARGET,
        reduction_input_size_override=halves_CxR.size * devices,
      )
    return near[:, None], rows[:, None]

  spread, joined = P(mesh.axis_names), P(None, mesh.axis_names)
  near_QxSxM, rows_QxSxM = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(P(), spread, spread),
    out_specs=(joined, joined),
  )(queries_QxD, vectors_CxRxD, halves_CxR)
  most = near_QxSxM.shape[2]
  near_QxM, best_QxM = _top(_joined(near_QxSxM), width)
  rows_QxM = jnp.take_along_axis(_joined(rows_QxSxM), best_QxM, axis=1)
  return near_QxM, best_QxM // most, rows_QxM


def _lowest(scores_CxQxR, minima_CxQxE, width: int):
  """The lowest scores [Q, width] and their rows, without sorting all rows.

  The `width` lowest lie within the `width` groups whose minima are lowest, so
  two small selections replace one over all rows, and are exact.
  """
  c, q, e = minima_CxQxE.shape
  groups_CxQxExG = scores_CxQxR.reshape(c, q, e, _GROUP)
  _, best_QxM = _top(_flat(minima_CxQxE), min(width, c * e))
  numbers_Qx1 = jnp.arange(q)[:, None]
  chosen_QxMxG = groups_CxQxExG[best_QxM // e, numbers_Qx1, best_QxM % e]
  near, places = _top(_joined(chosen_QxMxG), width)
  groups = jnp.take_along_axis(best_QxM, places // _GROUP, axis=1)
  return near, groups * _GROUP + places % _GROUP


@functools.partial(jax.jit, static_argnames=('mesh',))
def _inside(
  queries_QxD, radii_Q, vectors_CxRxD, halves_CxR, *, mesh
) -> jax.Array:
  """Whether each row's score is at most the query's radius: [Q, all rows]."""

  def local(queries_QxD, radii_Q, vectors_CxRxD, halves_CxR):
    def body(_, block):
      return None, _scores(queries_QxD, *block) <= radii_Q[:, None]

    return _flat(jax.lax.scan(body, None, (vectors_CxRxD, halves_CxR))[1])

  spread = P(mesh.axis_names)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(P(), P(), spread, spread),
    out_specs=P(None, mesh.axis_names),
  )(queries_QxD, radii_Q, vectors_CxRxD, halves_CxR)


def _top(values_QxN: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The k lowest, ascending, and where they are."""
  values, places = jax.lax.top_k(-values_QxN, k)
  return -values, places


def _flat(values_CxQxR: jax.Array) -> jax.Array:
  return _joined(values_CxQxR.transpose(1, 0, 2))


def _joined(values_QxAxB: jax.Array) -> jax.Array:
  return values_QxAxB.reshape(len(values_QxAxB), -1)
