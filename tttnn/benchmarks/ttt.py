"""This engine beside the reference's loop in PyTorch: adapting to neighbours.

Both sides get the same model, documents and neighbours as token ids, step on
every window, score around every neighbour, and must come to the same
log-likelihoods before anything is timed.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses

import numpy as np

from tttnn.benchmarks import bench as bench_lib
from tttnn.benchmarks import compare
from tttnn.benchmarks import process
from tttnn.benchmarks import sides as sides_lib
from tttnn.benchmarks import workload

_COUNTS = (1, 2, 4, 8)  # Neighbours, and windows, that cost is measured over.
_SCALED_DOCUMENTS = (1, 16)  # On CPU and on accelerators.
_SCALED_TOKENS = 128  # Of a window, at most.
# Guesses, for `cost` alone: the share of the matmul peak that a side reaches on
# accelerators and on CPU, and seconds until it has started and compiled.
_SPEEDS = (
  {bench_lib.ENGINE: 0.3, bench_lib.PLAIN: 0.02, bench_lib.BEST: 0.1},
  {bench_lib.ENGINE: 0.5, bench_lib.PLAIN: 0.35},
)
_START = 20.0


def measure(config, workdir: str) -> dict:
  """Everything; what comes of it is JSON.

  Raises:
    ValueError: for settings that a rival does not know, a rival that fails, or
      numbers that differ.
  """
  shapes = bench_lib.parse(config.benchmark.shapes, workload.SHAPES)
  with sides_lib.engine_process() as probe:
    bench = sides_lib.open_bench(config, workdir, probe)
    bench.say_where()
    for name, shape in shapes.items():
      probe.ask(
        call='write', directory=bench.model(shape), shape=name, seed=bench.seed
      )
  trials = sides_lib.choose_rival(bench, shapes)
  measured = {
    name: measure_shape(bench, name, shape) for name, shape in shapes.items()
  }
  # Of the last shape, which should be a small one.
  scaling = measure_scaling(bench, *list(shapes.items())[-1])
  return {
    **bench.result(trials),
    'settings': bench.settings,
    'shapes': measured,
    'scaling': scaling,
  }


def measure_shape(
  bench: sides_lib.Bench, name: str, shape: workload.Shape
) -> dict:
  """Every side on the documents of a shape."""
  path, lengths = bench.documents(name), bench.lengths(shape)
  count, neighbors = len(lengths), len(lengths[0][1])
  documents = workload.write_documents(path, shape, lengths, bench.seed)
  bench.say(f'{name}: {count} documents, {neighbors} neighbours each')
  timed = time_sides(bench, name, shape, documents)
  operations = workload.operations(shape, documents)
  peak = float(np.median(timed['matmul']))
  measured = {
    side: compare.summarise_side(samples, operations, peak, count, neighbors)
    for side, samples in timed.pop('samples').items()
  }
  ours = measured[bench_lib.ENGINE]['median_seconds']
  ratios = {
    side: one['median_seconds'] / ours for side, one in measured.items()
  }
  for side, one in measured.items():
    bench.say(
      f'{name}: {side}: {one["seconds_per_neighbor"]:.4f} s a neighbour, '
      f'{ratios[side]:.2f} times ours, '
      f'{one["share_of_peak"]["all"]:.0%} of the matmul peak'
    )
  del ratios[bench_lib.ENGINE]
  return {
    'shape': dataclasses.asdict(shape),
    'params': shape.params,
    'documents': count,
    'neighbors': neighbors,
    'operations': dataclasses.asdict(operations),
    'matmul_peak': peak,
    'sides': measured,
    'ratios': ratios,
    **timed,
  }


def time_sides(
  bench: sides_lib.Bench,
  name: str,
  shape: workload.Shape,
  documents: Sequence[dict],
) -> dict:
  """Checks that the sides agree, then has them work in turns.

  Returns:
    `samples`, the answers of each side; `matmul`, the peak after each turn;
    `checks`; and on accelerators `phases`.
  """
  path = bench.documents(name)
  request = run_request(range(len(documents)), len(documents[0]['neighbors']))
  exact = phases = None
  with contextlib.ExitStack() as stack:
    rivals = bench_lib.start_rivals(bench, bench.load(shape, path), stack)
    if not bench.on_cpu:  # What is timed there is not in float32.
      with sides_lib.start_engine(bench, shape, path, 'float32', '1') as engine:
        exact = engine.ask(**request)
    engine = stack.enter_context(sides_lib.start_engine(bench, shape, path))
    sides = {bench_lib.ENGINE: engine, **rivals}
    first = {side: sides[side].ask(**request) for side in sides}
    checks = check(name, documents, first, exact)
    samples, matmul = {side: [] for side in sides}, []
    for repeat in range(bench.config.repeats):
      for side in bench_lib.rotated(list(sides), repeat):
        samples[side].append(sides[side].ask(**request))
      matmul.append(engine.ask(call='peak')['matmul'])
    if not bench.on_cpu:
      phases = measure_phases(shape, engine, samples[bench_lib.ENGINE][-1])
  return {
    'samples': samples,
    'matmul': matmul,
    'checks': checks,
    'phases': phases,
  }


def check(
  name: str,
  documents: Sequence[dict],
  answers: Mapping[str, Mapping],
  exact: Mapping | None,
) -> dict:
  """Compares the sides' first answers, each with the one it must agree with.

  Args:
    name: of the shape.
    documents: that were answered.
    answers: by side.
    exact: the engine's in float32, where what is timed is in bfloat16.

  Returns:
    The differences, by pair of sides.

  Raises:
    ValueError: the sides do not compute the same.
  """
  checks = {}
  for side, answer in answers.items():
    if side == bench_lib.ENGINE and exact is None:
      continue
    ours = exact or answers[bench_lib.ENGINE]
    pair = f'{name}: {bench_lib.ENGINE} and {side}'
    if exact and side != bench_lib.PLAIN:  # Those are in bfloat16, or in TF32.
      bits = compare.check_bits(pair, ours, answer, documents)
      checks[side] = {'bits_per_token': bits}
    else:
      checks[side] = compare.check_equal(pair, ours, answer)
  return checks


def measure_phases(
  shape: workload.Shape, engine: process.Process, sample: Mapping
) -> dict:
  """Gradient and optimizer, each by itself, of the longest windows.

  Beside them stands what a dispatch took when the engine was timed: the rest of
  it is moving documents' states out of the pool and in. An AdamW update reads
  weights, gradient and two moments and writes all but the gradient: 28 bytes a
  parameter.
  """
  usage = sample['usage']['step']
  rows, size = round(usage['documents_a_dispatch']), shape.window
  answer = engine.ask(call='phases', rows=rows, size=size)
  useful = rows * 3 * workload.forward_operations(shape, size)
  moved = rows * 28 * (shape.params + shape.context * shape.width)
  return answer | {
    'rows': rows,
    'size': size,
    'gradient_share_of_peak': (
      useful / answer['gradient_seconds'] / answer['matmul']
    ),
    'optimizer_share_of_bandwidth': (
      moved / answer['optimizer_seconds'] / answer['bandwidth']
    ),
    'dispatch_seconds': sample['parts']['adapt'] / usage['dispatches'],
  }


def measure_scaling(
  bench: sides_lib.Bench, name: str, shape: workload.Shape
) -> dict:
  """Seconds a document over its neighbours, and over windows of one of them.

  All windows are of one length.
  """
  copies = bench.of_device(_SCALED_DOCUMENTS)
  size = min(shape.window, _SCALED_TOKENS)
  shape = dataclasses.replace(shape, lengths=(size, size))
  path = bench.documents('scaling')
  # First the documents with many neighbours, then those whose one neighbour
  # has as many windows as the number says.
  lengths = [(size, [size] * max(_COUNTS))] * copies
  for count in _COUNTS:
    lengths += [(size, [size * count])] * copies
  workload.write_documents(path, shape, lengths, bench.seed)

  def requests(place):
    first = (1 + place) * copies
    return {
      'neighbors': run_request(range(copies), _COUNTS[place]),
      'windows': run_request(range(first, first + copies), 1),
    }

  bench.say(f'scaling: {name}, over neighbours and windows')
  with contextlib.ExitStack() as stack:
    engine = stack.enter_context(sides_lib.start_engine(bench, shape, path))
    rivals = bench_lib.start_rivals(
      bench, bench.load(shape, path), stack, [bench_lib.PLAIN]
    )
    sides = {bench_lib.ENGINE: engine, **rivals}
    seconds = {
      over: {side: [[] for _ in _COUNTS] for side in sides}
      for over in requests(0)
    }
    for side in sides.values():  # To warm up.
      for request in requests(0).values():
        side.ask(**request)
    for repeat in range(bench.config.repeats):
      for place in range(len(_COUNTS)):
        for over, request in requests(place).items():
          for side in bench_lib.rotated(list(sides), repeat):
            taken = sides[side].ask(**request)['seconds'] / copies
            seconds[over][side][place].append(taken)
  curves = {
    over: {side: _curve(samples) for side, samples in by_side.items()}
    for over, by_side in seconds.items()
  }
  return {'shape': name, 'documents': copies, 'curves': curves}


def _curve(samples: Sequence[Sequence[float]]) -> dict:
  medians = [float(np.median(taken)) for taken in samples]
  return {
    'counts': list(_COUNTS),
    'seconds': [list(taken) for taken in samples],
    'median_seconds': medians,
    'line': compare.line(_COUNTS, medians),
  }


def run_request(documents: Iterable[int], neighbors: int) -> dict:
  """What to ask a side for, to be timed."""
  return {
    'call': 'run',
    'documents': list(documents),
    'neighbors': neighbors,
  }


def cost(config) -> dict:
  """What `estimate.show` prints, guessed from the useful operations.

  Raises:
    ValueError: as `measure`, as far as it can be told.
  """
  shapes = bench_lib.parse(config.benchmark.shapes, workload.SHAPES)
  with sides_lib.engine_process() as probe:
    bench = sides_lib.open_bench(config, '', probe)
    peak = probe.ask(call='peak')['matmul']
  speeds = _SPEEDS[bench.device['backend'] == 'cpu']
  sides = list(speeds) if config.benchmark.rival else [bench_lib.ENGINE]
  documents, steps, seconds, memory = 0, 0, 0.0, 0
  for shape in shapes.values():
    given = [
      {'tokens': range(own), 'neighbors': [range(n) for n in others]}
      for own, others in bench.lengths(shape)
    ]
    useful = workload.operations(shape, given)
    runs = 1 + config.benchmark.repeats
    documents += len(given) * runs * len(sides)
    steps += useful.steps * runs * len(sides)
    for side in sides:
      seconds += _START
      seconds += runs * (useful.train + useful.score) / (speeds[side] * peak)
    # Weights, their copy, the gradient and two moments, in float32.
    memory = max(memory, 20 * shape.params * len(sides))
  return {
    'documents': documents,
    'steps': steps,
    'memory': memory,
    'seconds': seconds,
  }
