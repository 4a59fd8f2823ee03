"""The keys of a store of the outputs of pairs: states of a T5 or a causal LM.

The key of a token is a state of the model that has read the input and what
stands before it in the output (Khandelwal et al. 2021, arXiv 2010.00710,
section 2).
"""

from collections.abc import Iterable
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from tttnn import pair_model
from tttnn.corpus import pair_batches
from tttnn.datastore import embed
from tttnn.datastore import keys as keys_lib
from tttnn.datastore import pair_source


class PairKeys:
  """A model of pairs, for its keys: a `build_tokens.Model`.

  Attributes:
    kind: of the keys, one of `seq2seq.KEYS`.
    dim: components of a key.
    computed: the dtype that the model computes in.
    params: of the model, where it computes.
    usage: since it was made; pairs stand for texts there.
  """

  def __init__(
    self, model: pair_model.PairModel, kind: str, longest: tuple[int, int]
  ):
    """Takes a model and the kind of keys.

    Args:
      model: as `pair_model.load` gives it.
      kind: of the keys.
      longest: tokens of the longest input and output, see
        `pair_model.PairModel.longest`.

    Raises:
      ValueError: the model has no such keys.
    """
    self.kind = kind
    self.computed = model.model.dtype
    self.params = model.params
    self.usage = embed.Usage()
    self._model, self._longest = model, longest
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), bool)
    shape = jax.eval_shape(self._keys, self.params, ids, mask, ids)
    self.dim = shape.shape[-1]
    self._compiled = jax.jit(self._keys)

  def _keys(self, params, inputs_BxT, mask_BxT, outputs_BxU) -> jax.Array:
    return keys_lib.stored(
      self._model.model.keys(
        params, inputs_BxT, mask_BxT, outputs_BxU, self.kind
      )
    )

  def fingerprint(self) -> str:
    """sha256 of weights, config and tokenizer, see `store.check_embedder`."""
    return self._model.fingerprint()

  def blocks(
    self, blocks: Iterable[Iterable[pair_source.Piece]], rows: int = 0
  ) -> Iterator[np.ndarray]:
    """The keys of blocks of pieces, one piece behind another.

    What comes of a block depends (by rounding) on its pieces, `rows` and the
    longest texts there are, but not on other blocks.

    Args:
      blocks: as of `keys.in_turn`.
      rows: pairs of the longest texts that a device computes at once; of
        shorter ones as many more as have no more tokens. 0: what suits it.

    Returns:
      As of `keys.in_turn`; infinite where a component is not below
      `keys.LIMIT` in size.
    """
    rows = rows or max(1, keys_lib.at_once() // sum(self._longest))
    return keys_lib.in_turn(blocks, lambda block: self._dispatch(block, rows))

  def _dispatch(self, block: list[pair_source.Piece], rows: int):
    """(which pieces, their keys to come) of each batch."""
    mesh = self._model.mesh
    pairs = [(piece.source, piece.output) for piece in block]
    begun = []
    for batch in pair_batches.plan(
      [(len(source), len(output)) for source, output in pairs],
      self._longest,
      rows,
      mesh.shape['data'] if mesh else 1,
    ):
      shape, usage = batch.shape, self.usage
      usage.texts += len(batch.numbers)
      usage.batches += 1
      usage.computed += shape.rows * shape.outputs
      for number in batch.numbers:
        place = block[number].places
        usage.tokens += place.stop - place.start
      arrays = self._model.put(batch.arrays(pairs), shape.rows)
      keys_BxUxD = self._compiled(self.params, *arrays)
      keys_BxUxD.copy_to_host_async()
      begun.append((batch.numbers, keys_BxUxD))
    return begun
