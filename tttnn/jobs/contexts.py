"""Contexts, their neighbours, and the model that has adapted to these.

What `tttnn.harness` asks, without the harness.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import functools
import gc
import math

import tqdm

from tttnn import language_model
from tttnn import prefetch
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.jobs import neighbors
from tttnn.jobs import selection
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule
from tttnn.methods import ttt
from tttnn.models import model as model_lib
from tttnn.scoring import rolling

_BATCH = 64  # Contexts of one search.

Front = list[list[int]]  # Tokens of neighbours that stand before a context.
Windows = Callable[[documents_lib.Case, Front], list[rolling.Window]]


class Contexts:
  """Texts that are queries, each adapted to afresh.

  Random numbers are made of a context's text, so that what comes of it does not
  depend on its company.
  """

  def __init__(self, config, model: language_model.LanguageModel):
    """Takes no memory yet.

    Args:
      config: its method is base, ttt or in_context.
      model: the language model.
    """
    self._config, self._model = config, model
    self._pool = None

  def scored(
    self, texts: Sequence[str], windows: Windows
  ) -> Iterator[tuple[str, ttt.Outcome]]:
    """Yields each context with what came of its windows, as they finish.

    Args:
      texts: the contexts, all different.
      windows: (a context's case, what stands in front) -> what is scored after
        adapting to all its neighbours.

    Raises:
      ValueError: as of the search; if a model has diverged.
    """

    def works():
      for case, found in self._retrieved(texts):
        trained = self._trained(found)
        yield schedule.Work(
          key=case.query,
          scored={len(trained): windows(case, self._front(found))},
          neighbors=trained,
          number=neighbors.number(case.document),
        )

    pool = self._pool_of(self._at_once)
    # Neighbours are looked up while other contexts are adapted to.
    for work, outcome in pool.run(prefetch.prefetch(works(), pool.slots + 1)):
      require_finite(math.isfinite(outcome.log_likelihood[0]), work.key)
      yield work.key, outcome

  def adapted(
    self, texts: Sequence[str]
  ) -> Iterator[tuple[documents_lib.Case, model_lib.Params, Front]]:
    """Yields each context, in order, with the parameters that go on with it.

    And with what stands in front of it. Raises as `scored`.
    """
    for case, found in self._retrieved(texts):
      params = self._model.params
      if trained := self._trained(found):
        pool = self._pool_of(1)
        number = neighbors.number(case.document)
        for _ in pool.run([schedule.Work('', {}, trained, number)]):
          pass
        params = pool.adapted()
      yield case, params, self._front(found)

  @functools.cached_property
  def _at_once(self) -> int:
    # Found once: 'auto' tries what fits, beside whatever pool is there.
    wanted = self._config.ttt.batch_documents
    return self._model.documents_at_once(wanted)

  def _retrieved(
    self, texts: Sequence[str]
  ) -> Iterator[tuple[documents_lib.Case, list[str]]]:
    """Each context with the texts of the neighbours that it gets."""
    documents = [documents_lib.Document(text, '', text) for text in texts]
    fewer = 0
    with neighbors.finder(self._config, documents, ()) as find:
      for batch in prefetch.batches(documents, _BATCH):
        cases = [self._model.case(document, 'whole', 0) for document in batch]
        if self._config.method in neighbors.WITHOUT:
          yield from ((case, []) for case in cases)
          continue
        chosen = selection.choose(self._config, find, cases)
        for case, one in zip(cases, chosen, strict=True):
          fewer += bool(one.missing or one.missing_shards)
          yield case, one.texts
    if fewer:
      tqdm.tqdm.write(
        f'tttnn: {fewer} of {len(texts)} contexts lack neighbours'
      )

  def _trained(self, found: list[str]) -> list[list[list[int]]]:
    """The windows of the neighbours that are trained on."""
    return self._model.trained(found) if self._config.method == 'ttt' else []

  def _front(self, found: list[str]) -> Front:
    if self._config.method != 'in_context':
      return []
    return tokenizer_lib.encode(self._model.tokenizer, found)

  def _pool_of(self, documents: int) -> pool_lib.Pool:
    """Where so many adapt at once; no other is there at the same time."""
    if self._pool is None or self._pool.slots != documents:
      self._pool = None
      gc.collect()  # It and its programs hold each other.
      self._pool = self._model.pool(documents)
    return self._pool


def require_finite(is_finite: bool, context: str) -> None:
  """Raises ValueError: what is not a number would count as some answer."""
  if not is_finite:
    raise ValueError(
      f'the model of the context {context[:80]!r} has diverged: what it says '
      'is not finite. Try a smaller ttt.learning_rate'
    )
