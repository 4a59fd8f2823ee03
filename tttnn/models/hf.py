"""Hugging Face checkpoint directories <-> params, strict both ways.

A directory holds config.json and model.safetensors, or shards of it with
model.safetensors.index.json. The names of its tensors are the paths of the
params joined by dots, after the base model's prefix (`transformer.`, say)
where there is one; `torch.nn.Linear` stores [out, in], params [in, out].
"""

from collections.abc import Iterator
from collections.abc import Mapping
import json
import os
import pathlib
import re
import tempfile
from typing import Any

import huggingface_hub
import jax
import numpy as np
import safetensors
import safetensors.numpy

from tttnn.models import model as model_lib
from tttnn.models import seq2seq
from tttnn.models import t5

Model = model_lib.Model | seq2seq.Model

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
HEAD = 'lm_head.'

_HUB_ID = re.compile(r'[\w-][\w.-]*(/[\w-][\w.-]*)?')


def resolve(path: str, revision: str = '') -> pathlib.Path:
  """The local directory of a checkpoint or tokenizer.

  Args:
    path: a local directory, or the id of a model on the Hugging Face hub, which
      is downloaded (configuration, tokenizer and safetensors files) or found in
      the local cache.
    revision: branch, tag, commit or refs/pr/N on the hub; '' = the main branch.

  Raises:
    ValueError: no such directory and no such model on the hub, or a revision of
      a local directory.
  """
  local = pathlib.Path(path).expanduser()
  if local.is_dir():
    if revision:
      raise ValueError(
        f'revision {revision!r} goes with a hub id, but {path} is a directory'
      )
    return local
  if not _HUB_ID.fullmatch(path):
    raise ValueError(f'there is no directory {path}')
  try:
    snapshot = huggingface_hub.snapshot_download(
      path,
      revision=revision or None,
      allow_patterns=['*.json', '*.safetensors', '*.txt', '*.model'],
      ignore_patterns=['*/*'],
    )
  except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
    at = f' at revision {revision!r}' if revision else ''
    raise ValueError(
      f'{path!r} is no directory here, and fetching it{at} from the hub '
      f'failed: {error}'
    ) from error
  return pathlib.Path(snapshot)


def load(
  path: str | os.PathLike,
  *,
  revision: str = '',
  dtype: str = 'float32',
  role: str = 'lm',
) -> tuple[Model, model_lib.Params]:
  """Reads a checkpoint.

  Args:
    path: directory or hub id, as `resolve` takes it.
    revision: as `resolve` takes it.
    dtype: what the model computes in, 'float32' or 'bfloat16'.
    role: 'lm' needs the vocabulary head; 'embedder' leaves it out of the params
      whether it is there or not; 'seq2seq' is for encoder-decoders, which the
      others refuse.

  Returns:
    The model and its params, float32 NumPy arrays (put them on devices once).

  Raises:
    ValueError: what `resolve` refuses; an architecture or an option that is not
      implemented; tensors that are missing, extra, misshapen, not floating
      point, or unequal though tied; all of them named.
  """
  directory = resolve(os.fspath(path), revision)
  model = read_model(directory, dtype, role)
  arch = model.architecture
  shapes = _shapes(model)
  tensors = {}
  for full_name, array in _read(directory):
    name = full_name.removeprefix(arch.PREFIX)
    if name in tensors:
      raise ValueError(f'{directory}: {name} is there twice')
    if re.fullmatch(arch.IGNORED, name) and name not in shapes:
      continue
    array = _float32(array, f'{directory}: {name}')
    if re.fullmatch(arch.TRANSPOSED, name) and array.ndim == 2:
      array = np.ascontiguousarray(array.T)
    tensors[name] = array
  if role == 'embedder':
    tensors = _without_head(tensors)
    shapes = _without_head(shapes)
  for name, source in arch.TIED.items():
    if name in tensors and name not in shapes:
      tied = tensors.pop(name)
      if not np.array_equal(tensors.setdefault(source, tied), tied):
        raise ValueError(f'{directory}: {name} differs from {source}, its tie')
  _check(str(directory), tensors, shapes)
  return model, _nest(tensors)


def role_of(path: str, revision: str = '') -> str:
  """The role of a language model: 'seq2seq' of a T5, 'lm' of any other.

  Raises:
    ValueError: what `resolve` refuses, or a directory without config.json.
  """
  values = _config(resolve(path, revision))
  return 'seq2seq' if values.get('model_type') == 't5' else 'lm'


def read_model(directory: pathlib.Path, dtype: str, role: str) -> Model:
  """The Model of a directory's config.json; arguments as of `load`.

  Raises:
    ValueError: there is none, it asks for what is not implemented, or the model
      is not for that role.
  """
  if role not in ('lm', 'embedder', 'seq2seq'):
    raise ValueError(f'role {role!r} is not lm, embedder or seq2seq')
  values = _config(directory)
  path, model_type = directory / CONFIG, values.get('model_type')
  if model_type != 't5' and model_type not in model_lib.ARCHITECTURES:
    raise ValueError(
      f'{path}: model_type {model_type!r} is not implemented; there are '
      f'{sorted([*model_lib.ARCHITECTURES, "t5"])}'
    )
  if (model_type == 't5') != (role == 'seq2seq'):
    raise ValueError(
      f'{path}: a {model_type} is not for the role {role!r}; '
      "t5 alone is for 'seq2seq'"
    )
  if model_type == 't5':
    return seq2seq.Model(t5.Config.from_hf(values), dtype)
  config = model_lib.ARCHITECTURES[model_type].Config.from_hf(values)
  return model_lib.Model(model_type, config, dtype)


def save(
  directory: str | os.PathLike,
  model: Model,
  params: model_lib.Params,
  *,
  max_shard_bytes: float = 5e9,
) -> None:
  """Writes config.json and the weights, float32, as `transformers` reads them.

  The files are written apart and moved into `directory`, config.json last: a
  directory without one is no checkpoint, so a crash never leaves a mixture.
  Other files, such as the tokenizer's, stay.

  Args:
    directory: made if it is not there; a checkpoint in it is replaced.
    model: the architecture and sizes.
    params: as `Model.init` makes them, with the head or without.
    max_shard_bytes: above this the weights are split into several files.

  Raises:
    ValueError: params that are not those of `model`.
  """
  arch = model.architecture
  tensors = _flatten(params)
  has_head = any(name.startswith(HEAD) for name in tensors)
  shapes = _shapes(model)
  needs_head = any(name.startswith(HEAD) for name in shapes)
  base_only = needs_head and not has_head
  _check('params', tensors, _without_head(shapes) if base_only else shapes)

  named = {}
  for name, array in tensors.items():
    array = np.asarray(jax.device_get(array), np.float32)
    if re.fullmatch(arch.TRANSPOSED, name):
      array = array.T
    if not base_only and not name.startswith(HEAD):
      name = arch.PREFIX + name
    named[name] = np.ascontiguousarray(array)
  config = model.config.to_hf()
  config['architectures'] = [arch.ARCHITECTURES[1 if base_only else 0]]

  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory, prefix='.saving-') as tmp:
    tmp = pathlib.Path(tmp)
    _write(tmp, named, max_shard_bytes)
    (directory / CONFIG).unlink(missing_ok=True)
    for old in directory.glob('model*.safetensors*'):
      old.unlink()
    for new in tmp.iterdir():
      os.replace(new, directory / new.name)
    (tmp / CONFIG).write_text(json.dumps(config, indent=2) + '\n')
    os.replace(tmp / CONFIG, directory / CONFIG)


def _config(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / CONFIG
  if not path.is_file():
    raise ValueError(f'{directory} holds no {CONFIG}: it is no checkpoint')
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


def _read(directory: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
  """(name, array) of every tensor of a checkpoint, as stored."""
  if (directory / WEIGHTS).is_file():
    files = [WEIGHTS]
  elif (directory / INDEX).is_file():
    index = json.loads((directory / INDEX).read_text())
    files = sorted(set(index['weight_map'].values()))
  else:
    raise ValueError(
      f'{directory} holds neither {WEIGHTS} nor {INDEX}; pytorch_model.bin is '
      'not read: name a revision that has safetensors (on the hub often '
      'refs/pr/N), or load the model with transformers and save_pretrained it'
    )
  for file in files:
    path = directory / file
    if not path.is_file():
      raise ValueError(f'{directory}: {INDEX} names {file}, which is not there')
    try:
      with safetensors.safe_open(path, framework='numpy') as reader:
        for name in reader.keys():  # noqa: SIM118 (it is no mapping)
          yield name, reader.get_tensor(name)
    except safetensors.SafetensorError as error:
      raise ValueError(f'{path} cannot be read: {error}') from error


def _float32(array: np.ndarray, name: str) -> np.ndarray:
  if array.dtype.name not in ('float32', 'float16', 'bfloat16'):
    raise ValueError(f'{name} is {array.dtype}, not a float of up to 32 bits')
  return array.astype(np.float32)


def _write(
  directory: pathlib.Path,
  tensors: Mapping[str, np.ndarray],
  max_shard_bytes: float,
) -> None:
  """Writes one safetensors file, or shards by order of name and an index."""
  shards = [{}]
  size = 0
  for name in sorted(tensors):
    if shards[-1] and size + tensors[name].nbytes > max_shard_bytes:
      shards.append({})
      size = 0
    shards[-1][name] = tensors[name]
    size += tensors[name].nbytes
  metadata = {'format': 'pt'}  # transformers asks for it.
  if len(shards) == 1:
    safetensors.numpy.save_file(shards[0], directory / WEIGHTS, metadata)
    return
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    safetensors.numpy.save_file(shard, directory / file, metadata)
    weight_map |= dict.fromkeys(shard, file)
  total = sum(array.nbytes for array in tensors.values())
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (directory / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def _shapes(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
  """Every parameter's name and shape."""
  return _flatten(jax.eval_shape(model.init, jax.random.key(0)))


def _without_head(tensors: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in tensors.items() if not k.startswith(HEAD)}


def _check(
  where: str, tensors: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
  """Raises one ValueError that names all missing, extra, misshapen tensors."""
  faults = []
  if missing := sorted(expected.keys() - tensors.keys()):
    faults.append(f'missing: {", ".join(missing)}')
  if extra := sorted(tensors.keys() - expected.keys()):
    faults.append(f'extra: {", ".join(extra)}')
  misshapen = [
    f'{name} is {tuple(tensors[name].shape)} and must be {expected[name].shape}'
    for name in sorted(tensors.keys() & expected.keys())
    if tuple(tensors[name].shape) != expected[name].shape
  ]
  if misshapen:
    faults.append(f'misshapen: {", ".join(misshapen)}')
  if faults:
    raise ValueError(f'{where} does not fit the model; {"; ".join(faults)}')


def _flatten(params: model_lib.Params) -> dict[str, Any]:
  """{'h.0.ln_1.weight': array, ...} of nested params."""
  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  return {'.'.join(key.key for key in path): leaf for path, leaf in leaves}


def _nest(tensors: Mapping[str, np.ndarray]) -> model_lib.Params:
  """The inverse of `_flatten`."""
  params: model_lib.Params = {}
  for name, array in tensors.items():
    *parents, leaf = name.split('.')
    node = params
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = array
  return params
