"""The model of a run over pairs of texts: a T5, or a causal LM."""

import dataclasses

import jax

from tttnn import checkpoint
from tttnn import sharding
from tttnn.corpus import pairs as pairs_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import embed
from tttnn.models import continuation
from tttnn.models import seq2seq

_ROLES = {'seq2seq': 'seq2seq', 'causal': 'lm'}


@dataclasses.dataclass(frozen=True)
class PairModel:
  """A model that reads inputs and writes outputs, with what belongs to it.

  Attributes:
    model: its functions of (params, inputs, mask, targets).
    params: on the device, or spread over the mesh.
    tokenizer: its tokenizer.
    mesh: where it computes; None: one device.
  """

  model: seq2seq.Model | continuation.Model
  params: dict
  tokenizer: object
  mesh: jax.sharding.Mesh | None = None

  @property
  def start(self) -> int:
    """What decoding begins with; of a causal LM it stands for the input."""
    if isinstance(self.model, seq2seq.Model):
      return self.model.config.decoder_start_token_id
    return 0

  @property
  def end(self) -> int:
    return self.tokenizer.eos_token_id

  def fingerprint(self) -> str:
    """As of the keys of a store, see `store.check_embedder`."""
    return embed.fingerprint(self.model, self.params, self.tokenizer)

  def put(self, arrays: tuple, rows: int) -> tuple:
    """Arrays of a batch on the mesh, their rows over `data`."""
    if not self.mesh:
      return arrays
    axis = 'data' if rows % self.mesh.shape['data'] == 0 else None
    where = jax.NamedSharding(self.mesh, sharding.P(axis))
    return jax.device_put(arrays, where)

  def longest(
    self, pairs: pairs_lib.Pairs, max_output: int = 0
  ) -> tuple[int, int]:
    """Tokens of the longest input and output that are read.

    Args:
      pairs: those of the run.
      max_output: of an output that is written, in place of those there are.

    Raises:
      ValueError: pairs of another tokenizer or kind of model, or that do not
        fit the context of a causal LM.
    """
    pairs.check(self.tokenizer)
    causal = isinstance(self.model, continuation.Model)
    if causal != (pairs.kind == 'causal'):
      raise ValueError(
        f'{pairs.path} was made for a {pairs.kind} model, and this one is '
        f'{"causal" if causal else "seq2seq"}: tokenize again'
      )
    inputs, outputs = (
      min(pairs.counts[side]['max'], pairs.limits[f'max_{side}'])
      for side in ('input', 'output')
    )
    outputs = max_output or outputs
    # The last token of an output is not read.
    if causal and inputs + outputs - 1 > self.model.lm.context:
      raise ValueError(
        f'{pairs.path} has an input of {inputs} tokens, which with an output '
        f'of {outputs} exceeds the {self.model.lm.context} positions of the '
        'model: tokenize with a smaller tokenize.max_input or .max_output, or '
        'write fewer generate.max_tokens'
      )
    return inputs, outputs


def load(
  path: str,
  kind: str,
  *,
  revision: str = '',
  dtype: str = 'float32',
  mesh: jax.sharding.Mesh | None = None,
) -> PairModel:
  """The model of a directory, a hub id or Orbax checkpoints.

  Args:
    path: of the model.
    kind: of pairs, see `corpus.pairs`.
    revision: of a hub id.
    dtype: what it computes in.
    mesh: pairs spread over `data`, weights over `model`; None: one device.

  Raises:
    ValueError: without a path, for a model of another kind, or as
      `checkpoint.load_model`.
  """
  if not path:
    raise ValueError(
      'model.path is empty: name the Hugging Face directory, hub id or Orbax '
      'checkpoints of a T5 or a causal LM'
    )
  model, params = checkpoint.load_model(
    path, revision=revision, dtype=dtype, role=_ROLES[kind]
  )
  if kind == 'causal':
    model = continuation.Model(model)
  tokenizer = tokenizer_lib.load(path, revision)
  if tokenizer.eos_token_id is None or len(tokenizer) > model.vocab_size:
    raise ValueError(
      f'the tokenizer has {len(tokenizer)} ids and end-of-text id '
      f'{tokenizer.eos_token_id}, the model has {model.vocab_size} ids'
    )
  params = sharding.shard(params, mesh) if mesh else jax.device_put(params)
  return PairModel(model, params, tokenizer, mesh)
