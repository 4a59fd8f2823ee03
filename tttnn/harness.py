"""A model of EleutherAI's lm-evaluation-harness: base, ttt or in_context.

python -m tttnn.harness --model tttnn --tasks TASKS --model_args method=ttt \
  model.path=/tmp/lm/export embedder.path=/tmp/embedder/export \
  store.path=/tmp/store retrieval.neighbors=20 ttt.learning_rate=5e-4

It takes the arguments of `lm_eval`, which itself finds this model once it looks
for plugins; 0.4.13 does not yet. Those of the model are `configs/base.py`'s.

A request's context is the query, and the model adapts to its neighbours. The
requests of one context, as the choices of a question are, share one search and
one adaptation. A text to score whole is its own query, as in `evaluate` under
the protocol `whole`. Random numbers are made of the context, so that a request
has the same answer in any company.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import os

import jax
from lm_eval import __main__ as command
from lm_eval.api import model as lm_eval_model
from lm_eval.api import registry
from lm_eval.models import utils as lm_eval_utils
import tqdm

from configs import evaluate
from tttnn import checkpoint
from tttnn import device
from tttnn import language_model
from tttnn import settings
from tttnn import summary
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.jobs import contexts as contexts_lib
from tttnn.jobs import neighbors
from tttnn.methods import generate
from tttnn.methods import in_context
from tttnn.models import model as model_lib
from tttnn.scoring import rolling

METHODS = ('base', 'ttt', 'in_context')
_MAX_TOKENS = 256  # Of a text, where a task does not say: the harness's own.


@registry.register_model('tttnn')
class Harness(lm_eval_model.TemplateLM):
  """What the harness asks: likelihoods and texts, by an adapted model."""

  def __init__(
    self,
    batch_size: int | str | None = None,
    max_batch_size: int | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    **arguments,
  ):
    """Loads the model.

    Args:
      batch_size: the harness's, as the next ones; not used.
      max_batch_size: likewise.
      device: PyTorch's, 'cuda:0' where the user does not say; not used.
      trust_remote_code: of data sets; not used.
      **arguments: keys of the configuration.

    Raises:
      ValueError: for unknown keys, settings that do not go together, a model
        or a store that is not there.
    """
    del device, trust_remote_code
    super().__init__()
    if str(batch_size or 1) != '1' or max_batch_size:
      raise ValueError(
        f'batch_size={batch_size!r} and max_batch_size={max_batch_size!r} have '
        'no effect: ttt.batch_documents says how many contexts go at once'
      )
    self._config = _config(arguments)
    self._in_context = in_context.Settings(**self._config.in_context)
    self._model = _model(self._config)
    self._contexts = contexts_lib.Contexts(self._config, self._model)
    self._about = _about(self._config)
    self.tokenizer = self._model.tokenizer
    self.max_length = self._model.context
    # The harness forks to bootstrap standard errors, which may hang a process
    # with JAX's threads in it.
    os.environ.setdefault('DISABLE_MULTIPROC', '1')

  @property
  def eot_token_id(self) -> int:
    return self._model.start

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs
  ) -> list[int]:
    """Token ids without special tokens, which GPT-2 and GPT-Neo do not add."""
    del add_special_tokens, kwargs
    return tokenizer_lib.encode(self.tokenizer, [string])[0]

  def get_model_info(self) -> dict:
    """What the harness writes beside its results."""
    return {'tttnn': self._about}

  def loglikelihood_rolling(
    self, requests: Sequence, disable_tqdm: bool = False
  ) -> list[float]:
    """Of whole texts, in nats, as `evaluate` scores them."""
    texts = [request.args[0] for request in requests]
    answers = dict.fromkeys(texts)

    def windows(case, front):
      return in_context.windows(
        case.tokens,
        front,
        self._model.context,
        self._model.start,
        self._in_context,
      )

    with self._bar(len(answers), 'texts', disable_tqdm) as bar:
      for text, outcome in self._contexts.scored(list(answers), windows):
        answers[text] = outcome.log_likelihood[0]
        self.cache_hook.add_partial(
          'loglikelihood_rolling', (text,), answers[text]
        )
        bar.update()
    return [answers[text] for text in texts]

  def _loglikelihood_tokens(
    self,
    requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
    disable_tqdm: bool = False,
  ) -> list[tuple[float, bool]]:
    """Of continuations: nats, and whether they are what is likeliest.

    Args:
      requests: ((context, continuation), tokens of either); those of an empty
        context are the end-of-text token.
      disable_tqdm: whether no progress is shown.

    Raises:
      ValueError: for a continuation that is empty or exceeds the model's
        context.
    """
    for (_, continuation), _, tokens in requests:
      if not 0 < len(tokens) <= self._model.context:
        raise ValueError(
          f'the continuation {continuation[:80]!r} has {len(tokens)} tokens, '
          f'and may have 1 to {self._model.context}'
        )
    places = _grouped([context for (context, _), _, _ in requests])
    answers = [None] * len(requests)

    def windows(case, front):
      return [
        self._window(case.query, *requests[place][1:], front)
        for place in places[case.query]
      ]

    with self._bar(len(requests), 'requests', disable_tqdm) as bar:
      for context, outcome in self._contexts.scored(list(places), windows):
        begin = 0
        for place in places[context]:
          request, _, tokens = requests[place]
          end = begin + len(tokens)
          scores_Tx2 = outcome.token_log_likelihood[0][begin:end]
          answer = math.fsum(scores_Tx2[:, 0]), bool(scores_Tx2[:, 1].all())
          answers[place], begin = answer, end
          self.cache_hook.add_partial('loglikelihood', request, answer)
        bar.update(len(places[context]))
    return answers

  def generate_until(
    self, requests: Sequence, disable_tqdm: bool = False
  ) -> list[str]:
    """How prompts go on, up to the first of the texts that end them.

    The requests' arguments are read as the harness reads them for Hugging Face
    models. Long prompts lose their beginning.

    Raises:
      ValueError: for arguments that are not implemented, or as many tokens to
        write as the model's context has.
    """
    wanted = [self._wanted(request.args[1]) for request in requests]
    places = _grouped([request.args[0] for request in requests])
    answers = [None] * len(requests)
    with self._bar(len(requests), 'texts', disable_tqdm) as bar:
      for case, params, front in self._contexts.adapted(list(places)):
        key = jax.random.key(self._config.seed)
        key = jax.random.fold_in(key, neighbors.number(case.document))
        for repeat, place in enumerate(places[case.query]):
          sampling, ends = wanted[place]
          tokens = self._prompt(case, front, sampling.max_tokens)
          one = jax.random.fold_in(key, repeat)[None]
          (written,) = _writer(self._model.model, sampling, self.eot_token_id)(
            params, [tokens], one
          )
          contexts_lib.require_finite(written is not None, case.query)
          text = tokenizer_lib.decode(self.tokenizer, written)
          for end in ends:
            text = text.split(end, 1)[0]
          answers[place] = text
          self.cache_hook.add_partial(
            'generate_until', requests[place].args, text
          )
          bar.update()
    return answers

  def _bar(self, total: int, unit: str, disable: bool) -> tqdm.tqdm:
    desc = f'tttnn {self._config.method}'
    return tqdm.tqdm(total=total, desc=desc, unit=f' {unit}', disable=disable)

  def _window(
    self,
    query: str,
    context: list[int],
    continuation: list[int],
    front: list[list[int]],
  ) -> rolling.Window:
    """A continuation behind its context; what is too much goes at the left."""
    limit, start = self._model.context, self._model.start
    # An empty context is the end-of-text token, which stands before all.
    tokens = [*context, *continuation] if query else continuation
    before = in_context.prefix(
      front, len(tokens), limit, start, self._in_context
    )
    if not (before or query):
      before = context
    return rolling.Window([*before, *tokens[:-1]][-limit:], continuation)

  def _prompt(
    self, case: documents_lib.Case, front: list[list[int]], max_tokens: int
  ) -> list[int]:
    """Tokens to go on from, with room for what is written."""
    room = self._model.context - max_tokens
    tokens = case.tokens[-room:]
    # All but the last token of what stands in front of a text is read by the
    # model; of a prompt all is.
    before = in_context.prefix(
      front, len(tokens) + 1, room, self._model.start, self._in_context
    )
    return [*before, *tokens] or [self._model.start]

  def _wanted(self, kwargs: Mapping) -> tuple[generate.Sampling, list[str]]:
    """How a text is to be written, and what ends it."""
    given = dict(lm_eval_utils.normalize_gen_kwargs(kwargs, _MAX_TOKENS))
    ends = [end for end in given.pop('until') if end]
    drawn = given.pop('do_sample', False)
    sampling = generate.Sampling(
      given.pop('max_gen_toks'),
      float(given.pop('temperature', 0.0)),
      given.pop('top_k', 0),
      given.pop('top_p', 1.0),
    )
    if given:
      raise ValueError(f'arguments of generation without effect: {given}')
    if drawn and not sampling.temperature:
      raise ValueError('do_sample=True needs a temperature above 0')
    if sampling.max_tokens >= self._model.context:
      raise ValueError(
        f'max_gen_toks={sampling.max_tokens} leaves nothing of a context of '
        f'{self._model.context} tokens to the prompt'
      )
    return sampling, ends


def main() -> None:
  """The command `lm_eval`, with this model among those it knows."""
  command.cli_evaluate()


def _config(arguments: Mapping[str, object]):
  """That of `evaluate`, with the arguments that the harness has read."""
  method = arguments.get('method', 'ttt')
  if method not in METHODS:
    raise ValueError(f'method={method!r} is not one of {", ".join(METHODS)}')
  config = evaluate.get_config(method)
  config.eval.protocol = 'whole'
  for key, value in arguments.items():
    settings.override_parsed(config, key, value)
  if config.eval.protocol != 'whole':
    raise ValueError(
      f'eval.protocol={config.eval.protocol!r}: the harness says what is a '
      'context and what is scored'
    )
  if config.eval.window or config.eval.stride:
    raise ValueError(
      f'eval.window={config.eval.window} and eval.stride={config.eval.stride}: '
      "the harness scores in rolling windows of the model's context"
    )
  if config.retrieval.save or config.retrieval.replay:
    raise ValueError(
      "retrieval.save and .replay know documents by ids, which the harness's "
      'contexts do not have'
    )
  return config


def _about(config) -> dict:
  """What the answers depend on, and what they were made with."""
  about = {
    'config': config.to_dict(),
    'model': checkpoint.digest(config.model.path, config.model.revision),
    'versions': summary.versions(),
    'git_revision': summary.git_revision(),
  }
  if config.method not in neighbors.WITHOUT:
    about['neighbors'] = neighbors.identity(config)
  return about


def _model(config) -> language_model.LanguageModel:
  """The model, whose scores say what is likeliest too."""
  device.keep_compiled_programs()
  model = language_model.load(config)
  chosen = model.adaptation.settings
  if config.method == 'ttt' and chosen.carries:
    raise ValueError(
      'contexts are adapted to afresh, which does not go with '
      f'ttt.optimizer_state={chosen.optimizer_state!r} and '
      f'ttt.reset_weights={chosen.reset_weights}'
    )
  adaptation = dataclasses.replace(
    model.adaptation, log_likelihood=model.model.scores
  )
  return dataclasses.replace(model, adaptation=adaptation)


@functools.cache
def _writer(
  model: model_lib.Model, sampling: generate.Sampling, end: int
) -> Callable:
  """Compiles, at first use, what writes texts."""
  return generate.compile_writer(
    model.init_cache, model.decode, sampling, context=model.context, end=end
  )


def _grouped(contexts: list[str]) -> dict[str, list[int]]:
  """Where each context occurs, in order of its first occurrence."""
  places = {}
  for place, context in enumerate(contexts):
    places.setdefault(context, []).append(place)
  return places


if __name__ == '__main__':
  main()
