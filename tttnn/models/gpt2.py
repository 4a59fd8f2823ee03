"""GPT-2 (Radford et al., 2019).

"Language models are unsupervised multitask learners". Computes what
`transformers`' GPT2LMHeadModel computes.
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
TRANSPOSED = r'(?!)'  # Its Conv1D stores [in, out] already.
IGNORED = r'h\.\d+\.attn\.(bias|masked_bias)'
TIED = {'lm_head.weight': 'wte.weight'}
ARCHITECTURES = ('GPT2LMHeadModel', 'GPT2Model')

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
  n_positions: int = 1024
  n_embd: int = 768
  n_layer: int = 12
  n_head: int = 12
  n_inner: int | None = None
  activation_function: str = 'gelu_new'
  resid_pdrop: float = 0.1
  embd_pdrop: float = 0.1
  attn_pdrop: float = 0.1
  layer_norm_epsilon: float = 1e-5
  initializer_range: float = 0.02
  scale_attn_weights: bool = True
  scale_attn_by_inverse_layer_idx: bool = False
  reorder_and_upcast_attn: bool = False  # Scores are float32 here either way.
  tie_word_embeddings: bool = True
  bos_token_id: int | None = 50256
  eos_token_id: int | tuple[int, ...] | None = 50256
  pad_token_id: int | None = None

  def __post_init__(self):
    layers.check_config(self.n_embd, self.n_head, self.activation_function)

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
    return cls(
      vocab_size=vocab_size,
      n_layer=layers,
      n_embd=width,
      n_head=heads,
      n_positions=context,
      **token_ids,
    )

  @classmethod
  def from_hf(cls, values: Mapping[str, Any]) -> Self:
    return layers.read_config(cls, values, {'add_cross_attention': False})

  def to_hf(self) -> dict[str, Any]:
    return {'model_type': 'gpt2', **dataclasses.asdict(self)}

  @property
  def context(self) -> int:
    return self.n_positions

  @property
  def width(self) -> int:
    return self.n_embd

  @property
  def layers(self) -> int:
    return self.n_layer

  def scale(self, layer: int) -> float:
    """The factor on the attention scores of a layer."""
    scale = 1.0
    if self.scale_attn_weights:
      scale *= (self.n_embd // self.n_head) ** -0.5
    if self.scale_attn_by_inverse_layer_idx:
      scale /= layer + 1
    return scale


class Attention(nn.Module):
  config: Config
  layer: int

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, position_BxT=None):
    config = self.config
    heads = (config.n_head, config.n_embd // config.n_head)
    residual_std = config.initializer_range / (2 * config.n_layer) ** 0.5
    qkv = layers.Linear(
      3 * config.n_embd, config.initializer_range, name='c_attn'
    )(x_BxTxD)
    query_BxTxHxK, key_BxTxHxK, value_BxTxHxK = (
      part.reshape(*x_BxTxD.shape[:2], *heads)
      for part in jnp.split(qkv, 3, axis=-1)
    )
    scale = config.scale(self.layer)
    new = (query_BxTxHxK, key_BxTxHxK, value_BxTxHxK)
    if position_BxT is None:
      y_BxTxHxK = layers.attention(
        *new,
        mask_BxT,
        scale=scale,
        causal=True,
        dropout=nn.Dropout(config.attn_pdrop, deterministic=not train),
      )
    else:
      y_BxTxHxK = cached.attention(self, *new, position_BxT, scale=scale)
    y_BxTxD = layers.Linear(config.n_embd, residual_std, name='c_proj')(
      y_BxTxHxK.reshape(x_BxTxD.shape)
    )
    return nn.Dropout(config.resid_pdrop, deterministic=not train)(y_BxTxD)


class MLP(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, train):
    config = self.config
    inner = config.n_inner or 4 * config.n_embd
    residual_std = config.initializer_range / (2 * config.n_layer) ** 0.5
    h_BxTxF = layers.Linear(inner, config.initializer_range, name='c_fc')(
      x_BxTxD
    )
    y_BxTxD = layers.Linear(
      config.n_embd,
      residual_std,
      activation=config.activation_function,
      name='c_proj',
    )(h_BxTxF)
    return nn.Dropout(config.resid_pdrop, deterministic=not train)(y_BxTxD)


class Block(nn.Module):
  config: Config
  layer: int

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, position_BxT=None):
    epsilon = self.config.layer_norm_epsilon
    h_BxTxD = layers.LayerNorm(epsilon, name='ln_1')(x_BxTxD)
    x_BxTxD += Attention(self.config, self.layer, name='attn')(
      h_BxTxD, mask_BxT, train, position_BxT
    )
    h_BxTxD = layers.LayerNorm(epsilon, name='ln_2')(x_BxTxD)
    return x_BxTxD + MLP(self.config, name='mlp')(h_BxTxD, train)


class Blocks(nn.Module):
  config: Config
  remat: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train, position_BxT=None):
    for layer in range(self.config.n_layer):
      block = layers.block(Block, self.remat)(
        self.config, layer, name=str(layer)
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
    entries = (config.vocab_size, config.n_embd)
    self.wte = layers.Embedding(*entries, std, self.dtype)
    self.wpe = layers.Embedding(
      config.n_positions, config.n_embd, std, self.dtype
    )
    self.drop = nn.Dropout(config.embd_pdrop)
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
