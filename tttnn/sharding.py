"""Where arrays lie on a mesh of devices: one table for the parameters.

A mesh has two axes. Documents or training rows spread over `data`; weights
spread over `model`, the first matrices of each half of a block by their outputs
and the last one by its inputs, so that a block needs two sums over `model`
(Shoeybi et al., "Megatron-LM", 2019, section 3). The table says where arrays
lie; XLA finds the communication, and results stay the same.

What costs more than that: GPT-2's c_attn holds query, key and value side by
side, so its parts move once they are cut apart, and so do heads where `model`
does not divide their number. A vocabulary that `model` does not divide, as the
published ones, lies over the width; XLA then keeps hidden states so, too, and
gathers them before each product: three times the traffic of a forward pass.
"""

from collections.abc import Sequence
import re
from typing import Any

import jax

P = jax.sharding.PartitionSpec
Params = dict[str, Any]

_T5 = r'(en|de)coder\.block\.\d+\.layer\.\d'
_COLUMN = (
  r'(h\.\d+\.(attn\.c_attn|attn\.attention\.[qkv]_proj|mlp\.c_fc)'
  r'|encoder\.layer\.\d+\.(attention\.self\.(query|key|value)'
  r'|intermediate\.dense)'
  rf'|{_T5}\.((Self|EncDec)Attention\.[qkv]|DenseReluDense\.wi(_[01])?)'
  r'|lm_head\.dense)'
)
_ROW = (
  r'(h\.\d+\.(attn\.c_proj|attn\.attention\.out_proj|mlp\.c_proj)'
  r'|encoder\.layer\.\d+\.(attention\.)?output\.dense'
  rf'|{_T5}\.((Self|EncDec)Attention\.o|DenseReluDense\.wo))'
)
_VOCABULARY = r'(wte|lm_head|shared|embeddings\.word_embeddings)'
_POSITION = r'(wpe|embeddings\.position_embeddings)'
_NORM = r'(.*\.)?(ln_[12f]|LayerNorm|(final_)?layer_norm)'

# (what the whole dotted path of a parameter fits, where it may lie). Of the
# places the first one counts whose divided dimension is a multiple of the axis;
# the last is always P(): a whole copy on each device.
TABLE: tuple[tuple[str, tuple[P, ...]], ...] = (
  (rf'{_COLUMN}\.(weight|lora_b)', (P(None, 'model'), P())),
  (rf'{_COLUMN}\.bias', (P('model'), P())),
  (rf'{_COLUMN}\.lora_a', (P(),)),
  (rf'{_ROW}\.(weight|lora_a)', (P('model', None), P())),
  (rf'{_ROW}\.(bias|lora_b)', (P(),)),
  (rf'({_COLUMN}|{_ROW})\.lora_scale', (P(),)),
  # Published vocabularies are odd (50257, 50265): the second place.
  (rf'{_VOCABULARY}\.weight', (P('model', None), P(None, 'model'), P())),
  (r'lm_head\.bias', (P('model'), P())),
  # Not over the width, or hidden states would follow and lie so, too.
  (rf'{_POSITION}\.weight', (P('model', None), P())),
  (r'embeddings\.token_type_embeddings\.weight', (P(),)),
  # A column to each head, as the queries and keys it goes with.
  (rf'{_T5}\..*relative_attention_bias\.weight', (P(None, 'model'), P())),
  (rf'{_NORM}\.(weight|bias)', (P(),)),
)


def make_mesh(
  data: int, model: int, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh with the axes `data` and `model`.

  Args:
    data: devices along `data`; 0: as many as `model` leaves over.
    model: devices along `model`; 0: as many as `data` leaves over.
    devices: all there are by default; the first data * model are used.

  Raises:
    ValueError: both are 0, or data * model does not divide the devices.
  """
  if devices is None:
    devices = jax.devices()
  count = len(devices)
  if min(data, model) < 0 or data == model == 0:
    raise ValueError(
      f'mesh.data={data} and mesh.model={model}: at most one may be 0, what is '
      'left over, and none below'
    )
  shape = (data or count // model, model or count // data)
  used = shape[0] * shape[1]
  if not used or count % used:
    raise ValueError(
      f'mesh.data={data} x mesh.model={model} does not divide the {count} '
      'devices'
    )
  # Auto: with Explicit axes the gather of embeddings raises inside vmap.
  kinds = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh(
    shape, ('data', 'model'), axis_types=kinds, devices=devices[:used]
  )


def local_mesh(section) -> jax.sharding.Mesh:
  """The mesh of the config's section `mesh` over devices of this process.

  Raises:
    ValueError: as `make_mesh`.
  """
  return make_mesh(section.data, section.model, jax.local_devices())


def from_config(section) -> jax.sharding.Mesh | None:
  """As `local_mesh`; None where it is one device."""
  mesh, count = local_mesh(section), jax.local_device_count()
  if mesh.size < count:
    print(
      f'computing on {mesh.size} of {count} devices; '
      '--config.mesh.data=0 takes all'
    )
  return mesh if mesh.size > 1 else None


def specs(params: Params, mesh: jax.sharding.Mesh) -> Params:
  """The PartitionSpec of each parameter by TABLE.

  Args:
    params: nested dicts of arrays or `jax.ShapeDtypeStruct`s, whole or a part;
      LoRA's leaves may be among them.
    mesh: with an axis `model`.

  Raises:
    ValueError: a parameter fits none or several rows of TABLE, or has other
      dimensions than its row.
  """
  size = mesh.shape['model']

  def spec(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    return _choose(name, tuple(leaf.shape), size)

  return jax.tree_util.tree_map_with_path(spec, params)


def shardings(params: Params, mesh: jax.sharding.Mesh) -> Params:
  """The NamedSharding of each parameter; arguments and errors as `specs`."""
  return named(specs(params, mesh), mesh)


def shard(params: Params, mesh: jax.sharding.Mesh) -> Params:
  """`params` on the devices of the mesh; arguments and errors as `specs`."""
  return jax.device_put(params, shardings(params, mesh))


def named(spec_tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """A tree of PartitionSpecs as NamedShardings."""
  return jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), spec_tree)


def batched(spec_tree: Any, *axes: str | None) -> Any:
  """PartitionSpecs for arrays with leading axes, as stacked copies have.

  Args:
    spec_tree: of the arrays without those axes.
    *axes: what each leading axis spreads over; None: nothing. Copies
      [documents, ...] take `batched(specs, 'data')`, copies [data, slots, ...]
      take `batched(specs, 'data', None)`.
  """
  return jax.tree.map(lambda spec: P(*axes, *spec), spec_tree)


def _choose(name: str, shape: tuple[int, ...], size: int) -> P:
  """The first place of the row of `name` that divides, over `size` devices."""
  rows = [row for row in TABLE if re.fullmatch(row[0], name)]
  if len(rows) != 1:
    patterns = ', '.join(row[0] for row in rows)
    raise ValueError(
      f'parameter {name} must fit one row of sharding.TABLE, and fits '
      f'{len(rows)}: {patterns or "none"}'
    )
  for spec in rows[0][1]:
    if len(spec) not in (0, len(shape)):
      raise ValueError(
        f'parameter {name} has the shape {shape}, but its row has {spec}'
      )
    dims = zip(spec, shape, strict=False)
    if all(axis is None or dim % size == 0 for axis, dim in dims):
      return spec
  raise ValueError(f'the row of parameter {name} does not end with P()')
