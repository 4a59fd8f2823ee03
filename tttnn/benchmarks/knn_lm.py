"""The `knn_lm` benchmark: a store of tokens, made, and used for evaluation.

The model has random weights and the shape of GPT-2, or is that of model.path;
the texts are those of `benchmark.texts` or of the built-in corpus. Parts, each
in turns with medians, numbers compared first:

    build      tokenizing, making and writing keys beside the forward pass alone
    speed      evaluation by the model alone, with neighbours that are cached,
               and with searches, whose recall is measured
    retomaton  perplexity over the share of searches that pointers save

What is made stays in the work directory, and so does what a part has found, in
knn_lm/PART.json: a rerun goes on with what is not there.
"""

from collections.abc import Callable
import dataclasses
import json
import os

from tttnn import device
from tttnn import files
from tttnn.benchmarks import bench
from tttnn.benchmarks import engine
from tttnn.benchmarks import knn_build
from tttnn.benchmarks import knn_saved
from tttnn.benchmarks import knn_speed
from tttnn.benchmarks import knn_world
from tttnn.benchmarks import peak

PARTS: dict[str, Callable[[knn_world.World], dict]] = {
  'build': knn_build.measure,
  'speed': knn_speed.measure,
  'retomaton': knn_saved.measure,
}
_NEED_STORE = ('speed', 'retomaton')
# Guesses, for `cost` alone: the share of the matmul peak that is reached, and
# tokens of a text.
_SHARE, _TOKENS = 0.7, 500

_ALL = float('inf')
_search = knn_world.Search
SHAPES = {
  # As the published GPT-2 small.
  'full': knn_world.Shape(
    layers=12,
    width=768,
    heads=12,
    context=1024,
    entries=500_000,
    part=12_288,
    scored=4096,
    neighbors=64,
    searches=(
      *(_search(f'IVF256,PQ96x4fs;nprobe={n}') for n in (16, 64, 128)),
      _search('PQ64x4fs'),
      _search('PQ96x4fs'),
      _search('PQ96x4fs', 2),
      _search('PQ128x4fs', 2),
    ),
    clusters=2500,
    max_knns=256,
    min_knns=(1, 4, 16, 64, _ALL),
  ),
  # Under a minute.
  'middle': knn_world.Shape(
    layers=4,
    width=256,
    heads=4,
    context=512,
    entries=20_000,
    part=4096,
    scored=2048,
    neighbors=64,
    searches=(
      _search('IVF64,PQ32x4fs;nprobe=16'),
      _search('PQ32x4fs'),
      _search('PQ32x4fs', 2),
    ),
    clusters=100,
    max_knns=256,
    min_knns=(1, 16, _ALL),
  ),
  # For a look at whether everything runs.
  'mini': knn_world.Shape(
    layers=2,
    width=32,
    heads=2,
    context=64,
    entries=3000,
    part=512,
    scored=1200,
    neighbors=8,
    searches=(_search('IVF16,PQ8x4;nprobe=2'), _search('PQ8x4fs', 2)),
    clusters=30,
    max_knns=32,
    min_knns=(1, _ALL),
  ),
}


def measure(config, workdir: str) -> dict:
  """What the parts have found, these and those of earlier runs.

  Raises:
    ValueError: for an unknown shape or part, texts that are too few, another
      benchmark in the work directory, or sides that come to different numbers.
  """
  if not workdir:
    raise ValueError('benchmark needs --workdir, where the store goes')
  shape = bench.parse_one('knn_lm', config.benchmark.shapes, SHAPES)
  parts = _parts(config)
  device.keep_compiled_programs()
  world = knn_world.prepare(config, workdir, shape)
  found, made = {}, {}
  for name, part in PARTS.items():
    path = world.directory / f'{name}.json'
    if name in parts and name in _NEED_STORE:
      made = knn_world.make_store(world)
    if name in parts and not path.exists():
      knn_world.say(f'part {name}')
      content = json.dumps(part(world), indent=2) + '\n'
      files.write_atomic(os.fspath(path), content)
    if path.exists():
      found[name] = json.loads(path.read_text())
  min_knns = [f'{number:g}' for number in shape.min_knns]  # Of them one is inf.
  return {
    'shape': dataclasses.asdict(shape) | {'min_knns': min_knns},
    'device': engine.Side().device(),
    'model': config.model.path or 'random weights',
    'made': made,
    'parts': found,
  }


def cost(config) -> dict:
  """What `estimate.show` prints, guessed from the useful operations."""
  shape = bench.parse_one('knn_lm', config.benchmark.shapes, SHAPES)
  parts, repeats = _parts(config), config.benchmark.repeats
  tokens = 0
  if 'build' in parts:
    tokens += 2 * (1 + repeats) * shape.part
  if {*parts} & {*_NEED_STORE}:
    tokens += shape.entries
  # Twice, as a search takes about as long as the model.
  if 'speed' in parts:
    runs = 3 + 3 * (1 + len(shape.searches))
    tokens += (1 + repeats) * runs * shape.scored
  if 'retomaton' in parts:
    tokens += 2 * 2 * len(shape.min_knns) * shape.scored // 2
  operations = 2.0 * 12 * shape.layers * shape.width**2 * tokens
  return {
    'documents': (shape.entries + shape.scored) // _TOKENS,
    'steps': tokens,
    'memory': 4 * shape.entries * shape.width,
    'seconds': 60 + operations / (_SHARE * peak.matmul()),
  }


def _parts(config) -> list[str]:
  """Those that `benchmark.parts` names; all where it is empty."""
  spec = config.benchmark.parts
  if not spec:
    return [*PARTS]
  names = [name.strip() for name in spec.split(',')]
  for name in names:
    if name not in PARTS:
      raise ValueError(
        f'benchmark.parts={spec!r}: {name!r} is none of {", ".join(PARTS)}'
      )
  return names
