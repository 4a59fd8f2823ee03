"""What an encoder-decoder writes for its inputs: greedily or by beam search.

The model's step is compiled; the search goes on in Python, and asks at each
step a function that may change the model's distribution by what it looks up.
Choices, scores and the end of the search are those of `transformers`'
`generate` without sampling.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np

_NEVER = np.float32(-1e9)  # The score of what is not there, as in `generate`.


@dataclasses.dataclass(frozen=True)
class Search:
  """How texts are searched for.

  Attributes:
    max_tokens: of a text, the end-of-text included.
    beams: texts that compete for each input; 1 = greedy.
    length_penalty: a text's score is its log-likelihood / tokens ** this.
    early_stopping: when no more texts of an input are looked for, once as many
      as `beams` have ended. True: at once. False: when the likeliest that goes
      on, were it to end now, scores below all of them. 'never': the same, were
      it to end at its best length.
  """

  max_tokens: int
  beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | str = False

  def __post_init__(self):
    if self.max_tokens < 1 or self.beams < 1:
      raise ValueError(
        f'max_tokens={self.max_tokens} and beams={self.beams} must be 1 or more'
      )
    if self.early_stopping not in (True, False, 'never'):
      raise ValueError(
        f"early_stopping={self.early_stopping!r} is not True, False or 'never'"
      )


class Beams(NamedTuple):
  """What the rows of a step go on from. Row b * beams + i belongs to input b.

  Attributes:
    step: tokens written so far.
    rows_R: the row of the step before that each row goes on from; its own at
      step 0. State that was kept by row is state[rows_R] now.
    tokens_R: the token that each row was last given, the decoder's start token
      at step 0.
    finished_R: rows of inputs that are done: nothing is read off them any more.
  """

  step: int
  rows_R: np.ndarray
  tokens_R: np.ndarray
  finished_R: np.ndarray


Adjust = Callable[[jax.Array, jax.Array, Beams], jax.Array]


class Text(NamedTuple):
  """What was written.

  Attributes:
    tokens: without the end-of-text.
    ended: whether there was one within max_tokens.
    score: the log-likelihood in nats, the end-of-text's included; of a beam
      search divided by tokens ** length_penalty, the end-of-text counted.
  """

  tokens: list[int]
  ended: bool
  score: float


def compile_decoder(
  encode: Callable,
  init_cache: Callable,
  decode: Callable,
  search: Search,
  *,
  start: int,
  end: int,
) -> Callable[..., list[Text | None]]:
  """Compiles, at first use, a writer of texts.

  Args:
    encode: (params, inputs_BxT, mask_BxT) -> hidden_BxTxD.
    init_cache: (params, hidden_BxTxD, mask_BxT, length, beams) -> cache.
    decode: (params, tokens_Rx1, cache, rows_R) -> (logits_RxV, keys_RxD, cache)
      of the tokens behind those that row rows_R of the cache holds.
    search: how texts are searched for.
    start: the token that the decoder begins with.
    end: the end-of-text id.

  Returns:
    (params, inputs_BxT, mask_BxT, adjust=None) -> the best text of each input;
    None where log-probabilities are not a number. `adjust` gives the
    log-probabilities [R, V] of the next token from the model's logits [R, V],
    the keys [R, D] of the last one and the `Beams`; None: log_softmax. What an
    input gives does not depend, up to rounding, on its company.
  """

  @jax.jit
  def begin(params, inputs_BxT, mask_BxT):
    hidden_BxTxD = encode(params, inputs_BxT, mask_BxT)
    return init_cache(
      params, hidden_BxTxD, mask_BxT, search.max_tokens, search.beams
    )

  @functools.partial(jax.jit, donate_argnums=2)
  def advance(params, tokens_R, cache, rows_R):
    return decode(params, tokens_R[:, None], cache, rows_R)

  def write(params, inputs_BxT, mask_BxT, adjust: Adjust | None = None):
    count = len(inputs_BxT)
    state_class = _Greedy if search.beams == 1 else _Beam
    state = state_class(search, count, end)
    cache = begin(params, inputs_BxT, mask_BxT)
    rows_R = np.arange(count * search.beams)
    tokens_R = np.full(len(rows_R), start)
    for step in range(search.max_tokens):
      finished_R = np.repeat(state.finished_B, search.beams)
      beams = Beams(step, rows_R, tokens_R, finished_R)
      logits_RxV, keys_RxD, cache = advance(params, tokens_R, cache, rows_R)
      if adjust is None:
        log_p_RxV = log_softmax(logits_RxV)
      else:
        log_p_RxV = adjust(logits_RxV, keys_RxD, beams)
      candidates = _best(log_p_RxV, state.scores_BxI, state.candidates)
      rows_R, tokens_R = state.take(step, *jax.device_get(candidates))
      if state.finished_B.all():
        break
    return state.texts()

  return write


log_softmax = jax.jit(jax.nn.log_softmax)


@functools.partial(jax.jit, static_argnums=2)
def _best(log_p_RxV, scores_BxI, count):
  """Scores, beams and tokens of the `count` best continuations, [B, count]."""
  entries = log_p_RxV.shape[-1]
  scores_RxV = log_p_RxV + scores_BxI.reshape(-1, 1)
  scores_BxIV = scores_RxV.reshape(len(scores_BxI), -1)
  # NaN is taken for the largest: it is among the best where there is any.
  scores_BxC, index_BxC = jax.lax.top_k(scores_BxIV, count)
  return scores_BxC, index_BxC // entries, index_BxC % entries


class _Greedy:
  """The likeliest token at each step, until one is the end-of-text."""

  candidates = 1

  def __init__(self, search: Search, count: int, end: int):
    self._end = end
    self._tokens = [[] for _ in range(count)]
    self._bad_B = np.zeros(count, bool)
    self.scores_BxI = np.zeros((count, 1), np.float32)
    self.finished_B = np.zeros(count, bool)

  def take(self, step: int, scores_Bx1, beams_Bx1, tokens_Bx1):
    """Goes on by the candidates; (rows, tokens) of the next step."""
    del step, beams_Bx1
    live_B = ~self.finished_B
    self._bad_B |= live_B & np.isnan(scores_Bx1[:, 0])
    self.scores_BxI = np.where(live_B[:, None], scores_Bx1, self.scores_BxI)
    for row in np.flatnonzero(live_B):
      self._tokens[row].append(int(tokens_Bx1[row, 0]))
    self.finished_B = self.finished_B | self._bad_B
    self.finished_B |= live_B & (tokens_Bx1[:, 0] == self._end)
    return np.arange(len(live_B)), tokens_Bx1[:, 0]

  def texts(self) -> list[Text | None]:
    return [
      None if bad else _text(tokens, float(score), self._end)
      for tokens, score, bad in zip(
        self._tokens, self.scores_BxI[:, 0], self._bad_B, strict=True
      )
    ]


class _Beam:
  """Beams that go on, and the best texts that have ended."""

  def __init__(self, search: Search, count: int, end: int):
    self._search = search
    self._end = end
    beams = search.beams
    # As many may end at a step as there are beams; as many shall go on.
    self.candidates = 2 * beams
    self._going = [[()] * beams for _ in range(count)]
    self._ended = [[()] * beams for _ in range(count)]
    self._ended_scores_BxI = np.full((count, beams), _NEVER)
    self._bad_B = np.zeros(count, bool)
    # All beams begin alike: only the first one counts.
    self.scores_BxI = np.full((count, beams), _NEVER)
    self.scores_BxI[:, 0] = 0
    self.finished_B = np.zeros(count, bool)

  def take(self, step: int, scores_BxC, beams_BxC, tokens_BxC):
    """Goes on by the candidates; (rows, tokens) of the next step."""
    beams = self._search.beams
    count = len(scores_BxC)
    self._bad_B |= ~self.finished_B & np.isnan(scores_BxC).any(axis=1)
    last = step + 1 == self._search.max_tokens
    over_BxC = (tokens_BxC == self._end) | last
    # The order of going on: the best first, those that have ended last.
    order_BxI = np.argsort(over_BxC, axis=1, kind='stable')[:, :beams]
    rows_BxI = np.take_along_axis(beams_BxC, order_BxI, axis=1)
    rows_BxI = rows_BxI + beams * np.arange(count)[:, None]
    for row in np.flatnonzero(~self.finished_B):
      texts = [
        (*self._going[row][beam], int(token))
        for beam, token in zip(beams_BxC[row], tokens_BxC[row], strict=True)
      ]
      self._keep(row, step + 1, texts, scores_BxC[row], over_BxC[row])
      self._going[row] = [texts[candidate] for candidate in order_BxI[row]]
    self.scores_BxI = np.take_along_axis(scores_BxC, order_BxI, axis=1)
    self.finished_B = self.finished_B | self._bad_B | self._is_settled(step + 1)
    tokens_BxI = np.take_along_axis(tokens_BxC, order_BxI, axis=1)
    return rows_BxI.reshape(-1), tokens_BxI.reshape(-1)

  def _keep(self, row, length, texts, scores_C, over_C):
    """Puts candidates that are over among the best texts of an input."""
    beams = self._search.beams
    # What is not among the best `beams` may go on, not end.
    over = [i for i in range(beams) if over_C[i]]
    scores = scores_C[over] / np.float32(length**self._search.length_penalty)
    merged = np.concatenate([self._ended_scores_BxI[row], scores])
    texts = self._ended[row] + [texts[i] for i in over]
    best = np.argsort(-merged, kind='stable')[:beams]
    self._ended_scores_BxI[row] = merged[best]
    self._ended[row] = [texts[i] for i in best]

  def _is_settled(self, length: int) -> np.ndarray:
    """Whether no better text of an input is looked for, [B]."""
    search = self._search
    worst_B = self._ended_scores_BxI[:, -1]
    full_B = worst_B > _NEVER
    if search.early_stopping is True:
      return full_B
    if search.early_stopping == 'never' and search.length_penalty > 0:
      length = search.max_tokens
    hope_B = self.scores_BxI[:, 0] / np.float32(length**search.length_penalty)
    return full_B & (hope_B <= worst_B)

  def texts(self) -> list[Text | None]:
    return [
      None if bad else _text(list(ended[0]), float(scores[0]), self._end)
      for ended, scores, bad in zip(
        self._ended, self._ended_scores_BxI, self._bad_B, strict=True
      )
    ]


def _text(tokens: Sequence[int], score: float, end: int) -> Text:
  ended = bool(tokens) and tokens[-1] == end
  return Text(list(tokens[: len(tokens) - ended]), ended, score)
