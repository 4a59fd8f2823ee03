"""What the rest of the code sees of a model: functions of (params, tokens).

Of encoder-decoders it sees `tttnn.models.seq2seq`.

To add an architecture, write its file as `gpt2.py` is written and name it in
ARCHITECTURES.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tttnn.models import gpt2
from tttnn.models import gpt_neo
from tttnn.models import layers
from tttnn.models import loss
from tttnn.models import roberta

ARCHITECTURES = {'gpt2': gpt2, 'gpt_neo': gpt_neo, 'roberta': roberta}

Params = dict[str, Any]
Cache = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
  """An architecture and its sizes; hashable, so it can be a static argument.

  Parameters are nested dicts of float32 arrays whose paths, joined by dots, are
  the names in a Hugging Face checkpoint without the base model's prefix.

  Attributes:
    model_type: key of ARCHITECTURES, as in config.json.
    config: that architecture's Config.
    dtype: what the layers compute in, 'float32' or 'bfloat16'. float32 means
      full precision on accelerators too, unless `jax_default_matmul_precision`
      says otherwise.
    remat: whether the gradient computes a block's activations again instead of
      keeping them: less memory, a third more time.
  """

  model_type: str
  config: gpt2.Config | gpt_neo.Config | roberta.Config
  dtype: str = 'float32'
  remat: bool = False

  def __post_init__(self):
    if self.model_type not in ARCHITECTURES:
      raise ValueError(
        f'model_type {self.model_type!r} is not implemented; there are '
        f'{sorted(ARCHITECTURES)}'
      )
    if not isinstance(self.config, self.architecture.Config):
      raise ValueError(
        f'model_type {self.model_type!r} does not go with a '
        f'{type(self.config).__module__} configuration'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise ValueError(f'dtype {self.dtype!r} is not float32 or bfloat16')

  @property
  def architecture(self) -> Any:
    """The module that implements this model_type."""
    return ARCHITECTURES[self.model_type]

  @property
  def context(self) -> int:
    """The most tokens a sequence can have."""
    return self.config.context

  @property
  def vocab_size(self) -> int:
    return self.config.vocab_size

  @property
  def width(self) -> int:
    return self.config.width

  def init(self, key: jax.Array) -> Params:
    """New float32 parameters, drawn as Hugging Face draws them."""

    def everything(module, tokens_BxT):
      return module.head(module(tokens_BxT, None))

    tokens_BxT = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    # Lazily: draws the parameters without running the model on anything.
    variables = self._module().lazy_init(key, tokens_BxT, method=everything)
    return variables['params']

  def hidden(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """Last hidden states [B, T, D], after the final norm, in `dtype`.

    Args:
      params: as `init` makes them; the head need not be there.
      tokens_BxT: token ids; one out of range gives NaN.
      mask_BxT: true at real tokens, false at padding, which is not attended to;
        None = no padding.
      dropout_key: switches the configuration's dropout on.

    Raises:
      ValueError: more tokens than the context.
    """
    self._check_length(tokens_BxT)
    train = dropout_key is not None
    with self._precision():
      return self._module().apply(
        {'params': params},
        tokens_BxT,
        mask_BxT,
        train,
        rngs={'dropout': dropout_key} if train else None,
      )

  def logits(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
  ) -> jax.Array:
    """Logits [B, T, V] in float32; `tokens_BxT` and `mask_BxT` as `hidden`."""
    hidden_BxTxD = self.hidden(params, tokens_BxT, mask_BxT)
    with self._precision():
      return loss.vocabulary_logits(*self._head(params, hidden_BxTxD))

  def log_likelihood(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    targets_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """log p(targets[t] | tokens[..t]) in nats, [B, T] float32.

    The target of position t is, as a rule, the token at t + 1: no shift is made
    here. Values at padding are finite and mean nothing.

    Raises:
      ValueError: the model is no causal LM, or as `hidden`.
    """
    self._require_causal()
    hidden_BxTxD = self.hidden(params, tokens_BxT, mask_BxT, dropout_key)
    return self._score(params, hidden_BxTxD, targets_BxT)

  def scores(
    self, params: Params, tokens_BxT: jax.Array, targets_BxT: jax.Array
  ) -> jax.Array:
    """`log_likelihood`, and 1 where no token is likelier, else 0: [B, T, 2].

    Whether greedy decoding would write a text is whether all its tokens are
    likeliest. At no cost beside that of the log-likelihood.

    Raises:
      ValueError: as `log_likelihood`.
    """
    self._require_causal()
    hidden_BxTxD = self.hidden(params, tokens_BxT)
    with self._precision():
      head = self._head(params, hidden_BxTxD)
      return loss.token_scores(*head, targets_BxT)

  def keys(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    kind: str,
    mask_BxT: jax.Array | None = None,
  ) -> jax.Array:
    """Keys of the contexts tokens[..t] in a datastore: [B, T, D], in `dtype`.

    Khandelwal et al. 2020 (arXiv 1911.00172), section 2. Nothing behind the key
    is computed, where this is compiled.

    Args:
      params: as `init` makes them; the head need not be there.
      tokens_BxT: as of `hidden`.
      kind: 'ffn_input', what the last block's MLP reads, behind its LayerNorm;
        'ffn_output', what that MLP adds; 'final_hidden', what `hidden` gives.
      mask_BxT: as of `hidden`.

    Raises:
      ValueError: no such kind, the model is no causal LM, or as `hidden`.
    """
    return self._hidden_and_keys(params, tokens_BxT, kind, mask_BxT)[1]

  def scored_keys(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    targets_BxT: jax.Array,
    kind: str,
    mask_BxT: jax.Array | None = None,
    positions_BxK: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """(`log_likelihood` [B, T], `keys` [B, T, D]) in one pass.

    With `positions_BxK` of these alone, whose targets are then [B, K], like
    what is returned.
    """
    both = self._hidden_and_keys(params, tokens_BxT, kind, mask_BxT)
    if positions_BxK is not None:
      index_BxKx1 = positions_BxK[..., None]
      both = (jnp.take_along_axis(x, index_BxKx1, axis=1) for x in both)
    hidden_BxTxD, keys_BxTxD = both
    return self._score(params, hidden_BxTxD, targets_BxT), keys_BxTxD

  def next_logits_and_keys(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    lengths_B: jax.Array,
    kind: str,
  ) -> tuple[jax.Array, jax.Array]:
    """Of what follows each row's last token: logits and keys in one pass.

    Args:
      params: as `init` makes them.
      tokens_BxT: as of `hidden`.
      lengths_B: how many tokens of each row count, at least one; the others are
        padding behind them.
      kind: as of `keys`.

    Returns:
      Logits [B, V] in float32, and keys [B, D] in `dtype`.
    """
    last_Bx1x1 = (lengths_B - 1)[:, None, None]
    hidden_Bx1xD, keys_Bx1xD = (
      jnp.take_along_axis(states_BxTxD, last_Bx1x1, axis=1)
      for states_BxTxD in self._hidden_and_keys(params, tokens_BxT, kind, None)
    )
    with self._precision():
      logits_Bx1xV = loss.vocabulary_logits(*self._head(params, hidden_Bx1xD))
    return logits_Bx1xV[:, 0], keys_Bx1xD[:, 0]

  def cross_entropy(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    targets_BxT: jax.Array,
    weights_BxT: jax.Array,
    mask_BxT: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """-sum(weights * log_likelihood(...)) over all of B and T, in nats.

    What training goes down: cheaper to differentiate than `log_likelihood`.
    """
    self._require_causal()
    hidden_BxTxD = self.hidden(params, tokens_BxT, mask_BxT, dropout_key)
    with self._precision():
      head = self._head(params, hidden_BxTxD)
      return loss.cross_entropy(*head, targets_BxT, weights_BxT)

  def init_cache(self, rows: int, length: int) -> Cache:
    """An empty cache for texts of up to `length` tokens, in `dtype`.

    Raises:
      ValueError: the model is no causal LM, or `length` exceeds the context.
    """
    self._require_causal()
    if length > self.context:
      raise ValueError(
        f'a cache of {length} tokens exceeds the context of {self.context}'
      )

    def attended():
      tokens_BxT = jnp.zeros((rows, length), jnp.int32)
      params = self.init(jax.random.key(0))
      return self._attend(params, tokens_BxT, tokens_BxT, {})[2]

    shapes = jax.eval_shape(attended)
    attention = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return {'length': jnp.zeros(rows, jnp.int32), 'attention': attention}

  def decode(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    cache: Cache,
    lengths_B: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Reads tokens that go on from those in the cache.

    A row's logits are the same, up to rounding, whether its tokens come at once
    or one by one, and whatever the other rows hold.

    Args:
      params: as `init` makes them.
      tokens_BxT: the next tokens of each row.
      cache: of the tokens before; it must have places for these.
      lengths_B: how many tokens of each row count, the others being padding
        behind them; None = all. A row with none stays as it was.

    Returns:
      Logits [B, V] in float32 of what follows the last token of each row (which
      mean nothing in a row with none), and the cache with the tokens.

    Raises:
      ValueError: the model is no causal LM, or more tokens than the cache has
        places.
    """
    logits_BxV, _, cache = self._decode(params, tokens_BxT, cache, lengths_B)
    return logits_BxV, cache

  def decode_keys(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    cache: Cache,
    lengths_B: jax.Array | None = None,
    *,
    kind: str,
  ) -> tuple[jax.Array, jax.Array, Cache]:
    """(logits [B, V], `keys` [B, D] of each row's last token, cache).

    As `decode` but for the keys, which are of a `kind` as of `keys`.
    """
    return self._decode(params, tokens_BxT, cache, lengths_B, kind)

  def masked_log_likelihood(
    self,
    params: Params,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    positions_BxK: jax.Array,
    targets_BxK: jax.Array,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """log p(targets[k] at positions[k] | all tokens) in nats, [B, K] float32.

    Only the given positions pass through the masked-LM head.

    Raises:
      ValueError: the model is no masked LM, or as `hidden`.
    """
    if self.architecture.CAUSAL:
      raise ValueError(
        f'{self.model_type} is a causal LM: it has no masked_log_likelihood'
      )
    hidden_BxTxD = self.hidden(params, tokens_BxT, mask_BxT, dropout_key)
    hidden_BxKxD = jnp.take_along_axis(
      hidden_BxTxD, positions_BxK[..., None], axis=1
    )
    return self._score(params, hidden_BxKxD, targets_BxK)

  def _require_causal(self) -> None:
    if not self.architecture.CAUSAL:
      raise ValueError(
        f'{self.model_type} sees later tokens: it has no log_likelihood of the '
        'next one, only masked_log_likelihood'
      )

  def _hidden_and_keys(self, params, tokens_BxT, kind, mask_BxT):
    self._require_causal()
    capture = self._capture(kind)
    self._check_length(tokens_BxT)
    with self._precision():
      hidden_BxTxD, kept = self._module().apply(
        {'params': params},
        tokens_BxT,
        mask_BxT,
        capture_intermediates=capture,
        mutable=['intermediates'],
      )
    (keys_BxTxD,) = jax.tree.leaves(kept)
    return hidden_BxTxD, keys_BxTxD

  def _capture(self, kind: str) -> Callable[[Any, str], bool]:
    """Which output of which module is kept as the key."""
    kinds = self.architecture.KEYS
    if kind not in kinds:
      raise ValueError(
        f'a {self.model_type} has no keys {kind!r}, only {", ".join(kinds)}'
      )
    path = tuple(kinds[kind].format(last=self.config.layers - 1).split('.'))
    return lambda module, name: module.path == path and name == '__call__'

  def _check_length(self, tokens_BxT) -> None:
    tokens = tokens_BxT.shape[1]
    if tokens > self.context:
      raise ValueError(f'{tokens} tokens exceed the context of {self.context}')

  def _decode(self, params, tokens_BxT, cache, lengths_B, kind=None):
    """(logits, keys of a kind, None being none, cache)."""
    self._require_causal()
    rows, tokens = tokens_BxT.shape
    places = jax.tree.leaves(cache['attention'])[0].shape[-2]
    if tokens > places:
      raise ValueError(f'{tokens} tokens exceed the {places} of the cache')
    if lengths_B is None:
      lengths_B = jnp.full(rows, tokens)
    position_BxT = cache['length'][:, None] + jnp.arange(tokens)
    last_Bx1x1 = jnp.maximum(lengths_B - 1, 0)[:, None, None]
    with self._precision():
      hidden_BxTxD, keys_BxTxD, attention = self._attend(
        params, tokens_BxT, position_BxT, cache['attention'], kind
      )
      hidden_Bx1xD = jnp.take_along_axis(hidden_BxTxD, last_Bx1x1, axis=1)
      logits_Bx1xV = loss.vocabulary_logits(*self._head(params, hidden_Bx1xD))
    keys_BxD = None
    if kind is not None:
      keys_BxD = jnp.take_along_axis(keys_BxTxD, last_Bx1x1, axis=1)[:, 0]
    cache = {'length': cache['length'] + lengths_B, 'attention': attention}
    return logits_Bx1xV[:, 0], keys_BxD, cache

  def _attend(self, params, tokens_BxT, position_BxT, attention, kind=None):
    """(hidden states, keys, what attention keeps); {}: makes places for T."""
    capture = self._capture(kind) if kind is not None else False
    hidden_BxTxD, kept = self._module().apply(
      {'params': params, 'cache': attention},
      tokens_BxT,
      None,
      position_BxT=position_BxT,
      capture_intermediates=capture,
      mutable=['cache', 'intermediates'],
    )
    keys = jax.tree.leaves(kept.get('intermediates', {}))
    return hidden_BxTxD, keys[0] if keys else None, kept['cache']

  def _module(self) -> Any:
    return self.architecture.Module(self.config, self.dtype, self.remat)

  def _head(self, params, hidden_BxTxD):
    return self._module().apply({'params': params}, hidden_BxTxD, method='head')

  def _score(self, params, hidden_BxTxD, targets_BxT):
    with self._precision():
      head = self._head(params, hidden_BxTxD)
      return loss.token_log_likelihood(*head, targets_BxT)

  def _precision(self):
    return layers.precision(self.dtype)
