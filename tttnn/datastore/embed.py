"""Text embeddings: the masked mean of RoBERTa's last hidden states.

e(x) = sum_s a_s h_s / sum_s a_s with the attention mask a, over all tokens of
`<s> text </s>`, in float32 and without normalisation (Hardt & Sun 2024).
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from tttnn import checkpoint
from tttnn import prefetch
from tttnn import sharding
from tttnn.corpus import buckets
from tttnn.corpus import tokenizer as tokenizer_lib

# Of the longest texts, embedded at once by a device, on CPU and elsewhere.
_ROWS = 1, 16


@dataclasses.dataclass
class Usage:
  """What embedding took.

  Attributes:
    texts: that were embedded.
    batches: that they went in.
    tokens: of the texts, as far as they count, with the special ones.
    computed: tokens of the batches, padding included.
  """

  texts: int = 0
  batches: int = 0
  tokens: int = 0
  computed: int = 0

  @property
  def padding(self) -> float:
    """The share of what was computed that was no token."""
    return 1 - self.tokens / max(1, self.computed)


class Embedder:
  """An embedding model with its tokenizer.

  Attributes:
    params: of the model.
    dim: components of an embedding.
    max_length: tokens of a text that count, the two special ones included.
    usage: since it was made.
  """

  def __init__(
    self,
    model,
    params,
    tokenizer,
    max_length: int = 0,
    mesh: jax.sharding.Mesh | None = None,
  ):
    """Takes a RoBERTa as `checkpoint.load_model` gives it.

    Args:
      model: a `tttnn.models.model.Model`.
      params: its parameters.
      tokenizer: with `<s>`, `</s>` and `<pad>`.
      max_length: text tokens that count; 0: all that the model has places for.
      mesh: texts spread over `data`, weights over `model`; None: one device.

    Raises:
      ValueError: if the model has fewer places than `max_length` needs, or the
        tokenizer more ids than the model.
    """
    if max_length + 2 > model.context:
      raise ValueError(
        f'embedder.max_length={max_length} and two special tokens do not fit '
        f"the embedder's {model.context} positions"
      )
    if len(tokenizer) > model.vocab_size:
      raise ValueError(
        f"the embedder's tokenizer has {len(tokenizer)} ids, the embedder only "
        f'{model.vocab_size}'
      )
    self.dim = model.width
    self.max_length = max_length + 2 if max_length else model.context
    self.usage = Usage()
    self._tokenizer = tokenizer
    self._model = model
    self._mesh = mesh
    self.params = (
      sharding.shard(params, mesh) if mesh else jax.device_put(params)
    )

    @jax.jit
    def embed(params, tokens_BxT, length_B):
      mask_BxT = jnp.arange(tokens_BxT.shape[1]) < length_B[:, None]
      hidden_BxTxD = model.hidden(params, tokens_BxT, mask_BxT)
      total_BxD = jnp.einsum(
        'btd,bt->bd',
        hidden_BxTxD.astype(jnp.float32),
        mask_BxT.astype(jnp.float32),
        precision='highest',
      )
      return total_BxD / length_B[:, None]

    self._embed = embed

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts one by one: an embedding depends on its text alone.

    Args:
      texts: an empty one counts as one blank.

    Returns:
      float32 [len(texts), dim].
    """
    return self._wait(self._dispatch(self._encode(texts), alone=True))

  def blocks(
    self, blocks: Iterable[Sequence[str]], rows: int = 0
  ) -> Iterator[np.ndarray]:
    """Embeds blocks of texts, in batches of like length.

    What comes of a block depends (by rounding) on its texts and `rows`, but not
    on other blocks. While a block is computed, the next one is read, tokenized
    and dispatched, so that the device has no pause between them.

    Args:
      blocks: of texts, read by another thread, two ahead of what is yielded.
      rows: of the longest texts that a device embeds at once; of shorter ones
        as many more as have no more tokens together. 0: what suits the device.

    Yields:
      float32 [texts, dim] of each block.
    """
    rows = rows or _ROWS[jax.default_backend() != 'cpu']
    encoded = (self._encode(texts) for texts in blocks)
    begun = None
    for block in prefetch.prefetch(encoded, 1):
      begun, before = self._dispatch(block, rows), begun
      if before is not None:
        yield self._wait(before)
    if begun is not None:
      yield self._wait(begun)

  def fingerprint(self) -> str:
    """sha256 of what an embedding depends on: weights, sizes, tokenizer."""
    return fingerprint(
      self._model, self.params, self._tokenizer, max_length=self.max_length
    )

  def _encode(self, texts: Sequence[str]) -> list[list[int]]:
    tokenizer, count = self._tokenizer, self.max_length - 2
    return [
      [tokenizer.bos_token_id, *ids[:count], tokenizer.eos_token_id]
      for ids in tokenizer_lib.encode(
        tokenizer, [text or ' ' for text in texts]
      )
    ]

  def _dispatch(
    self, encoded: Sequence[Sequence[int]], rows: int = 1, alone: bool = False
  ) -> list[tuple[list[int], jax.Array]]:
    """(which texts, their embeddings to come) of each batch.

    Longest first: what the last batch has rows too many are then short ones.
    """
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    shards = self._mesh.shape['data'] if self._mesh else 1
    begun, begin = [], 0
    while begin < len(order):
      longest = len(encoded[order[begin]])
      size = buckets.padded(longest, self.max_length, fine=True)
      count = 1 if alone else shards * (rows * self.max_length // size)
      chosen = order[begin : begin + count]
      batch = [encoded[i] for i in chosen]
      begun.append((chosen, self._embed_batch(batch, count, size)))
      begin += count
    return begun

  def _wait(self, begun: list[tuple[list[int], jax.Array]]) -> np.ndarray:
    count = sum(len(chosen) for chosen, _ in begun)
    out = np.empty((count, self.dim), np.float32)
    for chosen, vectors_BxD in begun:
      out[chosen] = np.asarray(vectors_BxD)[: len(chosen)]
    return out

  def _embed_batch(
    self, batch: list[list[int]], rows: int, size: int
  ) -> jax.Array:
    """Embeddings [rows, D] to come; those beyond the batch mean nothing."""
    self.usage.texts += len(batch)
    self.usage.batches += 1
    self.usage.tokens += sum(map(len, batch))
    self.usage.computed += rows * size
    pad = self._tokenizer.pad_token_id
    tokens_BxT = np.full((rows, size), pad, np.int32)
    length_B = np.ones(rows, np.int32)
    for row, ids in enumerate(batch):
      tokens_BxT[row, : len(ids)] = ids
      length_B[row] = len(ids)
    arrays = tokens_BxT, length_B
    if self._mesh:
      axis = 'data' if rows % self._mesh.shape['data'] == 0 else None
      where = jax.NamedSharding(self._mesh, sharding.P(axis))
      arrays = jax.device_put(arrays, where)
    return self._embed(self.params, *arrays)


def fingerprint(model, params, tokenizer, **more: int) -> str:
  """sha256 of weights, sizes, tokenizer and whatever else vectors depend on."""
  digest = hashlib.sha256()
  about = {
    'config': model.config.to_hf(),
    'tokenizer': tokenizer_lib.fingerprint(tokenizer),
    **more,
  }
  digest.update(json.dumps(about, sort_keys=True).encode())
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for path, leaf in sorted(
    leaves, key=lambda item: jax.tree_util.keystr(item[0])
  ):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(np.asarray(leaf)).data)
  return digest.hexdigest()


def load(
  path: str,
  revision: str = '',
  max_length: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> Embedder:
  """The embedder of a directory or hub id; `mesh` as of `Embedder`.

  Raises:
    ValueError: without a path, for a model that is no RoBERTa, or as
      `Embedder`.
  """
  if not path:
    raise ValueError(
      'embedder.path is empty: name a Hugging Face directory, a hub id or '
      'Orbax checkpoints of a RoBERTa'
    )
  model, params = checkpoint.load_model(
    path, revision=revision, role='embedder'
  )
  if model.model_type != 'roberta':
    raise ValueError(
      f'embedder.path={path!r} is a {model.model_type}, not a roberta'
    )
  tokenizer = tokenizer_lib.load(path, revision)
  return Embedder(model, params, tokenizer, max_length, mesh)
