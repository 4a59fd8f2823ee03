"""The automaton, and what pointers lead to, against plain Python."""

import collections

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from tttnn.datastore import kmeans
from tttnn.methods import automaton as automaton_lib

SEEDS = strategies.integers(0, 2**32 - 1)


def build(entries, states, seed=0, starts=(0,)):
  rng = np.random.default_rng(seed)
  values = rng.integers(0, 3, entries).astype(np.uint16)
  cluster = rng.integers(0, states, entries)
  return automaton_lib.build(values, np.array(starts), cluster)


def test_states_hold_their_entries_in_order():
  automaton = build(50, 7)
  assert automaton.cluster_N.dtype == automaton.members_N.dtype == np.int32
  for state in range(7):
    begin, end = automaton.offsets[state : state + 2]
    found = automaton.members_N[begin:end].tolist()
    assert found == [i for i in range(50) if automaton.cluster_N[i] == state]


@pytest.mark.parametrize(
  'starts', [[0], [0, 3, 4], [0, 0, 3, 3], [0, 3, 6], [0, 1, 2, 3, 4, 5]]
)
def test_the_last_entry_of_a_sequence_has_no_next(starts):
  automaton = automaton_lib.build(np.zeros(6, np.int32), starts)
  of = [max(s for s in range(len(starts)) if starts[s] <= i) for i in range(6)]
  expected = [i < 5 and of[i] == of[i + 1] for i in range(6)]
  assert automaton.has_next_N.tolist() == expected
  assert automaton.offsets is None


def test_an_automaton_without_entries():
  automaton = automaton_lib.build(np.zeros(0, np.uint16), [0])
  assert automaton.has_next_N.shape == (0,)


def test_it_is_read_as_it_was_written(tmp_path):
  automaton = build(50, 7, starts=(0, 20))
  path = str(tmp_path / 'automaton')
  automaton.save(path)
  found = automaton_lib.Automaton.load(path)
  for name, array in vars(automaton).items():
    np.testing.assert_array_equal(getattr(found, name), array)
    assert getattr(found, name).dtype == array.dtype
    assert isinstance(getattr(found, name), np.memmap)
  # One without states leaves none of those before it.
  automaton_lib.build(automaton.values_N, [0]).save(path)
  found = automaton_lib.Automaton.load(path)
  assert found.cluster_N is found.members_N is found.offsets is None
  (tmp_path / 'automaton' / 'has_next.npy').unlink()
  with pytest.raises(FileNotFoundError, match='has_next.npy'):
    automaton_lib.Automaton.load(path)


def test_arrays_that_disagree():
  values = np.zeros(6, np.uint16)
  for starts in ([], [1], [0, 4, 3], [0, 7]):
    with pytest.raises(ValueError, match='do not ascend from 0 to 6 entries'):
      automaton_lib.build(values, starts)
  with pytest.raises(ValueError, match='cluster_N has 5 entries, values_N 6'):
    automaton_lib.build(values, [0], np.zeros(5, np.int32))
  fields = vars(build(6, 2))
  with pytest.raises(ValueError, match='only some of cluster_N'):
    automaton_lib.Automaton(**fields | {'members_N': None})
  with pytest.raises(ValueError, match='offsets end at 5, values_N has 6'):
    automaton_lib.Automaton(**fields | {'offsets': np.array([0, 5])})


def test_clusters_are_the_nearest_centroids():
  rng = np.random.default_rng(0)
  keys = rng.normal(size=(500, 6)).astype(np.float32)
  sample = keys[::2]
  found = automaton_lib.clusters(
    sample, iter([keys[:123], keys[123:123], keys[123:]]), 12, seed=4
  )
  centroids = kmeans.train(sample, 12, iterations=20, seed=4)
  away = np.square(keys[:, None].astype(np.float64) - centroids).sum(axis=2)
  assert found.dtype == np.int32
  np.testing.assert_array_equal(found, away.argmin(axis=1))


def led_to(automaton, pointers, most, dedupe):
  """Of one row, over dicts and sets."""
  members = collections.defaultdict(list)
  for entry, state in enumerate(automaton.cluster_N.tolist()):
    members[state].append(entry)
  found = list(pointers)
  if len(found) < most:
    counts = collections.Counter(int(automaton.cluster_N[p]) for p in pointers)
    for state in sorted(counts, key=lambda state: (-counts[state], state)):
      known = set(pointers) if dedupe else set()
      found += [entry for entry in members[state] if entry not in known]
  return found[:most]


def padded(lists, width):
  rows = [[*one, *[-1] * (width - len(one))] for one in lists]
  return np.array(rows, np.int64).reshape(len(lists), width)


@hypothesis.given(
  SEEDS,
  strategies.sampled_from([1, 4, 13, 60]),
  strategies.sampled_from([1, 3, 20, 60]),
  strategies.booleans(),
)
def test_pointers_lead_to_all_entries_of_their_states(
  seed, most, states, dedupe
):
  rng = np.random.default_rng(seed)
  automaton = build(60, states, seed)
  pointers = [
    rng.permutation(60)[: rng.integers(0, most + 1)].tolist() for _ in range(6)
  ]
  if not dedupe:  # There an entry may be pointed to twice.
    pointers = [(p + p[:2])[:most] for p in pointers]
  given = padded(pointers, most)
  kept = given.copy()
  found = automaton_lib.expand(automaton, given, dedupe=dedupe)
  expected = [led_to(automaton, p, most, dedupe) for p in pointers]
  np.testing.assert_array_equal(found, padded(expected, most))
  np.testing.assert_array_equal(given, kept)
  if dedupe:
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)


FLOATS = strategies.floats(width=32, allow_nan=False, allow_infinity=False)


@hypothesis.given(
  strategies.lists(
    strategies.lists(
      strategies.tuples(
        FLOATS | strategies.sampled_from([0.0, -0.0, 1.0]),
        strategies.integers(-1, 29),
      ),
      min_size=5,
      max_size=5,
    ),
    min_size=1,
    max_size=6,
  ),
  strategies.integers(0, 6),
)
def test_a_token_leads_on_from_its_entries(rows, most):
  automaton = build(30, 2, starts=(0, 10, 11, 25))
  ends = {9, 10, 24, 29}
  tokens = [row % 3 for row in range(len(rows))]
  expected = []
  for row, token in zip(rows, tokens, strict=True):
    kept = [
      (distance, entry)
      for distance, entry in row
      if entry >= 0 and automaton.values_N[entry] == token and entry not in ends
    ]
    # Of equally near ones the first stays first.
    kept.sort(key=lambda pair: pair[0])
    expected.append([entry + 1 for _, entry in kept][:most])
  distances, ids = np.moveaxis(np.array(rows), 2, 0)
  found = automaton_lib.follow(
    automaton,
    distances.astype(np.float32),
    ids.astype(np.int64),
    np.array(tokens),
    most,
  )
  np.testing.assert_array_equal(found, padded(expected, most))
