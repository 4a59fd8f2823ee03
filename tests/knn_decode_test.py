"""Neighbours while writing, against a search in float64 that knows all keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import retomaton_test
from tests import tiny
from tttnn.methods import automaton as automaton_lib
from tttnn.methods import decode
from tttnn.methods import knn_decode
from tttnn.methods import knn_lm
from tttnn.methods import retomaton

pytestmark = pytest.mark.usefixtures('compile_fast')

V, D, K, START, END = 12, 4, 6, 0, 1
INPUTS, MAX_TOKENS, ENTRIES = 6, 8, 150


class World:
  """A recurrent toy of a decoder, and a store of keys as it makes them."""

  def __init__(self, metric='l2', seed=0, states=0):
    rng = np.random.default_rng(seed)
    self.metric = metric
    self.params = {
      'inputs': rng.normal(size=(INPUTS, D)).astype(np.float32),
      'tokens': rng.normal(size=(V, D)).astype(np.float32),
      'back': rng.normal(size=(D, D)).astype(np.float32) / 2,
      'head': rng.normal(size=(D, V)).astype(np.float32),
    }
    self.keys = rng.uniform(-1, 1, (ENTRIES, D)).astype(np.float32)
    self.values = rng.integers(0, V, ENTRIES).astype(np.uint16)
    self.values[::7] = END
    self.starts = np.sort([0, *rng.integers(0, ENTRIES + 1, 8)])
    self.cluster = rng.integers(0, states, ENTRIES) if states else None
    self.asked = []  # How many queries each search had.

  def distances(self, key):
    """To all entries, in float64, as a search gives them."""
    keys, key = self.keys.astype(np.float64), np.float64(key)
    if self.metric == 'l2':
      return np.sqrt(((keys - key) ** 2).sum(axis=1))
    if self.metric == 'ip':
      return -(keys @ key)
    norms = np.linalg.norm(keys, axis=1) * np.linalg.norm(key)
    return 1 - (keys @ key) / norms

  def distance(self, key, ids):
    return self.distances(key)[ids]

  def search(self, keys_QxD, k=K):
    self.asked.append(len(keys_QxD))
    away_QxN = np.array([self.distances(key) for key in keys_QxD])
    ids_Qxk = np.argsort(away_QxN, axis=1, kind='stable')[:, :k]
    away_Qxk = np.take_along_axis(away_QxN, ids_Qxk, axis=1)
    return away_Qxk.astype(np.float32), ids_Qxk

  def look_up(self, ids):
    return knn_lm.look_up(self.values, ids)

  def knn(self, settings, search=None):
    return knn_decode.Knn(
      search or self.search, self.look_up, settings, metric=self.metric
    )

  def retomaton(self, settings, pointers):
    automaton = automaton_lib.build(self.values, self.starts, self.cluster)
    distances = retomaton.exact(self.metric, self.keys.__getitem__)
    return knn_decode.Retomaton(
      lambda rows: retomaton.Walk(
        automaton, pointers, distances, rows=rows, neighbors=K
      ),
      self.search,
      self.look_up,
      settings,
      metric=self.metric,
    )

  def write(self, search, adjust=None):
    """By the code that is tested."""

    def encode(params, inputs_BxT, mask_BxT):
      return params['inputs'][inputs_BxT[:, 0]]

    def init_cache(params, hidden_BxD, mask_BxT, length, beams):
      return jnp.repeat(hidden_BxD, beams, axis=0)

    def step(params, tokens_Rx1, state_RxD, rows_R):
      state_RxD = jnp.tanh(
        state_RxD[rows_R] @ params['back'] + params['tokens'][tokens_Rx1[:, 0]]
      )
      return state_RxD @ params['head'], state_RxD, state_RxD

    write = decode.compile_decoder(
      encode, init_cache, step, search, start=START, end=END
    )
    return write(self.params, np.arange(INPUTS)[:, None], None, adjust)

  def model(self, number, text):
    """(log p_LM, key) of what follows a text, from its beginning."""
    state = self.params['inputs'][number].astype(np.float64)
    for token in (START, *text):
      state = np.tanh(
        state @ self.params['back'] + self.params['tokens'][token]
      )
    return log_softmax(state @ self.params['head']), state

  def p_knn(self, distances, ids, temperature):
    """Of each token, from the weights of single neighbours."""
    away = distances**2 if self.metric == 'l2' else distances
    weights = np.exp(-(away - away.min()) / temperature)
    p = np.zeros(V)
    for entry, weight in zip(ids, weights / weights.sum(), strict=True):
      p[self.values[entry]] += weight
    return p

  def log_p(self, settings, walked=None):
    """(input, text) -> log of the mixture, in float64.

    `walked`: (input, text) -> (distances, ids); None: those of a search.
    """

    def mixed(number, text):
      log_p, key = self.model(number, text)
      if walked:
        away, ids = walked(number, text)
      else:
        away = self.distances(key)
        ids = np.argsort(away, kind='stable')[: settings.neighbors]
        away = away[ids]
      p = self.p_knn(away, ids, settings.temperature)
      lambda_ = settings.lambda_
      with np.errstate(divide='ignore'):
        return np.log((1 - lambda_) * np.exp(log_p) + lambda_ * p)

    return mixed

  def walk(self, number, text, pointers):
    """(whether the last step searched, what it found) by sets and lists."""
    plain = retomaton_test.Plain(self, pointers)
    for length in range(len(text) + 1):
      _, key = self.model(number, text[:length])
      need, found = plain.candidates(key)
      if length < len(text):
        plain.advance(text[length])
    return need, found


def log_softmax(logits):
  logits = logits - logits.max()
  return logits - np.log(np.exp(logits).sum())


def search_plainly(log_p, number, search):
  """(text, its score) of one input, by lists of texts."""
  going, ended = [(0.0, ())], []
  for length in range(1, search.max_tokens + 1):
    candidates = []
    for score, text in going:
      of_next = log_p(number, text)
      candidates += [(score + of_next[v], (*text, v)) for v in range(V)]
    candidates.sort(key=lambda pair: -pair[0])
    if search.beams == 1:
      going = candidates[:1]
      if going[0][1][-1] == END or length == search.max_tokens:
        return going[0][1], going[0][0]
      continue
    going = []
    for place, (score, text) in enumerate(candidates[: 2 * search.beams]):
      if text[-1] == END or length == search.max_tokens:
        if place < search.beams:
          ended.append((score / length**search.length_penalty, text))
      elif len(going) < search.beams:
        going.append((score, text))
    ended = sorted(ended, key=lambda pair: -pair[0])[: search.beams]
    if len(ended) == search.beams and (
      search.early_stopping
      or not going
      or going[0][0] / length**search.length_penalty <= ended[-1][0]
    ):
      break
  return ended[0][1], ended[0][0]


def assert_texts(texts, expected, end=END):
  assert [(*t.tokens, *[end] * t.ended) for t in texts] == [
    text for text, _ in expected
  ]
  np.testing.assert_allclose(
    [text.score for text in texts],
    [score for _, score in expected],
    rtol=1e-5,
    atol=1e-5,
  )


SEARCHES = [
  decode.Search(MAX_TOKENS),
  decode.Search(MAX_TOKENS, 3),
  decode.Search(MAX_TOKENS, 5, 0.4, True),
]


@pytest.mark.parametrize('search', SEARCHES)
@pytest.mark.parametrize(
  'metric, lambda_, temperature',
  [('l2', 0.4, 0.5), ('l2', 0.9, 3.0), ('ip', 0.5, 1.0), ('cosine', 0.6, 0.2)],
)
def test_texts_equal_a_plain_search(search, metric, lambda_, temperature):
  world = World(metric)
  settings = knn_lm.Settings(K, lambda_, temperature)
  texts = world.write(search, world.knn(settings))
  expected = [
    search_plainly(world.log_p(settings), number, search)
    for number in range(INPUTS)
  ]
  assert_texts(texts, expected)
  ended = [text.ended for text in texts]
  assert any(ended)
  assert [t.tokens for t in texts] != [t.tokens for t in world.write(search)]


@pytest.mark.parametrize('search', SEARCHES)
def test_without_weight_texts_are_exactly_the_models(search):
  world = World()
  hook = world.knn(knn_lm.Settings(K, 0.0, 0.5))
  assert world.write(search, hook) == world.write(search)


def test_with_all_weight_only_neighbours_count():
  world, search = World(), decode.Search(MAX_TOKENS)
  settings = knn_lm.Settings(K, 1.0, 0.5)
  texts = world.write(search, world.knn(settings))
  expected = [
    search_plainly(world.log_p(settings), number, search)
    for number in range(INPUTS)
  ]
  assert_texts(texts, expected)


@pytest.mark.parametrize('search', SEARCHES[::2])
def test_what_is_finished_is_not_searched_for(search):
  world = World()
  hook, live = world.knn(knn_lm.Settings(K, 0.5, 0.5)), []

  def adjust(logits_RxV, keys_RxD, beams):
    live.append(int((~beams.finished_R).sum()))
    return hook(logits_RxV, keys_RxD, beams)

  world.write(search, adjust)
  assert world.asked == live and live[-1] < live[0]


def call(hook, logits_RxV, keys_RxD, finished_R):
  rows = np.arange(len(keys_RxD))
  beams = decode.Beams(0, rows, np.full(len(rows), START), finished_R)
  return np.asarray(hook(jnp.asarray(logits_RxV), keys_RxD, beams))


def logits_and_keys(rows):
  rng = np.random.default_rng(1)
  return (
    rng.normal(size=(rows, V)).astype(np.float32),
    rng.uniform(-1, 1, (rows, D)).astype(np.float32),
  )


def test_rows_without_neighbours_are_the_models():
  """Of four rows one has none at all, one only the nearest, one is finished."""
  world, settings = World(), knn_lm.Settings(K, 0.5, 0.5)
  logits_RxV, keys_RxD = logits_and_keys(4)

  def search(keys_QxD):
    distances_Qxk, ids_Qxk = world.search(keys_QxD)
    holes_Qxk = np.zeros(ids_Qxk.shape, bool)
    holes_Qxk[0], holes_Qxk[1, 1:] = True, True
    ids_Qxk = np.where(holes_Qxk, -1, ids_Qxk)
    # As faiss has it where there is nothing.
    return np.where(holes_Qxk, np.float32(3.4e38), distances_Qxk), ids_Qxk

  hook = world.knn(settings, search)
  finished_R = np.array([False, False, False, True])
  found_RxV = call(hook, logits_RxV, keys_RxD, finished_R)
  log_p_RxV = np.asarray(jax.jit(jax.nn.log_softmax)(logits_RxV))
  np.testing.assert_array_equal(found_RxV[[0, 3]], log_p_RxV[[0, 3]])
  distances = [world.distances(key) for key in keys_RxD]
  nearest = [np.argsort(away)[:K] for away in distances]
  p = world.p_knn(distances[1][nearest[1][:1]], nearest[1][:1], 0.5)
  assert p.max() == 1
  expected_V = np.log((np.exp(log_p_RxV[1]) + p) / 2)
  np.testing.assert_allclose(found_RxV[1], expected_V, rtol=1e-6)
  p = world.p_knn(distances[2][nearest[2]], nearest[2], 0.5)
  expected_V = np.log((np.exp(log_p_RxV[2]) + p) / 2)
  np.testing.assert_allclose(found_RxV[2], expected_V, rtol=1e-5)
  assert world.asked == [3]


def test_a_key_that_is_not_finite_has_no_distribution():
  world = World()
  hook = world.knn(knn_lm.Settings(K, 0.0, 0.5))
  logits_RxV, keys_RxD = logits_and_keys(3)
  keys_RxD[[0, 2], 1] = np.nan
  found_RxV = call(hook, logits_RxV, keys_RxD, np.array([False, False, True]))
  assert np.isnan(found_RxV).all(axis=1).tolist() == [True, False, False]
  assert world.asked == [1]


def test_answers_of_another_shape_are_refused():
  world = World()
  hook = world.knn(knn_lm.Settings(K), lambda keys: world.search(keys, K - 1))
  with pytest.raises(ValueError, match=rf'\[2, {K - 1}\] to 2 queries for {K}'):
    call(hook, *logits_and_keys(2), np.zeros(2, bool))
  with pytest.raises(ValueError, match="metric='l1'"):
    World('l1').knn(knn_lm.Settings(K))


@pytest.mark.parametrize('search', SEARCHES)
@pytest.mark.parametrize(
  'min_knns, max_knns, dedupe, states',
  [(1, 20, True, 0), (2, 20, False, 0), (1, 8, True, 30), (3, 20, True, 12)],
)
def test_retomaton_equals_a_plain_automaton(
  search, min_knns, max_knns, dedupe, states
):
  """Each text's state is that of walking through it from its beginning."""
  world = World(states=states)
  settings = knn_lm.Settings(K, 0.5, 0.5)
  pointers = retomaton.Settings(min_knns, max_knns, dedupe, states)
  hook = world.retomaton(settings, pointers)
  need = []
  texts_R = []

  def adjust(logits_RxV, keys_RxD, beams):
    if beams.step:
      texts_R[:] = [
        (*texts_R[row], int(token))
        for row, token in zip(beams.rows_R, beams.tokens_R, strict=True)
      ]
    else:
      texts_R[:] = [()] * len(beams.rows_R)
    for row in np.flatnonzero(~beams.finished_R):
      need.append(walk(row // search.beams, texts_R[row])[0])
    return hook(logits_RxV, keys_RxD, beams)

  @functools.cache
  def walk(number, text):
    return world.walk(number, text, pointers)

  def found(number, text):
    pairs = walk(number, text)[1]
    distances, ids = zip(*pairs, strict=True)
    return np.array(distances), np.array(ids)

  texts = world.write(search, adjust)
  log_p = world.log_p(settings, found)
  expected = [search_plainly(log_p, number, search) for number in range(INPUTS)]
  assert_texts(texts, expected)
  assert hook.saved == pytest.approx(1 - np.mean(need))
  assert 0.1 < hook.saved < 0.9
  # Later texts begin afresh, and may be fewer.
  assert world.write(search, hook) == texts


@pytest.mark.parametrize('search', SEARCHES)
def test_retomaton_that_always_searches_and_keeps_nothing_is_knn(search):
  world = World()
  settings = knn_lm.Settings(K, 0.5, 0.5)
  hook = world.retomaton(settings, retomaton.Settings(np.inf, 0))
  assert world.write(search, hook) == world.write(search, world.knn(settings))
  assert hook.saved == 0


def test_retomaton_leaves_rows_without_a_key_alone():
  world = World()
  settings = knn_lm.Settings(K, 0.5, 0.5)
  logits_RxV, keys_RxD = logits_and_keys(3)
  keys_RxD[[0, 2], 1] = np.nan
  finished_R = np.array([False, False, True])
  hook = world.retomaton(settings, retomaton.Settings(1, 20))
  assert np.isnan(hook.saved)
  found_RxV = call(hook, logits_RxV, keys_RxD, finished_R)
  expected_RxV = call(world.knn(settings), logits_RxV, keys_RxD, finished_R)
  np.testing.assert_array_equal(found_RxV, expected_RxV)
  assert np.isnan(found_RxV).all(axis=1).tolist() == [True, False, False]
  assert world.asked == [1, 1] and hook.saved == 0


@torch.no_grad()
def test_a_real_model_writes_as_one_that_reads_all_again():
  """T5, greedily; PyTorch reads input and text for each token of it."""
  model, params, reference = tiny.seq2seq('gated-gelu', False)
  states, end, start = [], 31, model.config.decoder_start_token_id
  module = reference.decoder.block[-1].layer[2].DenseReluDense
  handle = module.register_forward_pre_hook(
    lambda _, inputs: states.append(inputs[0].numpy())
  )
  rng = np.random.default_rng(0)

  def read(inputs_BxT, mask_BxT, texts_BxU):
    """(log p_LM [B, U, V], keys [B, U, D])."""
    states.clear()
    logits = reference(
      torch.tensor(inputs_BxT),
      attention_mask=torch.tensor(mask_BxT).long(),
      decoder_input_ids=torch.tensor(texts_BxU),
    ).logits
    return torch.log_softmax(logits.double(), -1).numpy(), states[0]

  shape, vocabulary = (8, 12), tiny.VOCABULARY
  texts_BxU = rng.integers(4, vocabulary, (8, 25))
  texts_BxU[:, 0] = start
  _, keys_BxUxD = read(
    rng.integers(4, vocabulary, shape), np.ones(shape, bool), texts_BxU
  )
  keys_NxD = keys_BxUxD[:, :-1].reshape(-1, keys_BxUxD.shape[-1])
  values_N = texts_BxU[:, 1:].reshape(-1)
  mask_BxT = np.arange(12) < np.array([12, 3, 7, 1])[:, None]
  inputs_BxT = np.where(mask_BxT, rng.integers(4, vocabulary, (4, 12)), 0)
  settings = knn_lm.Settings(K, 0.5, 20.0)

  def nearest(key):
    away = np.sqrt(((np.float64(keys_NxD) - key) ** 2).sum(axis=1))
    ids = np.argsort(away, kind='stable')[:K]
    return away[ids], ids

  def slowly(row):
    text, score = [], 0.0
    while len(text) < MAX_TOKENS and end not in text:
      log_p, keys = read(
        inputs_BxT[row : row + 1],
        mask_BxT[row : row + 1],
        np.array([[start, *text]]),
      )
      away, ids = nearest(keys[0, -1])
      shares = np.exp((away[0] ** 2 - away**2) / settings.temperature)
      p = np.exp(log_p[0, -1]) / 2
      np.add.at(p, values_N[ids], shares / shares.sum() / 2)
      text.append(int(p.argmax()))
      score += np.log(p.max())
    return tuple(text), score

  def search(keys_QxD):
    found = [nearest(key) for key in keys_QxD]
    distances, ids = map(np.array, zip(*found, strict=True))
    return np.float32(distances), ids

  write = decode.compile_decoder(
    model.encode,
    model.init_cache,
    functools.partial(model.decode, kind='ffn_input'),
    decode.Search(MAX_TOKENS),
    start=start,
    end=end,
  )
  hook = knn_decode.Knn(
    search,
    lambda ids: knn_lm.look_up(values_N, ids),
    settings,
    metric='l2',
  )
  texts = write(params, inputs_BxT, mask_BxT, hook)
  expected = [slowly(row) for row in range(4)]
  handle.remove()
  assert_texts(texts, expected, end)
  assert texts != write(params, inputs_BxT, mask_BxT)
