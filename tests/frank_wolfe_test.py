"""Frank-Wolfe and its whole numbers, against the plain algorithm."""

import itertools

import numpy as np

from tttnn.methods import frank_wolfe
from tttnn.methods import gram


def units(vectors):
  vectors = np.asarray(vectors, np.float64)
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def plain_weights(q, x, count):
  """Section "selection" of the paper, vectors and all."""
  w = np.zeros(len(x))
  i = np.argmax(x @ q)
  w[i], z = 1.0, x[i]
  for _ in range(250):
    left = q - z
    if np.linalg.norm(left) < 1e-5 or np.sum(w > 0) >= count:
      break
    s = np.argmax(x @ left)
    step = x[s] - z
    if step @ step < 1e-12:
      break
    g = np.clip(left @ step / (step @ step), 0, 1)
    w = (1 - g) * w
    w[s] += g
    z = z + g * step
  return w


def distance(c, q, x):
  return np.sum((q - c @ x / np.sum(c)) ** 2)


def plain_integers(w, q, x, count):
  """Tries each change of the counts by itself."""

  def error(c):
    return np.sum((q - c @ x / count) ** 2)

  def moved(c, j, i=None):
    c = c.copy()
    c[j] += 1
    if i is not None:
      c[i] -= 1
    return c

  c = np.floor(count * w).astype(int)
  while c.sum() < count:
    c = min((moved(c, j) for j in range(len(c))), key=error)
  for _ in range(2):
    before = c
    for i, j in itertools.product(range(len(c)), repeat=2):
      if i != j and c[i] and error(moved(c, j, i)) < error(c) - 1e-14:
        c = moved(c, j, i)
    if np.array_equal(before, c):
      break
  return c


def pools(count, size=14, dim=6):
  for seed in range(count):
    rng = np.random.default_rng(seed)
    query = rng.standard_normal(dim)
    vectors = rng.standard_normal((size, dim)) + rng.random() * query
    yield np.float32(query), np.float32(vectors)


def choose(query_D, vectors_MxD, count):
  (found,) = frank_wolfe.choose(query_D[None], [vectors_MxD], count=count)
  return found


def weights(query_D, vectors_MxD, count):
  (found,) = gram.each(
    lambda some: [
      frank_wolfe.weights(of.cosines_M, of.gram_MxM, of.distinct_M, count)
      for of in some
    ],
    query_D[None],
    [vectors_MxD],
  )
  return found


def test_picks_are_those_of_the_plain_algorithm():
  repeated = 0
  for number, (query_D, vectors_MxD) in enumerate(pools(200)):
    count = 1 + number % 12
    q, x = units(query_D), units(vectors_MxD)
    w = plain_weights(q, x, count)
    np.testing.assert_allclose(
      weights(query_D, vectors_MxD, count), w, atol=1e-9
    )
    order = np.argsort(-w, kind='stable')[: np.sum(w > 0)]
    c = plain_integers(w[order], q, x[order], count)
    picks, left = choose(query_D, vectors_MxD, count)
    assert picks == np.repeat(order, c).tolist()
    np.testing.assert_allclose(left**2, distance(c, q, x[order]), atol=1e-12)
    repeated += len(set(picks)) < len(picks)
  assert repeated > 50


def test_counts_are_whole_and_as_many_as_asked_for():
  queries, vectors = zip(*pools(400, size=30, dim=9), strict=True)
  found = frank_wolfe.choose(np.stack(queries), vectors, count=20)
  for query_D, vectors_MxD, (picks, _) in zip(
    queries, vectors, found, strict=True
  ):
    assert len(picks) == 20
    used = weights(query_D, vectors_MxD, 20)
    assert {*picks} <= {*np.flatnonzero(used > 0)}
    assert np.all(used >= 0) and np.sum(used > 0) <= 20
    assert abs(used.sum() - 1) < 1e-12
    # By weight, and repetitions together.
    places = [place for place, _ in itertools.groupby(picks)]
    assert len(set(places)) == len(places)
    assert np.all(np.diff(used[places]) <= 0)


def integers_of(given, count, monkeypatch, passes):
  w, b, g = given
  monkeypatch.setattr(frank_wolfe, '_PASSES', passes)
  return frank_wolfe.integers(w, b, g, count)


def test_moves_only_help_and_none_beats_the_best(monkeypatch):
  rng = np.random.default_rng(1)
  helped = 0
  for _ in range(200):
    q, x = units(rng.standard_normal(3)), units(rng.standard_normal((4, 3)))
    # Any weights: those of Frank-Wolfe leave little to move.
    given = rng.dirichlet(np.ones(4)), x @ q, x @ x.T
    added = integers_of(given, 6, monkeypatch, 0)
    final = integers_of(given, 6, monkeypatch, 2)
    assert added.sum() == final.sum() == 6
    assert added.min() >= 0 and final.min() >= 0
    best = min(
      distance(np.array(c), q, x)
      for c in itertools.product(range(7), repeat=4)
      if sum(c) == 6
    )
    before, after = distance(added, q, x), distance(final, q, x)
    assert best - 1e-12 <= after <= before + 1e-12
    helped += after < before - 1e-12
  assert helped > 20


def test_more_candidates_come_nearer():
  for query_D, vectors_MxD in pools(20, size=40, dim=12):
    q, x = units(query_D), units(vectors_MxD)
    left = [
      np.linalg.norm(q - weights(query_D, vectors_MxD, n) @ x)
      for n in range(1, 12)
    ]
    assert np.all(np.diff(left) <= 1e-12) and left[-1] < left[0]


def test_one_pick_is_the_nearest():
  for query_D, vectors_MxD in pools(30):
    q, x = units(query_D), units(vectors_MxD)
    nearest = int(np.argmax(x @ q))
    picks, left = choose(query_D, vectors_MxD, 1)
    assert picks == [nearest]
    np.testing.assert_allclose(left, np.linalg.norm(q - x[nearest]), atol=1e-12)


def test_candidates_without_weight_take_no_place():
  query_D = np.float32([1, 0, 0])
  # It is the query itself: nothing is left for the others.
  near = np.float32([[1, 0.1, 0], [1, 0, 0.2], [2, 0, 0]])
  assert choose(query_D, near, 3) == ([2, 2, 2], 0.0)
  # Nothing is better than the nearest alone.
  far = np.float32([[-1, 0.3, 0], [1, 0.1, 0], [-1, 0.5, 0]])
  assert choose(query_D, far, 3)[0] == [1, 1, 1]
  assert weights(query_D, far, 3).tolist() == [0, 1, 0]


def test_of_equal_candidates_the_first_is_picked():
  for query_D, vectors_MxD in pools(20):
    doubled = np.concatenate([vectors_MxD, vectors_MxD])
    picks, left = choose(query_D, doubled, 9)
    expected, expected_left = choose(query_D, vectors_MxD, 9)
    assert picks == expected
    np.testing.assert_allclose(left, expected_left, atol=1e-13)


def test_short_and_empty_pools_in_a_batch():
  (a, x), (b, y) = pools(2)
  found = frank_wolfe.choose(np.stack([a, b, b]), [x[:1], y[:0], y], count=5)
  assert found[0][0] == [0] * 5
  assert found[1] == ([], 1.0)
  assert found[2] == choose(b, y, 5)
