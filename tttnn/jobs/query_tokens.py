"""What a store of tokens says of how a text goes on, and what becomes of it.

The key of a text is that of the token which would follow it. Shown are the
entries next to it, each with what it has of p_kNN, and below them the likeliest
tokens of the mixture, with what the model and the neighbours give to each. All
as a run of kNN-LM would have it with the same settings.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import shutil
import sys

import jax
import numpy as np

from tttnn import language_model
from tttnn.corpus import buckets
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import embed
from tttnn.datastore import retrieve
from tttnn.datastore import store as store_lib
from tttnn.datastore import tokens as tokens_lib
from tttnn.jobs import knn_search
from tttnn.jobs import neighbors as neighbors_lib
from tttnn.methods import knn_lm
from tttnn.scoring import rolling

_LIKELIEST = 10  # Tokens that are shown.
_WIDTH = 100  # Columns, where it is not a terminal's.


@dataclasses.dataclass(frozen=True)
class Entry:
  """An entry of the store that is near a text.

  Attributes:
    id: of the entry.
    distance: as `knn.distances` has it.
    share: of p_kNN, from 0 to 1; all neighbours together have 1.
    context: the end of what stands before the token in its text.
    token: that came then.
  """

  id: int
  distance: float
  share: float
  context: str
  token: str


@dataclasses.dataclass(frozen=True)
class Next:
  """A token that may follow: its id, and its probabilities."""

  token: str
  id: int
  p_knn: float
  p_lm: float
  p: float


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found for a text.

  Attributes:
    about: the settings, in a line.
    context: the end of the text.
    neighbors: the nearest first.
    next: the likeliest first.
  """

  about: str
  context: str
  neighbors: list[Entry]
  next: list[Next]


class _Reader:
  """What a causal LM makes of a text: (log p of the next token [V], key [D]).

  The window is the one in which a token behind the text would be scored.
  """

  def __init__(self, model: language_model.LanguageModel, kind: str):
    self._model = model
    self._read = jax.jit(
      lambda *arguments: model.model.next_logits_and_keys(*arguments, kind)
    )
    one = jax.ShapeDtypeStruct((1, 1), np.int32)
    length = jax.ShapeDtypeStruct((1,), np.int32)
    keys = jax.eval_shape(self._read, model.params, one, length)[1]
    self.dim = keys.shape[-1]

  def __call__(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    model = self._model
    (window,) = rolling.windows(
      [*tokens, model.start],  # Any token: only what is before it is read.
      model.window or model.context,
      model.start,
      len(tokens),
      stride=model.stride,
    )
    size = buckets.padded(len(window.inputs), model.context)
    tokens_T, _ = rolling.pad(window, size)
    lengths_B = np.array([len(window.inputs)], np.int32)
    logits_1xV, key_1xD = self._read(model.params, tokens_T[None], lengths_B)
    log_p_V = jax.nn.log_softmax(logits_1xV[0])
    return np.asarray(log_p_V), np.asarray(key_1xD[0], np.float32)


class _Finder:
  """Looks texts up in a store of tokens of a causal LM."""

  def __init__(
    self,
    config,
    store: store_lib.Store,
    model: language_model.LanguageModel,
    searcher: retrieve.Searcher,
  ):
    self._settings = knn_search.one_setting(config)
    self._shown = config.retrieval.neighbors
    self._context = config.query.context
    self._store, self._tokenizer = store, model.tokenizer
    self._read = _Reader(model, store.manifest.keys)
    fingerprint = embed.fingerprint(model.model, model.params, model.tokenizer)
    searcher.check(fingerprint, self._read.dim, store.manifest.keys)
    self._neighbors = knn_search.Neighbors(config, store, searcher)

  def __call__(self, texts: Sequence[str]) -> list[Found]:
    encoded = tokenizer_lib.encode(self._tokenizer, texts)
    log_p, keys = zip(*map(self._read, encoded), strict=True)
    distances_Qxk, ids_Qxk = self._neighbors(np.stack(keys))
    values_Qxk = self._store.tokens.values(ids_Qxk)
    settings = self._settings
    shares_Qxk = knn_lm.shares(
      distances_Qxk,
      values_Qxk,
      metric=self._store.manifest.metric,
      temperature=settings.temperature,
    )
    about = (
      f'{settings.neighbors} neighbours, temperature {settings.temperature:g}, '
      f'lambda {settings.lambda_:g}'
    )
    found = []
    for q, tokens in enumerate(encoded):
      entries = [
        self._entry(*of_entry)
        for of_entry in zip(
          ids_Qxk[q, : self._shown].tolist(),
          distances_Qxk[q].tolist(),
          shares_Qxk[q].tolist(),
          strict=False,
        )
      ]
      likeliest = self._next(log_p[q], values_Qxk[q], shares_Qxk[q])
      context = self._text(tokens[-self._context :])
      found.append(Found(about, context, entries, likeliest))
    return found

  def _entry(self, id_: int, distance: float, share: float) -> Entry:
    before = self._store.tokens.context(id_, self._context).tolist()
    token = self._store.tokens.values([id_]).tolist()
    return Entry(id_, distance, share, self._text(before), self._text(token))

  def _next(
    self, log_p_lm_V: np.ndarray, values_k: np.ndarray, shares_k: np.ndarray
  ) -> list[Next]:
    """The likeliest tokens of the mixture."""
    p_knn_V = np.bincount(values_k, shares_k, minlength=len(log_p_lm_V))
    with np.errstate(divide='ignore'):
      log_p_knn_V = np.log(p_knn_V)
    p_V = np.exp(
      knn_lm.interpolate(log_p_lm_V, log_p_knn_V, self._settings.lambda_)
    )
    best = np.argsort(-p_V, kind='stable')[:_LIKELIEST].tolist()
    return [
      Next(
        self._text([id_]),
        id_,
        float(p_knn_V[id_]),
        float(np.exp(log_p_lm_V[id_])),
        float(p_V[id_]),
      )
      for id_ in best
    ]

  def _text(self, ids: Sequence[int]) -> str:
    return tokenizer_lib.decode(self._tokenizer, ids)


@contextlib.contextmanager
def opened(config) -> Iterator[Callable[[Sequence[str]], list[Found]]]:
  """Looks texts up, for the length of a context.

  Raises:
    ValueError: for a wrong setting, model or store.
  """
  shown, most = config.retrieval.neighbors, config.knn.neighbors
  if config.query.context < 1:
    raise ValueError(f'query.context={config.query.context} is not 1 or more')
  if not 1 <= shown <= most:
    raise ValueError(
      f'retrieval.neighbors={shown}, those that are shown, is not from 1 to '
      f'knn.neighbors={most}, those that count'
    )
  path, index = config.store.path, config.store.index
  store = store_lib.open(path, index, kind=tokens_lib.KIND)
  model = language_model.load(config)
  how = neighbors_lib.how_to_search(config, retrieve.SEARCHES)
  with retrieve.searcher(store, **how) as searcher:
    yield _Finder(config, store, model, searcher)


def line(doc_id: int | str, found: Found) -> str:
  """The line of JSONL, as {"doc_id", "neighbors", "next"}."""
  fields = dataclasses.asdict(found)
  kept = {name: fields[name] for name in ('neighbors', 'next')}
  return json.dumps({'doc_id': doc_id} | kept) + '\n'


def show(doc_id: int | str, found: Found) -> None:
  """Prints both tables; contexts end where their token stands."""
  columns = _WIDTH
  if sys.stdout.isatty():
    columns = shutil.get_terminal_size((_WIDTH, 0)).columns
  width = max(20, columns - 56)
  print(f'doc_id {doc_id}: {found.about}')
  print(f'{"rank":>4} {"distance":>9} {"share":>7} {"id":>9}  context | token')
  print(f'{"":32}  {_end(found.context, width)} | ?')
  for rank, entry in enumerate(found.neighbors, 1):
    print(
      f'{rank:>4} {entry.distance:>9.4f} {entry.share:>7.4f} {entry.id:>9}  '
      f'{_end(entry.context, width)} | {_quoted(entry.token)}'
    )
  print(f'{"p_kNN":>14} {"p_LM":>7} {"p":>7}  token')
  for token in found.next:
    print(
      f'{token.p_knn:>14.4f} {token.p_lm:>7.4f} {token.p:>7.4f}  '
      f'{_quoted(token.token)}'
    )
  print()


def _end(text: str, width: int) -> str:
  """The last characters of a text, at the right of their column."""
  text = _visible(text)
  if len(text) > width:
    text = '…' + text[len(text) - width + 1 :]
  return f'{text:>{width}}'


def _quoted(token: str) -> str:
  """A token such that its spaces are seen."""
  return f"'{_visible(token)}'"


def _visible(text: str) -> str:
  """Line breaks and the like as they are written in code."""
  return ''.join(
    c if c.isprintable() else c.encode('unicode_escape').decode() for c in text
  )
