"""T5 (Raffel et al., 2020).

"Exploring the limits of transfer learning with a unified text-to-text
transformer" (JMLR 21), and its version 1.1 with gated feed-forward layers
(Shazeer, "GLU variants improve transformer", 2020). Positions enter as a bias
on the scores of self-attention, which depends on the distance alone and which
all blocks of a stack share. Computes what `transformers`'
T5ForConditionalGeneration computes.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any
from typing import Self

from flax import linen as nn
import jax
import jax.numpy as jnp

from tttnn.models import cached
from tttnn.models import layers
from tttnn.models import relative

# Where the parameters are in a checkpoint; see `tttnn.models.hf`.
PREFIX = ''
TRANSPOSED = r'(encoder|decoder)\.block\..*\.(q|k|v|o|wi|wi_0|wi_1|wo)\.weight'
IGNORED = (
  r'decoder\.block\.0\.layer\.1\.EncDecAttention'
  r'\.relative_attention_bias\.weight'
)
TIED = {
  'encoder.embed_tokens.weight': 'shared.weight',
  'decoder.embed_tokens.weight': 'shared.weight',
  'lm_head.weight': 'shared.weight',
}
ARCHITECTURES = ('T5ForConditionalGeneration', 'T5Model')


@dataclasses.dataclass(frozen=True)
class Config:
  """The keys of config.json that matter here, with Hugging Face's defaults.

  But for decoder_start_token_id, which has none there: it is 0 in all that is
  published.
  """

  vocab_size: int = 32128
  d_model: int = 512
  d_kv: int = 64
  d_ff: int = 2048
  num_layers: int = 6
  num_decoder_layers: int | None = None  # None: num_layers.
  num_heads: int = 8
  relative_attention_num_buckets: int = 32
  relative_attention_max_distance: int = 128
  dropout_rate: float = 0.1
  layer_norm_epsilon: float = 1e-6
  initializer_factor: float = 1.0
  feed_forward_proj: str = 'relu'
  tie_word_embeddings: bool = True
  pad_token_id: int | None = 0
  eos_token_id: int | tuple[int, ...] | None = 1
  decoder_start_token_id: int = 0

  def __post_init__(self):
    layers.check_config(
      self.num_heads * self.d_kv, self.num_heads, self.activation
    )
    if self.num_decoder_layers is None:
      object.__setattr__(self, 'num_decoder_layers', self.num_layers)
    if self.decoder_start_token_id is None:
      raise ValueError(
        'decoder_start_token_id=None: the decoder has nothing to begin with'
      )

  @classmethod
  def create(
    cls,
    vocab_size: int,
    layers: int,
    width: int,
    heads: int,
    **token_ids: int | None,
  ) -> Self:
    """A model to train from scratch; token ids as `eos_token_id=1`.

    It has `layers` blocks in the encoder and as many in the decoder.

    Raises:
      ValueError: `heads` does not divide `width`.
    """
    if width % heads:
      raise ValueError(f'the width {width} is not a multiple of {heads} heads')
    return cls(
      vocab_size=vocab_size,
      d_model=width,
      d_kv=width // heads,
      d_ff=4 * width,
      num_layers=layers,
      num_heads=heads,
      **token_ids,
    )

  @classmethod
  def from_hf(cls, values: Mapping[str, Any]) -> Self:
    """From the dict of a config.json, of whatever version of `transformers`.

    Version 5 writes that the head is tied whether it is or not. What it does
    say of an untied one is that hidden states are not scaled for it.
    """
    tied = values.get('tie_word_embeddings', True)
    scaled = values.get('scale_decoder_outputs', tied)
    values = {**values, 'tie_word_embeddings': tied and scaled}
    config = layers.read_config(cls, values, {'is_decoder': False})
    derived = {
      'is_gated_act': config.gated,
      'dense_act_fn': config.activation,
    }
    return layers.read_config(cls, values, derived)

  def to_hf(self) -> dict[str, Any]:
    return {
      'model_type': 't5',
      'is_encoder_decoder': True,
      'scale_decoder_outputs': self.tie_word_embeddings,
      **dataclasses.asdict(self),
    }

  @property
  def width(self) -> int:
    return self.d_model

  @property
  def gated(self) -> bool:
    return self.feed_forward_proj.startswith('gated-')

  @property
  def activation(self) -> str:
    """Of `layers.ACTIVATIONS`; the gated gelu is the one with a tanh."""
    if self.feed_forward_proj == 'gated-gelu':
      return 'gelu_new'
    return self.feed_forward_proj.removeprefix('gated-')

  def std(self, *fan: int) -> float:
    """Of new weights whose products have that many terms."""
    return self.initializer_factor / math.prod(fan) ** 0.5


class SelfAttention(nn.Module):
  config: Config
  causal: bool
  first: bool  # The first block's has the bias of all.

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, bias_HxTxT, position_BxT):
    """(y [B, T, D], the bias)."""
    config = self.config
    new = [_heads(config, name, x_BxTxD) for name in ('q', 'k', 'v')]
    if self.first:
      query_T = key_T = jnp.arange(x_BxTxD.shape[1])
      if position_BxT is not None:
        query_T = position_BxT[0]  # All rows are at the same.
        key_T = jnp.arange(cached.places(self, len(key_T)))
      bias = relative.Bias(
        config.num_heads,
        config.relative_attention_num_buckets,
        config.relative_attention_max_distance,
        bidirectional=not self.causal,
        std=config.std(config.d_model),
        name='relative_attention_bias',
      )
      bias_HxTxT = bias(query_T, key_T)
    if position_BxT is None:
      y_BxTxHxK = layers.attention(
        *new,
        mask_BxT,
        scale=1.0,
        causal=self.causal,
        bias_HxTxT=bias_HxTxT,
        dropout=_dropout(config, train),
      )
    else:
      y_BxTxHxK = cached.attention(
        self, *new, position_BxT, scale=1.0, bias_HxTxS=bias_HxTxT
      )
    return _output(config, y_BxTxHxK), bias_HxTxT


class CrossAttention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxS, train, source_BxSxD, position_BxT):
    config = self.config
    query_BxTxHxK = _heads(config, 'q', x_BxTxD)

    def make(name):
      return _heads(config, name[0], source_BxSxD)

    if position_BxT is None:
      y_BxTxHxK = layers.attention(
        query_BxTxHxK,
        make('key'),
        make('value'),
        mask_BxS,
        scale=1.0,
        causal=False,
        dropout=_dropout(config, train),
      )
    else:
      y_BxTxHxK = cached.cross_attention(
        self, query_BxTxHxK, make, mask_BxS, scale=1.0
      )
    return _output(config, y_BxTxHxK)


class Dense(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, train):
    config = self.config

    def inner(name):
      std = config.std(config.d_model)
      return layers.Linear(config.d_ff, std, False, name=name)(x_BxTxD)

    activate = layers.ACTIVATIONS[config.activation]
    if config.gated:
      h_BxTxF = activate(inner('wi_0')) * inner('wi_1')
    else:
      h_BxTxF = activate(inner('wi'))
    h_BxTxF = _dropout(config, train)(h_BxTxF)
    return layers.Linear(
      config.d_model, config.std(config.d_ff), False, name='wo'
    )(h_BxTxF)


class SelfAttentionLayer(nn.Module):
  config: Config
  causal: bool
  first: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, bias_HxTxT, position_BxT):
    attend = SelfAttention(
      self.config, self.causal, self.first, name='SelfAttention'
    )
    h_BxTxD = _norm(self.config)(x_BxTxD)
    y_BxTxD, bias_HxTxT = attend(
      h_BxTxD, mask_BxT, train, bias_HxTxT, position_BxT
    )
    return x_BxTxD + _dropout(self.config, train)(y_BxTxD), bias_HxTxT


class CrossAttentionLayer(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxS, train, source_BxSxD, position_BxT):
    attend = CrossAttention(self.config, name='EncDecAttention')
    h_BxTxD = _norm(self.config)(x_BxTxD)
    y_BxTxD = attend(h_BxTxD, mask_BxS, train, source_BxSxD, position_BxT)
    return x_BxTxD + _dropout(self.config, train)(y_BxTxD)


class FeedForwardLayer(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, train):
    """(x [B, T, D], its input and output by name)."""
    h_BxTxD = _norm(self.config)(x_BxTxD)
    y_BxTxD = Dense(self.config, name='DenseReluDense')(h_BxTxD, train)
    x_BxTxD += _dropout(self.config, train)(y_BxTxD)
    return x_BxTxD, {'ffn_input': h_BxTxD, 'ffn_output': y_BxTxD}


class Layers(nn.Module):
  """The level between a block and its parts in checkpoint names."""

  config: Config
  decoder: bool
  first: bool

  @nn.compact
  def __call__(
    self, x_BxTxD, mask_BxS, train, bias_HxTxT, source_BxSxD, position_BxT
  ):
    attend = SelfAttentionLayer(self.config, self.decoder, self.first, name='0')
    # The decoder's padding is behind its tokens, which look back.
    mask_BxT = None if self.decoder else mask_BxS
    x_BxTxD, bias_HxTxT = attend(
      x_BxTxD, mask_BxT, train, bias_HxTxT, position_BxT
    )
    if self.decoder:
      x_BxTxD = CrossAttentionLayer(self.config, name='1')(
        x_BxTxD, mask_BxS, train, source_BxSxD, position_BxT
      )
    feed = FeedForwardLayer(self.config, name='2' if self.decoder else '1')
    x_BxTxD, passed = feed(x_BxTxD, train)
    return x_BxTxD, bias_HxTxT, passed


class Block(nn.Module):
  config: Config
  decoder: bool
  first: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxS, train, *others):
    inside = Layers(self.config, self.decoder, self.first, name='layer')
    return inside(x_BxTxD, mask_BxS, train, *others)


class Blocks(nn.Module):
  config: Config
  decoder: bool
  remat: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxS, train, source_BxSxD, position_BxT):
    config = self.config
    bias_HxTxT = passed = None
    count = config.num_decoder_layers if self.decoder else config.num_layers
    for layer in range(count):
      block = layers.block(Block, self.remat)(
        config, self.decoder, layer == 0, name=str(layer)
      )
      x_BxTxD, bias_HxTxT, passed = block(
        x_BxTxD, mask_BxS, train, bias_HxTxT, source_BxSxD, position_BxT
      )
    return x_BxTxD, passed


class Stack(nn.Module):
  """The encoder or the decoder."""

  config: Config
  decoder: bool
  remat: bool

  @nn.compact
  def __call__(
    self, x_BxTxD, mask_BxS, train, source_BxSxD=None, position_BxT=None
  ):
    """(hidden states [B, T, D], what may serve as keys, by kind)."""
    drop = _dropout(self.config, train)
    blocks = Blocks(self.config, self.decoder, self.remat, name='block')
    x_BxTxD, passed = blocks(
      drop(x_BxTxD), mask_BxS, train, source_BxSxD, position_BxT
    )
    hidden_BxTxD = _norm(self.config, 'final_layer_norm')(x_BxTxD)
    return drop(hidden_BxTxD), {**passed, 'final_hidden': hidden_BxTxD}


class Module(nn.Module):
  """Tokens to hidden states, and hidden states to the vocabulary."""

  config: Config
  dtype: str
  remat: bool = False

  def setup(self):
    config = self.config
    entries = (config.vocab_size, config.d_model, config.std(), self.dtype)
    self.shared = layers.Embedding(*entries)
    self.encoder = Stack(config, False, self.remat)
    self.decoder = Stack(config, True, self.remat)
    if not config.tie_word_embeddings:
      self.lm_head = layers.Embedding(*entries)

  def __call__(
    self,
    inputs_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    tokens_BxU: jax.Array,
    train: bool = False,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """(hidden states, keys by kind), [B, U, D], of the decoder's tokens."""
    source_BxTxD = self.encode(inputs_BxT, mask_BxT, train)
    return self.decoder(self.shared(tokens_BxU), mask_BxT, train, source_BxTxD)

  def encode(
    self,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    train: bool = False,
  ) -> jax.Array:
    """Hidden states [B, T, D] of the encoder."""
    return self.encoder(self.shared(tokens_BxT), mask_BxT, train)[0]

  def decode(
    self,
    tokens_RxU: jax.Array,
    source_BxTxD: jax.Array | None,
    mask_BxT: jax.Array,
    position_RxU: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """As `__call__`, of tokens that go on from the `cache` collection.

    `source_BxTxD` is not looked at where the `source` collection is there.
    """
    return self.decoder(
      self.shared(tokens_RxU), mask_BxT, False, source_BxTxD, position_RxU
    )

  def head(
    self, hidden_BxTxD: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(hidden [B, T, D], table [V, D], bias [V]): logits = hidden @ table.T."""
    if not self.config.tie_word_embeddings:
      return hidden_BxTxD, self.lm_head.weight, None
    scaled_BxTxD = hidden_BxTxD * self.config.d_model**-0.5
    return scaled_BxTxD, self.shared.weight, None


def _heads(config, name, x_BxTxD):
  """A projection to [B, T, H, K], in the module that calls."""
  fan = (config.d_model, config.d_kv) if name == 'q' else (config.d_model,)
  linear = layers.Linear(
    config.num_heads * config.d_kv, config.std(*fan), False, name=name
  )
  return linear(x_BxTxD).reshape(*x_BxTxD.shape[:2], config.num_heads, -1)


def _output(config, y_BxTxHxK):
  std = config.std(config.num_heads, config.d_kv)
  linear = layers.Linear(config.d_model, std, False, name='o')
  return linear(y_BxTxHxK.reshape(*y_BxTxHxK.shape[:2], -1))


def _norm(config, name='layer_norm'):
  return layers.RMSNorm(
    config.layer_norm_epsilon, config.initializer_factor, name=name
  )


def _dropout(config, train):
  return nn.Dropout(config.dropout_rate, deterministic=not train)
