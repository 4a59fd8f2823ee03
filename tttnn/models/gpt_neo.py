"""GPT-Neo (Black et al., 2021).

"GPT-Neo: large scale autoregressive language modeling with Mesh-Tensorflow".
As GPT-2, but for attention: scores are not scaled, and the layers take turns
between the whole past and a local window. Computes what `transformers`'
GPTNeoForCausalLM computes.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import Self

from flax import linen as nn
import jax
import jax.numpy as jnp

from tttnn.models import cached
from tttnn.models import layers

CAUSAL = True

# Where the parameters are in a checkpoint; see `tttnn.models.hf`.
PREFIX = 'transformer.'
TRANSPOSED = (
  r'h\.\d+\.(attn\.attention\.(q|k|v|out)_proj|mlp\.c_(fc|proj))\.weight'
)
IGNORED = r'h\.\d+\.attn\.attention\.(bias|masked_bias)'
TIED = {'lm_head.weight': 'wte.weight'}
ARCHITECTURES = ('GPTNeoForCausalLM', 'GPTNeoModel')

# The module whose output is each kind of key; see `model.Model.keys`.
KEYS = {
  'ffn_input': 'h.{last}.ln_2',
  'ffn_output': 'h.{last}.mlp',
  'final_hidden': 'ln_f',
}


@dataclasses.dataclass(frozen=True)
class Config:
  """The keys of config.json that matter here, with Hugging Face's defaults."""

  vocab_size: int = 50257
  max_position_embeddings: int = 2048
  hidden_size: int = 2048
  num_layers: int = 24
  num_heads: int = 16
  intermediate_size: int | None = None
  attention_types: tuple[tuple[tuple[str, ...], int], ...] = (
    (('global', 'local'), 12),
  )
  window_size: int = 256
  activation_function: str = 'gelu_new'
  resid_dropout: float = 0.0
  embed_dropout: float = 0.0
  attention_dropout: float = 0.0
  layer_norm_epsilon: float = 1e-5
  initializer_range: float = 0.02
  tie_word_embeddings: bool = True
  bos_token_id: int | None = 50256
  eos_token_id: int | tuple[int, ...] | None = 50256
  pad_token_id: int | None = None

  def __post_init__(self):
    layers.check_config(
      self.hidden_size, self.num_heads, self.activation_function
    )
    kinds = self.attention_layers
    if len(kinds) != self.num_layers or set(kinds) - {'global', 'local'}:
      raise ValueError(
        f'attention_types {self.attention_types} must give one of global and '
        f'local for each of num_layers={self.num_layers} layers'
      )

  @classmethod
  def create(
    cls,
    vocab_size: int,
    layers: int,
    width: int,
    heads: int,
    context: int,
    **token_ids: int | None,
  ) -> Self:
    """A model to train from scratch; token ids as `eos_token_id=0`."""
    pairs = ((('global', 'local'), layers // 2),) if layers > 1 else ()
    last = ((('global',), 1),) if layers % 2 else ()
    return cls(
      vocab_size=vocab_size,
      num_layers=layers,
      attention_types=pairs + last,
      hidden_size=width,
      num_heads=heads,
      max_position_embeddings=context,
      **token_ids,
    )

  @classmethod
  def from_hf(cls, values: Mapping[str, Any]) -> Self:
    return layers.read_config(cls, values, {})

  def to_hf(self) -> dict[str, Any]:
    return {
      'model_type': 'gpt_neo',
      **dataclasses.asdict(self),
      'attention_layers': list(self.attention_layers),
    }

  @property
  def attention_layers(self) -> tuple[str, ...]:
    """'global' or 'local' for each layer."""
    return tuple(
      kind
      for kinds, repeats in self.attention_types
      for kind in kinds * repeats
    )

  @property
  def context(self) -> int:
    return self.max_position_embeddings

  @property
  def width(self) -> int:
    return self.hidden_size

  @property
  def layers(self) -> int:
    return self.num_layers


class SelfAttention(nn.Module):
  config: Config
  local: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, position_BxT=None):
    config = self.config
    std = config.initializer_range

    def heads_of(name):
      linear = layers.Linear(config.hidden_size, std, False, name=name)
      return linear(x_BxTxD).reshape(*x_BxTxD.shape[:2], config.num_heads, -1)

    window = config.window_size if self.local else 0
    new = [heads_of(name) for name in ('q_proj', 'k_proj', 'v_proj')]
    if position_BxT is None:
      y_BxTxHxK = layers.attention(
        *new,
        mask_BxT,
        scale=1.0,
        causal=True,
        window=window,
        dropout=nn.Dropout(config.attention_dropout, deterministic=not train),
      )
    else:
      y_BxTxHxK = cached.attention(
        self, *new, position_BxT, scale=1.0, window=window
      )
    y_BxTxD = layers.Linear(config.hidden_size, std, name='out_proj')(
      y_BxTxHxK.reshape(x_BxTxD.shape)
    )
    return nn.Dropout(config.resid_dropout, deterministic=not train)(y_BxTxD)


class Attention(nn.Module):
  """The level between `attn` and its projections in checkpoint names."""

  config: Config
  local: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, position_BxT=None):
    attend = SelfAttention(self.config, self.local, name='attention')
    return attend(x_BxTxD, mask_BxT, train, position_BxT)


class MLP(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, train):
    config = self.config
    std = config.initializer_range
    inner = config.intermediate_size or 4 * config.hidden_size
    h_BxTxF = layers.Linear(inner, std, name='c_fc')(x_BxTxD)
    y_BxTxD = layers.Linear(
      config.hidden_size,
      std,
      activation=config.activation_function,
      name='c_proj',
    )(h_BxTxF)
    return nn.Dropout(config.resid_dropout, deterministic=not train)(y_BxTxD)


class Block(nn.Module):
  config: Config
  local: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, position_BxT=None):
    epsilon = self.config.layer_norm_epsilon
    h_BxTxD = layers.LayerNorm(epsilon, name='ln_1')(x_BxTxD)
    x_BxTxD += Attention(self.config, self.local, name='attn')(
      h_BxTxD, mask_BxT, train, position_BxT
    )
    h_BxTxD = layers.LayerNorm(epsilon, name='ln_2')(x_BxTxD)
    return x_BxTxD + MLP(self.config, name='mlp')(h_BxTxD, train)


class Blocks(nn.Module):
  config: Config
  remat: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, position_BxT=None):
    for layer, kind in enumerate(self.config.attention_layers):
      block = layers.block(Block, self.remat)(
        self.config, kind == 'local', name=str(layer)
      )
      x_BxTxD = block(x_BxTxD, mask_BxT, train, position_BxT)
    return x_BxTxD


class Module(nn.Module):
  """Tokens to hidden states, and hidden states to the vocabulary."""

  config: Config
  dtype: str
  remat: bool = False

  def setup(self):
    config = self.config
    std = config.initializer_range
    entries = (config.vocab_size, config.hidden_size)
    self.wte = layers.Embedding(*entries, std, self.dtype)
    self.wpe = layers.Embedding(
      config.max_position_embeddings, config.hidden_size, std, self.dtype
    )
    self.drop = nn.Dropout(config.embed_dropout)
    self.h = Blocks(config, self.remat)
    self.ln_f = layers.LayerNorm(config.layer_norm_epsilon)
    if not config.tie_word_embeddings:
      self.lm_head = layers.Embedding(*entries, std, self.dtype)

  def __call__(
    self,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    train: bool = False,
    position_BxT: jax.Array | None = None,
  ) -> jax.Array:
    """Hidden states [B, T, D] after the final norm.

    With `position_BxT`, those of tokens that go on from the `cache` collection,
    each row at its own positions.
    """
    places = position_BxT
    if places is None:
      places = jnp.arange(tokens_BxT.shape[1])
    x_BxTxD = self.wte(tokens_BxT) + self.wpe(places)
    x_BxTxD = self.drop(x_BxTxD, deterministic=not train)
    return self.ln_f(self.h(x_BxTxD, mask_BxT, train, position_BxT))

  def head(
    self, hidden_BxTxD: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(hidden [B, T, D], table [V, D], bias [V]): logits = hidden @ table.T."""
    tied = self.config.tie_word_embeddings
    return hidden_BxTxD, (self.wte if tied else self.lm_head).weight, None
