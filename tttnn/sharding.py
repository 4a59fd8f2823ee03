"""Where arrays lie on a mesh of devices: one table for the parameters.

A mesh has two axes. Documents or training rows spread over `data`; weights
spread over `model`, the first matrices of each half of a block by their outputs
and the last one by its inputs, so that a block needs two sums over `model`
(Shoeybi et al., "Megatron-LM", 2019, section 3). The table says where arrays
lie; XLA finds the communication, and results stay the same. With FSDP, which is
for training, weights and the optimizer's moments spread over `data`, too.

What costs more than that: GPT-2's c_attn holds query, key and value side by
side, so its parts move once they are cut apart, and so do heads where `model`
does not divide their number. A vocabulary that `model` does not divide, as the
published ones, lies over the width; XLA then keeps hidden states so, too, and
gathers them before each product: three times the traffic of a forward pass.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import optax

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

_BOTH = ('model', 'data')

# (what the whole dotted path of a parameter fits, where it may lie, where it
# would rather lie under FSDP). Of the places the first one counts whose divided
# dimensions are multiples of the axes, those of FSDP before the others, whose
# last is always P(): a whole copy on each device.
TABLE: tuple[tuple[str, tuple[P, ...], tuple[P, ...]], ...] = (
  (
    rf'{_COLUMN}\.(weight|lora_b)',
    (P(None, 'model'), P()),
    (P('data', 'model'), P(None, _BOTH)),
  ),
  (rf'{_COLUMN}\.bias', (P('model'), P()), (P(_BOTH),)),
  (rf'{_COLUMN}\.lora_a', (P(),), (P('data', None),)),
  (
    rf'{_ROW}\.(weight|lora_a)',
    (P('model', None), P()),
    (P('model', 'data'), P(_BOTH, None)),
  ),
  (rf'{_ROW}\.bias', (P(),), (P(_BOTH),)),
  (rf'{_ROW}\.lora_b', (P(),), (P(None, 'data'),)),
  (rf'({_COLUMN}|{_ROW})\.lora_scale', (P(),), ()),
  # Published vocabularies are odd (50257, 50265): the last places.
  (
    rf'{_VOCABULARY}\.weight',
    (P('model', None), P(None, 'model'), P()),
    (P('model', 'data'), P(None, _BOTH)),
  ),
  (r'lm_head\.bias', (P('model'), P()), (P(_BOTH),)),
  # Not over the width, or hidden states would follow and lie so, too; under
  # FSDP they do not see it.
  (
    rf'{_POSITION}\.weight',
    (P('model', None), P()),
    (P(_BOTH, None), P(None, _BOTH)),
  ),
  (
    r'embeddings\.token_type_embeddings\.weight',
    (P(),),
    (P(None, _BOTH),),
  ),
  # A column to each head, as the queries and keys it goes with.
  (
    rf'{_T5}\..*relative_attention_bias\.weight',
    (P(None, 'model'), P()),
    (P('data', 'model'),),
  ),
  (rf'{_NORM}\.(weight|bias)', (P(),), (P(_BOTH),)),
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
    ValueError: as `make_mesh`, or the section wants FSDP.
  """
  if section.fsdp:
    raise ValueError(
      'mesh.fsdp=True is for training: there rows spread over mesh.data, here '
      'copies of the weights do'
    )
  return make_mesh(section.data, section.model, jax.local_devices())


def for_training(section) -> jax.sharding.Mesh | None:
  """The mesh of the config's section `mesh`, which may want FSDP.

  Over the devices of all processes. None: it is one device.

  Raises:
    ValueError: as `make_mesh`, there is nothing for FSDP to spread over, or
      devices of several processes are left out.
  """
  mesh = make_mesh(section.data, section.model, jax.devices())
  if jax.process_count() > 1 and mesh.size < jax.device_count():
    raise ValueError(
      f'mesh.data={section.data} x mesh.model={section.model} leaves out some '
      f'of the {jax.device_count()} devices of {jax.process_count()} '
      'processes: --config.mesh.data=0 takes all'
    )
  if section.fsdp and mesh.shape['data'] == 1:
    raise ValueError(
      f'mesh.fsdp=True spreads weights over mesh.data, which is 1 of '
      f'{jax.device_count()} devices here: --config.mesh.data=0 takes all'
    )
  return _told(mesh, jax.device_count())


def from_config(section) -> jax.sharding.Mesh | None:
  """As `local_mesh`; None where it is one device."""
  return _told(local_mesh(section), jax.local_device_count())


def _told(mesh: jax.sharding.Mesh, count: int) -> jax.sharding.Mesh | None:
  """None where it is one device; says how many of `count` are used."""
  if mesh.size < count:
    print(
      f'computing on {mesh.size} of {count} devices; '
      '--config.mesh.data=0 takes all'
    )
  return mesh if mesh.size > 1 else None


def specs(
  params: Params, mesh: jax.sharding.Mesh, *, fsdp: bool = False
) -> Params:
  """The PartitionSpec of each parameter by TABLE.

  Args:
    params: nested dicts of arrays or `jax.ShapeDtypeStruct`s, whole or a part;
      LoRA's leaves may be among them.
    mesh: with the axes `data` and `model`.
    fsdp: whether they are to spread over `data`, too, for steps that begin with
      `gathered`.

  Raises:
    ValueError: a parameter fits none or several rows of TABLE, or has other
      dimensions than its row.
  """

  def spec(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    return _choose(name, tuple(leaf.shape), mesh.shape, fsdp)

  return jax.tree_util.tree_map_with_path(spec, params)


def shardings(
  params: Params, mesh: jax.sharding.Mesh, *, fsdp: bool = False
) -> Params:
  """The NamedSharding of each parameter; arguments and errors as `specs`."""
  return named(specs(params, mesh, fsdp=fsdp), mesh)


def shard(
  params: Params, mesh: jax.sharding.Mesh, *, fsdp: bool = False
) -> Params:
  """`params` on the devices of the mesh; arguments and errors as `specs`.

  If these belong to several processes, all call this with the same values, and
  each keeps its part.
  """
  places = shardings(params, mesh, fsdp=fsdp)
  if not mesh.is_multi_process:
    return jax.device_put(params, places)
  return jax.tree.map(_from_whole, params, places)


def gathered(params: Params, mesh: jax.sharding.Mesh) -> Params:
  """Parameters that lie by FSDP as the table has them without it.

  To be traced as the first thing of a loss: each device then gathers a weight
  where it is used, and keeps its own part of the gradient's sum
  (Rajbhandari et al., "ZeRO", 2020, section 5).
  """
  return jax.lax.with_sharding_constraint(params, shardings(params, mesh))


def optimizer_specs(
  optimizer: optax.GradientTransformation, params: Params, spec_tree: Params
) -> Any:
  """Where an optimizer's state lies: moments as their parameters.

  Args:
    optimizer: whose state it is.
    params: arrays or shapes.
    spec_tree: their PartitionSpecs.
  """
  return optax.tree_map_params(
    optimizer,
    lambda _, spec: spec,
    jax.eval_shape(optimizer.init, params),
    spec_tree,
    transform_non_params=lambda _: P(),
  )


def own_rows(mesh: jax.sharding.Mesh, count: int) -> np.ndarray:
  """The rows of a batch that lie on devices of this process, ascending.

  Those it has to read, of `count` that spread over `data`.
  """
  rows = jax.NamedSharding(mesh, P('data'))
  own = np.zeros(count, bool)
  for (place,) in rows.addressable_devices_indices_map((count,)).values():
    own[place] = True
  return np.flatnonzero(own)


def from_own_rows(tree: Any, mesh: jax.sharding.Mesh, count: int) -> Any:
  """Arrays [count, ...] spread over `data`, of each process's rows.

  Args:
    tree: of arrays [own, ...], the rows `own_rows(mesh, count)`.
    mesh: over devices of any processes.
    count: of all rows.

  Raises:
    ValueError: an array has another number of rows.
  """
  own = own_rows(mesh, count)
  rows = jax.NamedSharding(mesh, P('data'))

  def spread(x):
    if len(x) != len(own):
      raise ValueError(
        f'{len(x)} rows, but {len(own)} of the {count} rows of the batch lie '
        f'on devices of process {jax.process_index()}'
      )

    def part(index):
      begin, end, _ = index[0].indices(count)
      return x[slice(*np.searchsorted(own, (begin, end)))]

    return jax.make_array_from_callback((count, *x.shape[1:]), rows, part)

  return jax.tree.map(spread, tree)


def to_host(tree: Any) -> Any:
  """Whole NumPy arrays, to write; all processes call it."""
  return jax.tree.map(
    lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree
  )


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


def _from_whole(x, place: jax.NamedSharding) -> jax.Array:
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, place, lambda index: x[index])


def _choose(
  name: str, shape: tuple[int, ...], sizes: Mapping[str, int], fsdp: bool
) -> P:
  """The first place of the row of `name` that divides over these axes."""
  rows = [row for row in TABLE if re.fullmatch(row[0], name)]
  if len(rows) != 1:
    patterns = ', '.join(row[0] for row in rows)
    raise ValueError(
      f'parameter {name} must fit one row of sharding.TABLE, and fits '
      f'{len(rows)}: {patterns or "none"}'
    )
  _, places, spread = rows[0]
  for spec in (*spread, *places) if fsdp else places:
    if len(spec) not in (0, len(shape)):
      raise ValueError(
        f'parameter {name} has the shape {shape}, but its row has {spec}'
      )
    if all(
      dim % _parts(axes, sizes) == 0
      for axes, dim in zip(spec, shape, strict=False)
    ):
      return spec
  raise ValueError(f'the row of parameter {name} does not end with P()')


def _parts(axes: str | tuple[str, ...] | None, sizes: Mapping[str, int]) -> int:
  """Into how many parts a dimension is divided over these axes."""
  if axes is None:
    return 1
  names = (axes,) if isinstance(axes, str) else axes
  return math.prod(sizes[name] for name in names)
