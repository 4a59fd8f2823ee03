"""The causal LM of a run: tokenizer, parameters, and how it adapts."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
import dataclasses
import functools

import jax

from tttnn import checkpoint
from tttnn import device
from tttnn import estimate
from tttnn import sharding
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.methods import generate
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule
from tttnn.methods import trainable as trainable_lib
from tttnn.methods import ttt
from tttnn.models import model as model_lib
from tttnn.scoring import rolling

_MOST = 64  # Documents at once that 'auto' goes up to, on each shard.
_FILL = 0.85  # Of the memory there is.


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """The causal LM of a run with what belongs to it.

  Attributes:
    model: its functions of (params, tokens).
    tokenizer: its tokenizer.
    params: on the device, or spread over the mesh.
    trainable: what trains; None: nothing does.
    adaptation: what happens to a document.
    context: in tokens.
    start: the id that stands before a document.
    mesh: where it computes; None: one device.
    window: tokens of the windows in which texts are scored; 0: the context.
    stride: between these, see `rolling.windows`; 0: they do not overlap.
  """

  model: model_lib.Model
  tokenizer: object
  params: model_lib.Params
  trainable: trainable_lib.Trainable | None
  adaptation: ttt.Adaptation
  context: int
  start: int
  mesh: jax.sharding.Mesh | None = None
  window: int = 0
  stride: int = 0

  def case(
    self, document: documents_lib.Document, protocol: str, prefix: int
  ) -> documents_lib.Case:
    """The document under a protocol; a `prefix` of 0 is the context."""
    return documents_lib.apply_protocol(
      document,
      self.tokenizer,
      protocol=protocol,
      prefix=prefix or self.context,
    )

  def scored(self, case: documents_lib.Case) -> list[rolling.Window]:
    """The windows in which a document is scored."""
    return self._windows(case.tokens)

  def _windows(self, tokens: Sequence[int]) -> list[rolling.Window]:
    return rolling.windows(
      tokens, self.window or self.context, self.start, stride=self.stride
    )

  def trained(self, texts: list[str]) -> list[list[list[int]]]:
    """The training windows of each neighbour's text."""
    return [
      ttt.windows(tokens, self.adaptation.settings)
      for tokens in tokenizer_lib.encode(self.tokenizer, texts)
    ]

  def work(
    self,
    text: str,
    neighbors: Sequence[str],
    counts: Collection[int],
    number: int = 0,
  ) -> schedule.Work:
    """A text to score whole, with its neighbours' texts, nearest first.

    `counts` are those to score at, `number` is as of `schedule.Work`, whose key
    is the text.
    """
    (tokens,) = tokenizer_lib.encode(self.tokenizer, [text])
    windows = self._windows(tokens)
    return schedule.Work(
      key=text,
      scored=dict.fromkeys(counts, windows),
      neighbors=self.trained(list(neighbors)),
      number=number,
    )

  def prompt(self, text: str) -> list[int]:
    """Tokens to go on from; of an empty text, the start of one."""
    (tokens,) = tokenizer_lib.encode(self.tokenizer, [text])
    return tokens or [self.start]

  def writer(self, sampling: generate.Sampling) -> Callable[..., str | None]:
    """Compiles, at first use, (params, text, key=None) -> how the text goes on.

    None where the model's logits are not finite. Raises ValueError where the
    text and what is to be written exceed the context.
    """
    write = generate.compile_writer(
      self.model.init_cache, self.model.decode, sampling, **self._limits()
    )

    def write_one(params, text: str, key: jax.Array | None = None):
      return self._of_one(write, params, text, key)

    return write_one

  def stepwise_writer(
    self, sampling: generate.Sampling, kind: str
  ) -> Callable[..., str | None]:
    """As `writer`, of (params, text, key, adjust).

    `adjust` is as of `generate.compile_stepwise_writer`; keys are of a `kind`
    as of `models.model.Model.keys`.
    """
    write = generate.compile_stepwise_writer(
      self.model.init_cache,
      functools.partial(self.model.decode_keys, kind=kind),
      sampling,
      **self._limits(),
    )

    def write_one(params, text: str, key: jax.Array | None, adjust):
      return self._of_one(write, params, text, key, adjust)

    return write_one

  def _limits(self) -> dict[str, int]:
    return {'context': self.context, 'end': self.start}

  def _of_one(self, write, params, text: str, key, *more) -> str | None:
    key = jax.random.key(self.adaptation.seed) if key is None else key
    (written,) = write(params, [self.prompt(text)], key[None], *more)
    if written is None:
      return None
    return tokenizer_lib.decode(self.tokenizer, written)

  def pool(
    self,
    documents: int = 1,
    on_compile: Callable[[str], None] = lambda what: None,
  ) -> pool_lib.Pool:
    """Where `documents` of them adapt at once."""
    frozen, trained = self._split()
    return pool_lib.Pool(
      self.adaptation,
      frozen,
      trained,
      context=self.context,
      slots=documents,
      mesh=self.mesh,
      on_compile=on_compile,
    )

  def documents_at_once(self, wanted: str, limit: int | None = None) -> int:
    """How many documents `ttt.batch_documents` means.

    Args:
      wanted: a number, or 'auto': one on CPU and where documents go in order,
        elsewhere as many as the memory holds; times the mesh's data axis.
      limit: bytes of each device; None: what the backend says.

    Raises:
      ValueError: neither 'auto' nor a positive number, or not even one fits.
    """
    if wanted.isdigit() and int(wanted):
      return int(wanted)
    if wanted != 'auto':
      raise ValueError(
        f"ttt.batch_documents={wanted!r} is neither 'auto' nor 1 or more"
      )
    shards = self.mesh.shape['data'] if self.mesh else 1
    limit = limit or device.memory_limit()
    if limit is None or self.adaptation.settings.carries:
      return shards
    _, trained = self._split()
    models = self.mesh.shape['model'] if self.mesh else 1
    base = estimate.num_bytes(self.params) / models
    # What trains, its two moments, and a gradient that is kept.
    copies = 3 + (self.adaptation.settings.gradient_reuse > 1)
    own = copies * estimate.num_bytes(trained) / models
    size = self.adaptation.settings.max_length
    # Gradient, activations, and what a dispatch copies out of the pool.
    row = self.pool(shards).memory(size) - base
    fits = [
      slots
      for slots in range(1, _MOST + 1)
      if base + own * slots + row * max(2, slots // 4) <= _FILL * limit
    ]
    if not fits:
      raise ValueError(
        f'a document needs {(base + own + row) / 1e9:.1f} GB on a device that '
        f'has {limit / 1e9:.1f} GB: try ttt.trainable=lora, model.remat=True, '
        'a shorter ttt.max_length, or mesh.model above 1'
      )
    print(
      f'ttt.batch_documents: auto is {fits[-1] * shards}; a copy takes '
      f'{own / 1e9:.2f} GB, a device has {limit / 1e9:.0f} GB'
    )
    return fits[-1] * shards

  def _split(self) -> tuple[model_lib.Params, model_lib.Params]:
    """(what is shared, what each document has a copy of)."""
    if self.trainable is None:
      return self.params, {}
    frozen, trained = trainable_lib.split(
      self.params, self.trainable, self.adaptation.seed
    )
    if self.mesh:  # LoRA's matrices are new.
      frozen, trained = (
        sharding.shard(tree, self.mesh) for tree in (frozen, trained)
      )
    return frozen, trained


def create(
  model: model_lib.Model,
  params: model_lib.Params,
  tokenizer: object,
  settings: ttt.Settings,
  *,
  trainable: trainable_lib.Trainable | None = None,
  seed: int = 0,
  mesh: jax.sharding.Mesh | None = None,
  window: int = 0,
  stride: int = 0,
) -> LanguageModel:
  """From the parts; zeros in `settings` become the model's context.

  Args:
    model: its functions.
    params: as `hf.load` or `checkpoint.load_model` give them.
    tokenizer: that goes with it.
    settings: of adaptation.
    trainable: what trains; None: nothing, to score alone.
    seed: of dropout and of LoRA's first matrix.
    mesh: to spread over; None: one device.
    window: see `LanguageModel`.
    stride: likewise.

  Raises:
    ValueError: if model, tokenizer and settings do not go together.
  """
  if tokenizer.eos_token_id is None or len(tokenizer) > model.vocab_size:
    raise ValueError(
      f'the tokenizer has {len(tokenizer)} ids and end-of-text id '
      f'{tokenizer.eos_token_id}, the model has {model.vocab_size} ids'
    )
  if settings.max_length > model.context:
    raise ValueError(
      f'ttt.max_length={settings.max_length} exceeds the {model.context} '
      'positions of the model'
    )
  rolling.check(window or model.context, stride, model.context, 'eval')
  length = settings.max_length or model.context
  settings = dataclasses.replace(
    settings, max_length=length, stride=settings.stride or length
  )
  return LanguageModel(
    model=model,
    tokenizer=tokenizer,
    params=sharding.shard(params, mesh) if mesh else jax.device_put(params),
    trainable=trainable,
    adaptation=ttt.Adaptation(
      model.cross_entropy, model.log_likelihood, settings, seed
    ),
    context=model.context,
    start=tokenizer.eos_token_id,
    mesh=mesh,
    window=window,
    stride=stride,
  )


def load(config) -> LanguageModel:
  """From the sections `model`, `ttt`, `mesh` and `eval` of the config.

  Raises:
    ValueError: as `create`, and for a model that is not there.
  """
  if not config.model.path:
    raise ValueError(
      'model.path is empty: name a Hugging Face directory, a hub id or Orbax '
      'checkpoints'
    )
  path, revision = config.model.path, config.model.revision
  dtype = device.compute_dtype(config.model.dtype)
  model, params = checkpoint.load_model(path, revision=revision, dtype=dtype)
  model = dataclasses.replace(model, remat=config.model.remat)
  what = None
  if config.method in ttt.METHODS:
    what = trainable_lib.Trainable.parse(
      config.ttt.trainable,
      config.ttt.lora_rank,
      config.ttt.lora_alpha,
      config.ttt.lora_targets,
    )
  return create(
    model,
    params,
    tokenizer_lib.load(path, revision),
    ttt.Settings.create(config.ttt),
    trainable=what,
    seed=config.seed,
    mesh=sharding.from_config(config.mesh),
    window=config.eval.window,
    stride=config.eval.stride,
  )
