"""Text embeddings: the masked mean of RoBERTa's last hidden states.

e(x) = sum_s a_s h_s / sum_s a_s with the attention mask a, over all tokens of
`<s> text </s>`, in float32 and without normalisation (Hardt & Sun 2024).
"""

from collections.abc import Sequence
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from tttnn import checkpoint
from tttnn.corpus import buckets
from tttnn.corpus import tokenizer as tokenizer_lib


class Embedder:
  """An embedding model with its tokenizer.

  Attributes:
    params: of the model.
    dim: components of an embedding.
    max_length: tokens of a text that count, the two special ones included.
  """

  def __init__(self, model, params, tokenizer, max_length: int = 0):
    """Takes a RoBERTa as `checkpoint.load_model` gives it.

    Args:
      model: a `tttnn.models.model.Model`.
      params: its parameters.
      tokenizer: with `<s>`, `</s>` and `<pad>`.
      max_length: text tokens that count; 0: all that the model has places for.

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
    self._tokenizer = tokenizer
    self._model = model
    self.params = params

    @jax.jit
    def embed(params, tokens_BxT, mask_BxT):
      hidden_BxTxD = model.hidden(params, tokens_BxT, mask_BxT)
      total_BxD = jnp.einsum(
        'btd,bt->bd',
        hidden_BxTxD.astype(jnp.float32),
        mask_BxT.astype(jnp.float32),
        precision='highest',
      )
      return total_BxD / jnp.sum(mask_BxT, axis=1, keepdims=True)

    self._embed = embed

  def __call__(self, texts: Sequence[str], rows: int = 1) -> np.ndarray:
    """Embeds texts in batches of `rows` of like length.

    An embedding depends on the text, its bucket of lengths and `rows` (to
    rounding), not on the other texts.

    Returns:
      float32 [len(texts), dim]; an empty text counts as one blank.
    """
    encoded = [
      self._wrap(ids)
      for ids in tokenizer_lib.encode(
        self._tokenizer, [text or ' ' for text in texts]
      )
    ]
    out = np.empty((len(texts), self.dim), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    # All batches are dispatched before the first result is waited for.
    pending = []
    for begin in range(0, len(order), rows):
      chosen = order[begin : begin + rows]
      batch = self._pad([encoded[i] for i in chosen], rows)
      pending.append((chosen, self._embed(self.params, *batch)))
    for chosen, vectors in pending:
      out[chosen] = np.asarray(vectors)[: len(chosen)]
    return out

  def fingerprint(self) -> str:
    """sha256 of what an embedding depends on: weights, sizes, tokenizer."""
    digest = hashlib.sha256()
    about = {
      'config': self._model.config.to_hf(),
      'tokenizer': tokenizer_lib.fingerprint(self._tokenizer),
      'max_length': self.max_length,
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    leaves = jax.tree_util.tree_leaves_with_path(self.params)
    for path, leaf in sorted(
      leaves, key=lambda item: jax.tree_util.keystr(item[0])
    ):
      digest.update(jax.tree_util.keystr(path).encode())
      digest.update(np.ascontiguousarray(np.asarray(leaf)).data)
    return digest.hexdigest()

  def _wrap(self, ids: list[int]) -> list[int]:
    tokenizer = self._tokenizer
    ids = ids[: self.max_length - 2]
    return [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]

  def _pad(
    self, batch: list[list[int]], rows: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask [rows, T]; a row that is not needed repeats the first."""
    batch = batch + batch[:1] * (rows - len(batch))
    size = buckets.padded(max(len(ids) for ids in batch), self.max_length)
    tokens = np.full((rows, size), self._tokenizer.pad_token_id, np.int32)
    mask = np.zeros((rows, size), np.int32)
    for row, ids in enumerate(batch):
      tokens[row, : len(ids)] = ids
      mask[row, : len(ids)] = 1
    return tokens, mask


def load(path: str, revision: str = '', max_length: int = 0) -> Embedder:
  """The embedder of a directory or hub id.

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
  return Embedder(model, jax.device_put(params), tokenizer, max_length)
