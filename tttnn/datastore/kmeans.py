"""K-means on the accelerator, and the nearest centroid of many vectors.

Lloyd's algorithm from random vectors. A vector's centroid is that with the
least |c|^2 / 2 - x c, one matrix product a block of vectors, so that no array
[vectors, centroids] is ever whole. Centroids that lose all their vectors begin
again at vectors drawn by their squared distance to their own centroid, as
k-means++ draws (Arthur and Vassilvitskii, 2007): where the error is, and never
at a copy of a centroid.

The same call gives the same centroids on CPU and TPU. On GPU sums are made in
no fixed order, unless XLA_FLAGS has --xla_gpu_deterministic_ops=true.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tttnn import sharding

P = jax.sharding.PartitionSpec
METRICS = ('l2', 'ip')

# Scores [rows, centroids] that are there at once on a device.
_SCORES = 1 << 26
_LEAST_ROWS, _MOST_ROWS = 128, 4096
_PENDING = 2


def train(
  sample_NxD: np.ndarray,
  lists: int,
  *,
  iterations: int,
  seed: int,
  metric: str = 'l2',
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """Centroids of a sample.

  Args:
    sample_NxD: finite; lies on the devices as a whole, in float32.
    lists: centroids.
    iterations: of assigning and averaging; at most as many again follow while
      a centroid is nearest to no vector of the sample.
    seed: of what is drawn.
    metric: 'l2', or 'ip': centroids of norm 1, each vector with that of the
      largest inner product (spherical k-means).
    mesh: vectors spread over its axis `data`; None: the first device.

  Returns:
    float32 [lists, D].

  Raises:
    ValueError: fewer vectors than lists, vectors that are not finite, no
      iterations, or an unknown metric.
  """
  sample_NxD = np.ascontiguousarray(sample_NxD, np.float32)
  _check(sample_NxD, lists, iterations, metric)
  mesh = mesh or _one_device()
  rows, devices = len(sample_NxD), mesh.shape['data']
  block = min(_rows(lists), 1 << (-(-rows // devices) - 1).bit_length())
  padded = -(-rows // (block * devices)) * block * devices
  spread = jax.NamedSharding(mesh, P('data'))
  sample = jax.device_put(_pad(sample_NxD, padded), spread)
  real = jax.device_put(np.arange(padded) < rows, spread)
  rng = np.random.default_rng(seed)
  first = np.sort(rng.choice(rows, lists, replace=False))
  centroids_CxD = _scaled(sample_NxD[first], metric)
  for step in range(2 * iterations):
    sums_CxD, counts_C, errors_N = _pass(
      sample, real, centroids_CxD, metric=metric, block=block, mesh=mesh
    )
    counts_C = np.asarray(counts_C)
    if step >= iterations and counts_C.all():
      break
    weights_C = np.maximum(counts_C, 1).astype(np.float32)
    centroids_CxD = np.asarray(sums_CxD) / weights_C[:, None]
    empty = np.flatnonzero(counts_C == 0)
    if len(empty):
      chosen = _draw(np.asarray(errors_N)[:rows], len(empty), rng)
      centroids_CxD[empty] = sample_NxD[chosen]
    centroids_CxD = _scaled(centroids_CxD, metric)
  return centroids_CxD


def assign(
  block_BxD: np.ndarray,
  centroids_CxD: np.ndarray | jax.Array,
  *,
  metric: str = 'l2',
  mesh: jax.sharding.Mesh | None = None,
) -> np.ndarray:
  """The nearest centroid of each vector, the lower one of equals.

  Vectors go to the devices in pieces of one shape, whatever their number, so
  that one program serves for all blocks.

  Args:
    block_BxD: any number of vectors, cast to float32.
    centroids_CxD: from `place`, so that they need not move at each call.
    metric: 'l2', or 'ip' for the largest inner product.
    mesh: vectors spread over its axis `data`; None: the first device.

  Returns:
    int64 [B].

  Raises:
    ValueError: vectors and centroids of different widths, an unknown metric.
  """
  if block_BxD.ndim != 2 or block_BxD.shape[1] != centroids_CxD.shape[1]:
    raise ValueError(
      f'vectors of shape {list(block_BxD.shape)} for centroids of shape '
      f'{list(centroids_CxD.shape)}'
    )
  _check_metric(metric)
  mesh = mesh or _one_device()
  centroids_CxD = place(centroids_CxD, mesh)
  spread = jax.NamedSharding(mesh, P('data'))
  rows = _rows(len(centroids_CxD)) * mesh.shape['data']
  pending, done = [], [np.empty(0, np.int64)]
  for begin in range(0, len(block_BxD), rows):
    piece = np.asarray(block_BxD[begin : begin + rows], np.float32)
    piece = jax.device_put(_pad(piece, rows), spread)
    pending.append(_nearest_of_block(piece, centroids_CxD, metric=metric))
    if len(pending) > _PENDING:
      done.append(np.asarray(pending.pop(0)))
  done += map(np.asarray, pending)
  return np.concatenate(done)[: len(block_BxD)].astype(np.int64)


def place(
  centroids_CxD: np.ndarray | jax.Array, mesh: jax.sharding.Mesh | None = None
) -> jax.Array:
  """A copy on each device of the mesh, or on the first; none if it is there."""
  whole = jax.NamedSharding(mesh or _one_device(), P())
  return jax.device_put(centroids_CxD, whole)


@functools.partial(jax.jit, static_argnames=('metric', 'block', 'mesh'))
def _pass(sample_NxD, real_N, centroids_CxD, *, metric, block, mesh):
  """Sums and counts of the vectors of each centroid, and squared errors [N].

  Rows that are not `real_N` count nowhere.
  """
  width = sample_NxD.shape[1]
  lists = len(centroids_CxD)

  def of_device(sample_NxD, real_N, centroids_CxD):
    half_C = _half_squares(centroids_CxD, metric)

    def of_block(total, rows):
      sums_CxD, counts_C = total
      block_BxD, real_B = rows
      nearest_B = _nearest(block_BxD, centroids_CxD, half_C)
      # Out of bounds, where nothing is added.
      nearest_B = jnp.where(real_B, nearest_B, lists)
      sums_CxD = sums_CxD.at[nearest_B].add(block_BxD, mode='drop')
      counts_C = counts_C.at[nearest_B].add(1, mode='drop')
      kept_BxD = centroids_CxD.at[nearest_B].get(mode='clip')
      away_BxD = _scaled(block_BxD, metric, jnp) - kept_BxD
      errors_B = jnp.where(real_B, jnp.sum(away_BxD**2, axis=1), 0)
      return (sums_CxD, counts_C), errors_B

    begin = jax.lax.pcast(
      (jnp.zeros_like(centroids_CxD), jnp.zeros(lists, jnp.int32)),
      'data',
      to='varying',
    )
    blocks = sample_NxD.reshape(-1, block, width), real_N.reshape(-1, block)
    total, errors = jax.lax.scan(of_block, begin, blocks)
    return *jax.lax.psum(total, 'data'), errors.reshape(-1)

  spread = jax.shard_map(
    of_device,
    mesh=mesh,
    in_specs=(P('data'), P('data'), P()),
    out_specs=(P(), P(), P('data')),
  )
  return spread(sample_NxD, real_N, centroids_CxD)


@functools.partial(jax.jit, static_argnames='metric')
def _nearest_of_block(block_BxD, centroids_CxD, *, metric):
  half_C = _half_squares(centroids_CxD, metric)
  return _nearest(block_BxD, centroids_CxD, half_C)


def _nearest(block_BxD, centroids_CxD, half_C):
  products_BxC = jnp.einsum(
    'bd,cd->bc', block_BxD, centroids_CxD, precision='highest'
  )
  return jnp.argmin(half_C - products_BxC, axis=1)


def _half_squares(centroids_CxD, metric):
  if metric == 'ip':
    return jnp.zeros(len(centroids_CxD))
  return 0.5 * jnp.sum(centroids_CxD**2, axis=1)


def _scaled(vectors_NxD, metric: str, numpy=np):
  """To norm 1 for 'ip'; zeros stay."""
  if metric == 'l2':
    return vectors_NxD
  norms_Nx1 = numpy.linalg.norm(vectors_NxD, axis=1, keepdims=True)
  return vectors_NxD / numpy.where(norms_Nx1 > 0, norms_Nx1, 1)


def _draw(errors_N: np.ndarray, count: int, rng) -> np.ndarray:
  """Different rows, by chances in proportion to their errors."""
  # The largest of log(error) + Gumbel noise are such a draw.
  with np.errstate(divide='ignore'):
    keys_N = np.log(errors_N.astype(np.float64))
  keys_N += rng.gumbel(size=len(keys_N))
  return np.argsort(-keys_N, kind='stable')[:count]


def _rows(lists: int) -> int:
  """Vectors compared with so many centroids at once, a power of two."""
  most = max(_SCORES // lists, 1)
  return min(max(1 << (most.bit_length() - 1), _LEAST_ROWS), _MOST_ROWS)


def _pad(vectors_NxD: np.ndarray, rows: int) -> np.ndarray:
  missing = rows - len(vectors_NxD)
  return np.pad(vectors_NxD, ((0, missing), (0, 0))) if missing else vectors_NxD


def _one_device() -> jax.sharding.Mesh:
  return sharding.make_mesh(1, 1, jax.local_devices()[:1])


def _check(sample_NxD, lists: int, iterations: int, metric: str) -> None:
  _check_metric(metric)
  if iterations < 1:
    raise ValueError(f'{iterations} iterations of k-means; at least 1')
  if sample_NxD.ndim != 2 or not 1 <= lists <= len(sample_NxD):
    raise ValueError(
      f'{lists} lists of a sample of shape {list(sample_NxD.shape)}'
    )
  bad = np.flatnonzero(~np.isfinite(sample_NxD).all(axis=1))
  if bad.size:
    raise ValueError(f'vector {bad[0]} of the sample is not finite')


def _check_metric(metric: str) -> None:
  if metric not in METRICS:
    raise ValueError(f'metric {metric!r} is not {" or ".join(METRICS)}')
