"""Walks against one row at a time over Python's lists and sets."""

import collections
import copy
import math

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from tttnn.datastore import metric as metric_lib
from tttnn.methods import automaton as automaton_lib
from tttnn.methods import knn_lm
from tttnn.methods import retomaton

K, D, V = 4, 3, 3
SEEDS = strategies.integers(0, 2**32 - 1)


class World:
  """A store whose texts repeat, and texts that are like them."""

  def __init__(self, seed, *, metric='l2', states=0, entries=90, texts=5):
    rng = np.random.default_rng(seed)
    self.metric = metric
    starts = np.sort(rng.integers(0, entries + 1, 8))
    self.starts = np.array([0, *starts])
    self.values = rng.integers(0, V, entries).astype(np.uint16)
    # Whole numbers, so that many are equally far.
    self.keys = rng.integers(-2, 3, (entries, D)).astype(np.float32)
    self.cluster = rng.integers(0, states, entries) if states else None
    self.automaton = automaton_lib.build(self.values, self.starts, self.cluster)
    self.texts = [rng.integers(0, V, rng.integers(0, 15)) for _ in range(texts)]
    self.queries = [
      rng.integers(-2, 3, (len(text), D)).astype(np.float32)
      for text in self.texts
    ]

  def distance(self, query, ids):
    return metric_lib.distances(self.metric, query, self.keys[ids])

  def search(self, queries, k=K):
    distances = np.empty((len(queries), k), np.float32)
    ids = np.empty((len(queries), k), np.int64)
    for row, query in enumerate(queries):
      away = self.distance(query, slice(None))
      ids[row] = np.argsort(away, kind='stable')[:k]
      distances[row] = away[ids[row]]
    return distances, ids

  def walk(self, settings, rows, k=K):
    distances = retomaton.exact(self.metric, self.keys.__getitem__)
    return retomaton.Walk(
      self.automaton, settings, distances, rows=rows, neighbors=k
    )


class Plain:
  """One row."""

  def __init__(self, world, settings):
    self.world = world
    self.settings = settings
    self.pointers = []
    self.steps = self.searches = 0
    sequence = -1
    self.next = {}
    for entry in range(len(world.values)):
      before, sequence = (
        sequence,
        int(np.searchsorted(world.starts, entry, side='right')),
      )
      if before == sequence:
        self.next[entry - 1] = entry

  def candidates(self, query):
    """(whether it searched, [(distance, id), ...])."""
    world, most = self.world, self.settings.max_knns
    led = list(self.pointers)
    if world.cluster is not None and len(led) < most:
      counts = collections.Counter(int(world.cluster[p]) for p in led)
      for state in sorted(counts, key=lambda state: (-counts[state], state)):
        members = np.flatnonzero(world.cluster == state).tolist()
        if self.settings.dedupe:
          members = [entry for entry in members if entry not in self.pointers]
        led += members
    led = led[:most]
    need = len(self.pointers) < self.settings.min_knns
    self.steps += 1
    self.searches += need
    found = []
    if need:
      (distances,), (ids,) = world.search(query[None])
      found = list(zip(distances.tolist(), ids.tolist(), strict=True))
    searched = {entry for _, entry in found}
    for entry in led:
      if not (self.settings.dedupe and entry in searched):
        found.append((float(world.distance(query, [entry])[0]), entry))
    self.found = found
    return need, found

  def advance(self, token):
    kept = [
      (distance, self.next[entry])
      for distance, entry in self.found
      if self.world.values[entry] == token and entry in self.next
    ]
    kept.sort(key=lambda pair: pair[0])
    self.pointers = [entry for _, entry in kept][: self.settings.max_knns]


def pairs(distances, ids):
  """Of each row, without the holes, whose distance has to be inf."""
  assert distances.dtype == np.float32 and ids.dtype == np.int64
  np.testing.assert_array_equal(np.isinf(distances), ids < 0)
  return [
    list(zip(d[i >= 0].tolist(), i[i >= 0].tolist(), strict=True))
    for d, i in zip(distances, ids, strict=True)
  ]


def run(world, settings, order=None):
  """Texts of different lengths at once: a log of each, and the walk."""
  order = range(len(world.texts)) if order is None else order
  texts = [world.texts[i] for i in order]
  walk = world.walk(settings, len(texts))
  logs = [[] for _ in texts]
  for step in range(max(map(len, texts))):
    active = np.array([step < len(text) for text in texts])
    queries = np.full((len(texts), D), np.nan, np.float32)
    tokens = np.full(len(texts), V)
    for row in np.flatnonzero(active):
      queries[row] = world.queries[order[row]][step]
      tokens[row] = texts[row][step]
    need = walk.ask(active).copy()
    answer = world.search(queries[need]) if need.any() else ()
    found = pairs(*walk.candidates(queries, *answer))
    for row in range(len(texts)):
      assert active[row] or not (need[row] or found[row])
      if active[row]:
        logs[row].append((bool(need[row]), found[row]))
    walk.advance(tokens)
  return logs, walk


SETTINGS = strategies.builds(
  retomaton.Settings,
  min_knns=strategies.sampled_from([1, 3, math.inf]),
  max_knns=strategies.sampled_from([0, 1, 6, 60]),
  dedupe=strategies.booleans(),
)


@hypothesis.settings(deadline=None)
@hypothesis.given(
  SEEDS,
  SETTINGS,
  strategies.sampled_from([0, 3, 30]),
  strategies.sampled_from(['l2', 'ip']),
)
def test_a_batch_walks_as_each_row_in_plain_python(
  seed, settings, states, metric
):
  world = World(seed, metric=metric, states=states)
  hypothesis.assume(any(map(len, world.texts)))
  logs, walk = run(world, settings)
  plain = [Plain(world, settings) for _ in world.texts]
  for row, text in enumerate(world.texts):
    expected = []
    for query, token in zip(world.queries[row], text, strict=True):
      expected.append(plain[row].candidates(query))
      plain[row].advance(token)
    assert logs[row] == expected
  steps = [one.steps for one in plain]
  searches = [one.searches for one in plain]
  assert walk.steps_B.tolist() == steps == [len(text) for text in world.texts]
  assert walk.searches_B.tolist() == searches
  assert walk.saved == pytest.approx(1 - sum(searches) / sum(steps))
  if settings.max_knns < settings.min_knns:
    assert walk.saved == 0


def test_the_traces_of_these_tests_do_save_searches():
  # Or the test above would compare searches alone.
  saved = [run(World(seed), retomaton.Settings())[1].saved for seed in range(5)]
  assert 0.2 < np.mean(saved) < 0.9


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(SEEDS, SETTINGS, strategies.permutations(range(5)))
def test_the_order_of_rows_does_not_matter(seed, settings, order):
  world = World(seed, states=8)
  hypothesis.assume(any(map(len, world.texts)))
  logs, walk = run(world, settings)
  again, _ = run(world, settings)
  assert again == logs
  moved, other = run(world, settings, order)
  assert moved == [logs[i] for i in order]
  assert other.saved == walk.saved


def test_searching_always_and_no_pointers_is_knn_lm():
  world = World(3, states=8)
  settings = retomaton.Settings(min_knns=math.inf, max_knns=0)
  logs, walk = run(world, settings)
  assert walk.saved == 0
  for log, queries, text in zip(logs, world.queries, world.texts, strict=True):
    distances, ids = world.search(queries)
    options = {'metric': 'l2', 'temperature': 2.0}
    expected = knn_lm.log_probability(
      distances, knn_lm.look_up(world.values, ids), text, **options
    )
    for step, (_, found) in enumerate(log):
      (d,), (i,) = distances[step : step + 1], ids[step : step + 1]
      assert found == list(zip(d.tolist(), i.tolist(), strict=True))
      d, i = np.array(found).T[:, None]
      log_p = knn_lm.log_probability(
        d, knn_lm.look_up(world.values, i.astype(int)), text[[step]], **options
      )
      assert log_p[0] == expected[step]


def line(values, starts=(0,), **settings):
  """A store of one dimension, in which a key is the entry's number."""
  keys = np.arange(len(values), dtype=np.float32)[:, None]
  walk = retomaton.Walk(
    automaton_lib.build(np.array(values, np.uint16), starts),
    retomaton.Settings(**settings),
    retomaton.exact('l2', keys.__getitem__),
    rows=1,
    neighbors=1,
  )

  def step(near, token=None):
    """Ids and whether there was a search, for a query at `near`."""
    need = walk.ask()
    answer = ([[0.0]], [[near]]) if need.any() else ()
    _, ids = walk.candidates(np.float32([[near]]), *map(np.array, answer))
    if token is not None:
      walk.advance(np.array([token]))
    return bool(need[0]), ids[ids >= 0].tolist()

  return walk, step


def test_saved_searches_of_a_trace_by_hand():
  walk, step = line([5, 6, 7, 8, 5, 9])
  assert math.isnan(walk.saved)
  assert step(0, 5) == (True, [0])
  assert step(1, 6) == (False, [1])
  assert step(2, 9) == (False, [2])  # Entry 2 had a 7.
  assert walk.saved == pytest.approx(2 / 3)
  assert step(4, 5) == (True, [4])
  assert step(5) == (False, [5])  # The text ends: no token follows.
  # The run that nothing ended counts too.
  assert walk.saved == pytest.approx(3 / 5)
  assert (walk.steps_B.tolist(), walk.searches_B.tolist()) == ([5], [2])
  walk.reset(np.array([0]))
  assert (walk.steps_B.tolist(), walk.searches_B.tolist()) == ([0], [0])
  assert step(1) == (True, [1])
  assert walk.saved == pytest.approx(3 / 6)


def test_no_pointer_crosses_a_sequence():
  _, step = line([5, 6, 7, 8], starts=[0, 2])
  assert step(0, 5) == (True, [0])
  assert step(1, 6) == (False, [1])
  assert step(2, 7) == (True, [2])  # Not by a pointer of entry 1.
  assert step(3, 8) == (False, [3])
  assert step(3, 8) == (True, [3])  # Nothing is after the last.
  _, step = line([5, 6, 7, 8])
  step(1, 6)
  assert step(2) == (False, [2])
  # Where each sequence has one entry there are no pointers.
  world = World(0)
  world.automaton = automaton_lib.build(
    world.values, np.arange(len(world.values))
  )
  assert run(world, retomaton.Settings())[1].saved == 0


def test_dedupe():
  for dedupe, ids in ((True, [1]), (False, [1, 1])):
    _, step = line([5, 6], min_knns=9, dedupe=dedupe)
    step(0, 5)
    assert step(1) == (True, ids)


@pytest.mark.parametrize('late', [False, True])
@pytest.mark.parametrize('states', [0, 8])
def test_beams_take_their_pointers_with_them(states, late):
  world = World(1, states=states, entries=200)
  settings = retomaton.Settings(min_knns=2, max_knns=10)
  rng = np.random.default_rng(0)
  walk = world.walk(settings, 4)
  plain = [Plain(world, settings) for _ in range(4)]
  for _ in range(40):
    queries = rng.integers(-2, 3, (4, D)).astype(np.float32)
    need = walk.ask().copy()
    answer = world.search(queries[need]) if need.any() else ()
    found = pairs(*walk.candidates(queries, *answer))
    expected = [p.candidates(q) for p, q in zip(plain, queries, strict=True)]
    assert found == [one for _, one in expected]
    assert need.tolist() == [one for one, _ in expected]
    beams, tokens = rng.integers(0, 4, 4), rng.integers(0, V, 4)
    if late:
      walk.advance(tokens)
      walk.regather(beams)
      for one, token in zip(plain, tokens, strict=True):
        one.advance(token)
    else:
      walk.regather(beams)
      walk.advance(tokens)
    plain = [copy.copy(plain[beam]) for beam in beams]
    if not late:
      for one, token in zip(plain, tokens, strict=True):
        one.advance(token)
  assert walk.steps_B.tolist() == [40] * 4
  assert 0.1 < walk.saved < 0.9


def test_a_row_that_is_reset_does_not_advance():
  world = World(2)
  queries = np.zeros((2, D), np.float32)
  walk = world.walk(retomaton.Settings(), 2)
  answer = world.search(queries[walk.ask()])
  _, ids = walk.candidates(queries, *answer)
  token = world.values[[i for i in ids[0] if world.automaton.has_next_N[i]][:1]]
  walk.reset(np.array([True, False]))
  walk.advance(np.repeat(token, 2))
  assert walk.ask().tolist() == [True, False]


def test_distances_to_keys():
  rng = np.random.default_rng(0)
  keys = rng.normal(size=(20, 5)).astype(np.float32)
  queries = rng.normal(size=(3, 5)).astype(np.float32)
  ids = np.array([[3, -1, 4], [-1, -1, -1], [19, 0, 0]])
  unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
  normal = queries / np.linalg.norm(queries, axis=1, keepdims=True)
  for metric, stored, expected in (
    ('l2', keys, np.linalg.norm(keys[ids] - queries[:, None], axis=2)),
    ('ip', keys, -np.einsum('bmd,bd->bm', keys[ids], queries)),
    ('cosine', unit, 1 - np.einsum('bmd,bd->bm', unit[ids], normal)),
  ):
    found = retomaton.exact(metric, stored.__getitem__)(queries, ids)
    expected[ids < 0] = np.inf
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_steps_out_of_order():
  world = World(0)
  queries = np.zeros((2, D), np.float32)
  answer = world.search(queries)
  walk = world.walk(retomaton.Settings(), 2)
  with pytest.raises(ValueError, match='nobody has asked for'):
    walk.candidates(queries, *answer)
  with pytest.raises(ValueError, match='before its candidates are known'):
    walk.advance(np.zeros(2, int))
  walk.ask()
  for change in (walk.reset, walk.regather):
    with pytest.raises(ValueError, match='between ask and candidates'):
      change(np.array([0, 1]))
  for wrong in ((), world.search(queries[:1]), world.search(queries, 3)):
    with pytest.raises(ValueError, match='to 2 queries for 4 neighbours'):
      walk.candidates(queries, *wrong)
  walk.candidates(queries, *answer)
  with pytest.raises(ValueError, match='nobody has asked for'):
    walk.candidates(queries, *answer)
  with pytest.raises(ValueError, match='a step has not ended'):
    walk.ask()
  with pytest.raises(ValueError, match=r'tokens of shape \[3\] for 2 rows'):
    walk.advance(np.zeros(3, int))
  with pytest.raises(ValueError, match=r'rows of shape \[1\] for 2 rows'):
    walk.regather(np.zeros(1, int))
  assert walk.steps_B.tolist() == [1, 1]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'min_knns': 0}, 'retomaton.min_knns=0'),
    ({'min_knns': math.nan}, 'retomaton.min_knns=nan'),
    ({'max_knns': -1}, 'retomaton.max_knns=-1'),
    ({'clusters': -1}, 'retomaton.clusters=-1'),
  ],
)
def test_wrong_settings(fields, message):
  with pytest.raises(ValueError, match=message):
    retomaton.Settings(**fields)


def test_settings_are_the_section_retomaton():
  section = {'min_knns': 4, 'max_knns': 8, 'dedupe': False, 'clusters': 2}
  found = retomaton.Settings.create(section | {'other': 1})
  assert found == retomaton.Settings(4, 8, False, 2)
