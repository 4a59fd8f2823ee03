"""What trains while a model adapts: everything, a part of it, or LoRA.

Parameters are split into two trees, `frozen` and `trained`. The loss is a
function of `trained`; `combine` makes of both trees what a model takes. So
gradients, moments and a document's own copy are only as large as `trained`, and
documents that adapt at once share `frozen`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import re
from typing import Any
from typing import Self
import zlib

import jax
import jax.numpy as jnp

Params = dict[str, Any]

# The linear layers of GPT-2's and GPT-Neo's blocks.
TARGETS = {
  'attention': r'h\.\d+\.attn\.(c_attn|c_proj|attention\.(q|k|v|out)_proj)',
  'mlp': r'h\.\d+\.mlp\.(c_fc|c_proj)',
}
_MLP_OUT = re.compile(r'h\.\d+\.mlp\.c_proj\.(weight|bias)')
_KINDS = ('full', 'lora', 'mlp_out', 'last')


@dataclasses.dataclass(frozen=True)
class Trainable:
  """What trains.

  Attributes:
    kind: 'full': every parameter; 'mlp_out': weight and bias of the layer that
      leads out of each MLP; 'last': the last blocks; 'lora': two thin matrices
      beside each target, whose product is added to it (Hu et al., "LoRA", ICLR
      2022, section 4.1).
    last: blocks of 'last'; neither the final norm nor the head is one.
    rank: columns of LoRA's first matrix and rows of its second.
    alpha: the product of the two is scaled by alpha / rank.
    targets: of LoRA, keys of TARGETS.
  """

  kind: str = 'full'
  last: int = 0
  rank: int = 0
  alpha: float = 0.0
  targets: tuple[str, ...] = ()

  def __post_init__(self):
    if self.kind not in _KINDS:
      raise ValueError(f'kind {self.kind!r} is not one of {_KINDS}')
    if self.kind == 'last' and self.last < 1:
      raise ValueError(f'last:{self.last} trains no block; at least 1 must')
    if self.kind != 'lora':
      return
    if self.rank < 1:
      raise ValueError(f'lora_rank={self.rank} must be at least 1')
    if not self.alpha > 0:
      raise ValueError(f'lora_alpha={self.alpha} must be above 0')
    unknown = [target for target in self.targets if target not in TARGETS]
    if unknown or not self.targets:
      raise ValueError(
        f'lora_targets={",".join(self.targets)!r} must name one or more of '
        f'{", ".join(TARGETS)}'
      )

  @classmethod
  def parse(cls, trainable: str, rank: int, alpha: float, targets: str) -> Self:
    """From the keys `trainable` and `lora_*` of the config.

    Args:
      trainable: 'full', 'lora', 'mlp_out' or 'last:N'.
      rank: as the others, of 'lora' alone, and passed over by the rest.
      alpha: of the scale alpha / rank.
      targets: 'attention', 'mlp', or both with a comma between.

    Raises:
      ValueError: for any other value.
    """
    if trainable in ('full', 'mlp_out'):
      return cls(trainable)
    if trainable == 'lora':
      named = {name.strip() for name in targets.split(',')} - {''}
      return cls('lora', rank=rank, alpha=alpha, targets=tuple(sorted(named)))
    if found := re.fullmatch(r'last:(\d+)', trainable):
      return cls('last', last=int(found[1]))
    raise ValueError(
      f'trainable={trainable!r} is not full, lora, mlp_out or last:N'
    )


def split(
  params: Params, trainable: Trainable, seed: int
) -> tuple[Params, Params]:
  """(frozen, trained), which `combine` puts together again.

  No array is copied: each leaf of `params` is in one of the two trees, so take
  care not to donate it. LoRA adds `lora_a` [in, rank] and `lora_b` [rank, out]
  to `trained` and the constant `lora_scale` to `frozen`, beside the `weight`
  that they go with; `lora_b` begins at zero, and so the model as it was.

  Args:
    params: nested dicts whose dotted paths are the names in a Hugging Face
      checkpoint of GPT-2 or GPT-Neo ('full': of any model).
    trainable: what trains.
    seed: of `lora_a`, which is drawn from it and the layer's name alone.

  Raises:
    ValueError: more blocks than there are, or nothing that `trainable` names.
  """
  if trainable.kind == 'full':
    return {}, params
  if trainable.kind == 'lora':
    trained, scales = _lora(params, trainable, seed)
    frozen = combine(params, scales)
  else:
    trains = _MLP_OUT.fullmatch
    if trainable.kind == 'last':
      trains = _last_blocks(params, trainable.last).match
    trained = _select(params, trains)
    frozen = _select(params, lambda path: not trains(path))
  if not trained:
    raise ValueError(
      f'{trainable.kind!r} names layers of GPT-2 and GPT-Neo, but the '
      f'parameters are {", ".join(params)}'
    )
  return frozen, trained


def combine(frozen: Params, trained: Params) -> Params:
  """The parameters that a model takes; the leaves are those given.

  Raises:
    ValueError: a leaf is in both.
  """
  return _merge(frozen, trained, '')


def merge_lora(params: Params) -> Params:
  """`combine`d parameters with LoRA's products added to the weights.

  The tree is then that of the model without LoRA, and computes the same.
  Parameters without LoRA come back as they are.
  """
  merged = {
    name: merge_lora(node) if isinstance(node, Mapping) else node
    for name, node in params.items()
    if not name.startswith('lora_')
  }
  if 'lora_a' in params:
    product = jnp.matmul(
      params['lora_a'], params['lora_b'], precision='highest'
    )
    merged['weight'] = params['weight'] + params['lora_scale'] * product
  return merged


def _lora(
  params: Params, trainable: Trainable, seed: int
) -> tuple[Params, Params]:
  """(LoRA's matrices, LoRA's scales), beside the weights of the targets."""
  key = jax.random.key(seed)
  rank = trainable.rank

  def matrices(path, layer):
    inputs, outputs = layer['weight'].shape
    # As `peft` draws it: torch's kaiming_uniform_ with a = sqrt(5).
    bound = inputs**-0.5
    layer_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    lora_a = jax.random.uniform(
      layer_key, (inputs, rank), minval=-bound, maxval=bound
    )
    return {'lora_a': lora_a, 'lora_b': jnp.zeros((rank, outputs))}

  def scale(*_):
    return {'lora_scale': jnp.float32(trainable.alpha / rank)}

  pattern = re.compile('|'.join(TARGETS[name] for name in trainable.targets))
  return (
    _beside(params, pattern, matrices),
    _beside(params, pattern, scale),
  )


def _last_blocks(params: Params, last: int) -> re.Pattern:
  """What the paths of the last blocks begin with."""
  blocks = len(params.get('h', {}))
  if last > blocks:
    raise ValueError(f'last:{last} is more blocks than the model has, {blocks}')
  numbers = '|'.join(map(str, range(blocks - last, blocks)))
  return re.compile(rf'h\.({numbers})\.')


def _select(tree: Params, keep: Callable[[str], Any], prefix='') -> Params:
  """The leaves whose dotted path `keep` says yes to."""
  kept = {}
  for name, node in tree.items():
    path = prefix + name
    if isinstance(node, Mapping):
      if below := _select(node, keep, f'{path}.'):
        kept[name] = below
    elif keep(path):
      kept[name] = node
  return kept


def _beside(
  tree: Params,
  pattern: re.Pattern,
  leaves: Callable[[str, Params], Params],
  prefix: str = '',
) -> Params:
  """A tree of `leaves(path, layer)` at each layer whose path fits `pattern`."""
  made = {}
  for name, node in tree.items():
    path = prefix + name
    if not isinstance(node, Mapping):
      continue
    if pattern.fullmatch(path):
      made[name] = leaves(path, node)
    elif below := _beside(node, pattern, leaves, f'{path}.'):
      made[name] = below
  return made


def _merge(one: Params, other: Params, prefix: str) -> Params:
  merged = dict(one)
  for name, node in other.items():
    path = prefix + name
    if name not in merged:
      merged[name] = node
    elif isinstance(node, Mapping) and isinstance(merged[name], Mapping):
      merged[name] = _merge(merged[name], node, f'{path}.')
    else:
      raise ValueError(f'{path} is in both trees, frozen and trained')
  return merged
