"""RoBERTa (Liu et al., 2019).

"RoBERTa: a robustly optimized BERT pretraining approach". A
bidirectional encoder with a masked-LM head; computes what `transformers`'
RobertaForMaskedLM computes. Positions count the tokens that are not padding,
beginning at pad_token_id + 1, so the first pad_token_id + 1 rows of the
position table are no positions.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any
from typing import Self

from flax import linen as nn
import jax
import jax.numpy as jnp

from tttnn.models import layers

CAUSAL = False

# Where the parameters are in a checkpoint; see `tttnn.models.hf`.
PREFIX = 'roberta.'
TRANSPOSED = r'(encoder\..*|lm_head\.)(query|key|value|dense)\.weight'
IGNORED = r'embeddings\.(position|token_type)_ids|pooler\.dense\.(weight|bias)'
TIED = {
  'lm_head.decoder.weight': 'embeddings.word_embeddings.weight',
  'lm_head.decoder.bias': 'lm_head.bias',
}
ARCHITECTURES = ('RobertaForMaskedLM', 'RobertaModel')


@dataclasses.dataclass(frozen=True)
class Config:
  """The keys of config.json that matter here, with Hugging Face's defaults."""

  vocab_size: int = 50265
  hidden_size: int = 768
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  intermediate_size: int = 3072
  hidden_act: str = 'gelu'
  hidden_dropout_prob: float = 0.1
  attention_probs_dropout_prob: float = 0.1
  max_position_embeddings: int = 512
  type_vocab_size: int = 2
  initializer_range: float = 0.02
  layer_norm_eps: float = 1e-12
  pad_token_id: int = 1
  bos_token_id: int | None = 0
  eos_token_id: int | tuple[int, ...] | None = 2

  def __post_init__(self):
    layers.check_config(
      self.hidden_size, self.num_attention_heads, self.hidden_act
    )
    if self.pad_token_id is None or self.context < 1:
      raise ValueError(
        f'pad_token_id={self.pad_token_id} leaves no position of '
        f'max_position_embeddings={self.max_position_embeddings}'
      )

  @classmethod
  def create(
    cls,
    vocab_size: int,
    layers: int,
    width: int,
    heads: int,
    context: int,
    pad_token_id: int = 1,
    **token_ids: int | None,
  ) -> Self:
    """A model to train from scratch; `context` tokens, specials included."""
    return cls(
      vocab_size=vocab_size,
      num_hidden_layers=layers,
      hidden_size=width,
      num_attention_heads=heads,
      intermediate_size=4 * width,
      max_position_embeddings=context + pad_token_id + 1,
      type_vocab_size=1,
      layer_norm_eps=1e-5,
      pad_token_id=pad_token_id,
      **token_ids,
    )

  @classmethod
  def from_hf(cls, values: Mapping[str, Any]) -> Self:
    only = {
      'is_decoder': False,
      'add_cross_attention': False,
      'tie_word_embeddings': True,
      'position_embedding_type': 'absolute',
    }
    return layers.read_config(cls, values, only)

  def to_hf(self) -> dict[str, Any]:
    return {'model_type': 'roberta', **dataclasses.asdict(self)}

  @property
  def context(self) -> int:
    return self.max_position_embeddings - self.pad_token_id - 1

  @property
  def width(self) -> int:
    return self.hidden_size

  @property
  def layers(self) -> int:
    return self.num_hidden_layers


class Embeddings(nn.Module):
  config: Config
  dtype: str

  def setup(self):
    config = self.config

    def table(entries, zero_row=None):
      return layers.Embedding(
        entries,
        config.hidden_size,
        config.initializer_range,
        self.dtype,
        zero_row,
      )

    pad = config.pad_token_id
    self.word_embeddings = table(config.vocab_size, pad)
    self.position_embeddings = table(config.max_position_embeddings, pad)
    self.token_type_embeddings = table(config.type_vocab_size)
    self.LayerNorm = layers.LayerNorm(config.layer_norm_eps)
    self.dropout = nn.Dropout(config.hidden_dropout_prob)

  def __call__(self, tokens_BxT, train):
    pad = self.config.pad_token_id
    real_BxT = (tokens_BxT != pad).astype(jnp.int32)
    position_BxT = jnp.cumsum(real_BxT, axis=1) * real_BxT + pad
    x_BxTxD = self.word_embeddings(tokens_BxT)
    x_BxTxD += self.token_type_embeddings(jnp.zeros_like(tokens_BxT))
    x_BxTxD += self.position_embeddings(position_BxT)
    return self.dropout(self.LayerNorm(x_BxTxD), deterministic=not train)


class SelfAttention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train):
    config = self.config
    heads = config.num_attention_heads

    def heads_of(name):
      linear = layers.Linear(
        config.hidden_size, config.initializer_range, name=name
      )
      return linear(x_BxTxD).reshape(*x_BxTxD.shape[:2], heads, -1)

    y_BxTxHxK = layers.attention(
      heads_of('query'),
      heads_of('key'),
      heads_of('value'),
      mask_BxT,
      scale=(config.hidden_size // heads) ** -0.5,
      causal=False,
      dropout=nn.Dropout(
        config.attention_probs_dropout_prob, deterministic=not train
      ),
    )
    return y_BxTxHxK.reshape(x_BxTxD.shape)


class Output(nn.Module):
  """LayerNorm(residual + dense(x)): the end of each half of a layer."""

  config: Config

  @nn.compact
  def __call__(self, x_BxTxF, residual_BxTxD, train):
    config = self.config
    y_BxTxD = layers.Linear(
      config.hidden_size, config.initializer_range, name='dense'
    )(x_BxTxF)
    y_BxTxD = nn.Dropout(config.hidden_dropout_prob, deterministic=not train)(
      y_BxTxD
    )
    norm = layers.LayerNorm(config.layer_norm_eps, name='LayerNorm')
    return norm(y_BxTxD + residual_BxTxD)


class Attention(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train):
    attend = SelfAttention(self.config, name='self')
    y_BxTxD = attend(x_BxTxD, mask_BxT, train)
    return Output(self.config, name='output')(y_BxTxD, x_BxTxD, train)


class Intermediate(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD):
    config = self.config
    linear = layers.Linear(
      config.intermediate_size, config.initializer_range, name='dense'
    )
    return layers.ACTIVATIONS[config.hidden_act](linear(x_BxTxD))


class Layer(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train):
    attend = Attention(self.config, name='attention')
    x_BxTxD = attend(x_BxTxD, mask_BxT, train)
    h_BxTxF = Intermediate(self.config, name='intermediate')(x_BxTxD)
    return Output(self.config, name='output')(h_BxTxF, x_BxTxD, train)


class Layers(nn.Module):
  config: Config
  remat: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train):
    for layer in range(self.config.num_hidden_layers):
      one = layers.block(Layer, self.remat)(self.config, name=str(layer))
      x_BxTxD = one(x_BxTxD, mask_BxT, train)
    return x_BxTxD


class Encoder(nn.Module):
  config: Config
  remat: bool

  @nn.compact
  def __call__(self, x_BxTxD, mask_BxT, train):
    return Layers(self.config, self.remat, name='layer')(
      x_BxTxD, mask_BxT, train
    )


class MaskedLMHead(nn.Module):
  config: Config

  @nn.compact
  def __call__(self, hidden_BxTxD):
    """(hidden [B, T, D] ready for the vocabulary, bias [V])."""
    config = self.config
    bias_V = self.param('bias', nn.initializers.zeros, (config.vocab_size,))
    h_BxTxD = layers.Linear(
      config.hidden_size, config.initializer_range, name='dense'
    )(hidden_BxTxD)
    # Always gelu, whatever hidden_act says.
    h_BxTxD = layers.ACTIVATIONS['gelu'](h_BxTxD)
    norm = layers.LayerNorm(config.layer_norm_eps, name='layer_norm')
    return norm(h_BxTxD), bias_V


class Module(nn.Module):
  """Tokens to hidden states, and hidden states to the vocabulary."""

  config: Config
  dtype: str
  remat: bool = False

  def setup(self):
    self.embeddings = Embeddings(self.config, self.dtype)
    self.encoder = Encoder(self.config, self.remat)
    self.lm_head = MaskedLMHead(self.config)

  def __call__(
    self,
    tokens_BxT: jax.Array,
    mask_BxT: jax.Array | None,
    train: bool = False,
  ) -> jax.Array:
    """Hidden states [B, T, D] of the encoder."""
    return self.encoder(self.embeddings(tokens_BxT, train), mask_BxT, train)

  def head(
    self, hidden_BxTxD: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """(hidden [B, T, D], table [V, D], bias [V]): logits = hidden @ table.T."""
    table_VxD = self.embeddings.word_embeddings.weight
    hidden_BxTxD, bias_V = self.lm_head(hidden_BxTxD)
    return hidden_BxTxD, table_VxD, bias_V
