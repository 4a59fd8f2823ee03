"""This engine beside the original's way of embedding a corpus, in PyTorch.

Both sides begin with texts and end with float32 vectors on the host. They get
the same model, of random weights, and the same tokenizer, and must come to the
same embeddings before anything is timed.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os

import numpy as np

from tttnn.benchmarks import bench as bench_lib
from tttnn.benchmarks import process
from tttnn.benchmarks import rival as rival_lib
from tttnn.corpus import sample
from tttnn.corpus import tokenizer as tokenizer_lib

# Largest difference of two embeddings in a component, of the length of one.
TOLERANCE = 1e-4
_VOCABULARY = 8192  # Of the tokenizer, which is trained on the texts.
_TRIAL = 16  # Texts that rivals' settings are tried on: one batch.
# Guesses, for `cost` alone: the share of the matmul peak that a side reaches,
# tokens of a text, and seconds until a side has started and compiled.
_SHARES = {bench_lib.ENGINE: 0.8, bench_lib.PLAIN: 0.5}
_TOKENS, _START = 400, 30.0


@dataclasses.dataclass(frozen=True)
class Shape:
  """A RoBERTa, and how many texts it embeds.

  Attributes:
    layers: of the model, as `width` and `heads`.
    width: D.
    heads: H.
    context: tokens of a text that count, the special ones included.
    texts: how many, on CPU and on accelerators.
  """

  layers: int
  width: int
  heads: int
  context: int
  texts: tuple[int, int]

  @property
  def params(self) -> int:
    """P, how many parameters take part in products."""
    return 12 * self.layers * self.width**2

  def operations(self, tokens: Sequence[int]) -> float:
    """Useful ones of texts of T tokens each: 2 P T + 4 L T^2 D."""
    return sum(
      2.0 * self.params * t + 4.0 * self.layers * t**2 * self.width
      for t in tokens
    )


SHAPES = {
  'small': Shape(6, 384, 6, context=512, texts=(224, 8192)),
  # As the published roberta-base.
  'base': Shape(12, 768, 12, context=512, texts=(96, 8192)),
  # Texts that are not cut off at 512 tokens differ more in length.
  'long': Shape(6, 384, 6, context=2048, texts=(96, 4096)),
  # For a look at whether everything runs.
  'mini': Shape(2, 32, 2, context=128, texts=(48, 48)),
}


def measure(config, workdir: str) -> dict:
  """Everything; what comes of it is JSON.

  Raises:
    ValueError: for a wrong setting, texts that cannot be read, a rival that
      fails, or embeddings that differ.
  """
  shapes = bench_lib.parse(config.benchmark.shapes, SHAPES)
  with bench_lib.engine_process('embed_engine') as probe:
    bench = Bench.open(config, workdir, probe)
    bench.say_where()
    texts = write_texts(bench, max(map(bench.count, shapes.values())))
    for name, shape in shapes.items():
      probe.ask(
        call='write',
        directory=bench.model(name),
        tokenizer=bench.path('tokenizer'),
        shape=dataclasses.asdict(shape),
        seed=bench.seed,
      )
  # On the largest model: it is what takes the time.
  name, shape = max(shapes.items(), key=lambda item: item[1].params)
  trials = bench_lib.choose_rivals(
    bench, _settings(bench), bench.load(name, shape), bench.run('trial', _TRIAL)
  )
  measured = {
    name: measure_shape(bench, name, shape, texts)
    for name, shape in shapes.items()
  }
  return bench.result(trials) | {'shapes': measured}


@dataclasses.dataclass(kw_only=True)
class Bench(bench_lib.Bench):
  """A run of the benchmark."""

  def count(self, shape: Shape) -> int:
    """Of texts, at most."""
    return self.config.documents or self.of_device(shape.texts)

  def path(self, name: str) -> str:
    return os.path.join(self.workdir, name)

  def model(self, name: str) -> str:
    return os.path.join(self.workdir, 'models', name)

  def load(self, name: str, shape: Shape) -> dict:
    """The first request to a side."""
    return {
      'call': 'load',
      'model': self.model(name),
      'texts': self.path('texts.json'),
      'max_tokens': shape.context,
    }

  def run(self, side: str, texts: int) -> dict:
    """What to ask a side for, to be timed."""
    return {
      'call': 'run',
      'texts': texts,
      'output': os.path.abspath(self.path(f'{side.replace(" ", "_")}.npy')),
    }


def write_texts(bench: Bench, count: int) -> list[str]:
  """Writes texts and a tokenizer of theirs; returns the texts.

  They are spread over the files of `benchmark.texts`, in their order.
  """
  texts = sample.look(bench.texts(), count)[0][:count]
  tokenizer_lib.train(
    texts, bench.path('tokenizer'), vocab_size=_VOCABULARY, kind='roberta'
  )
  with open(bench.path('texts.json'), 'w', encoding='utf-8') as file:
    json.dump(texts, file)
  return texts


def measure_shape(
  bench: Bench, name: str, shape: Shape, texts: Sequence[str]
) -> dict:
  """Every side on the texts of a shape."""
  texts = texts[: bench.count(shape)]
  tokenizer = tokenizer_lib.load(bench.path('tokenizer'))
  tokens = [
    min(len(ids) + 2, shape.context)
    for ids in tokenizer_lib.encode(tokenizer, texts)
  ]
  bench.say(f'{name}: {len(texts)} texts of {np.mean(tokens):.0f} tokens each')
  samples, matmul, checks = time_sides(bench, name, shape, len(texts))
  operations, peak = shape.operations(tokens), float(np.median(matmul))
  sides = {
    side: _summarise(answers, len(texts), operations, peak)
    for side, answers in samples.items()
  }
  ours = sides[bench_lib.ENGINE]['median_seconds']
  ratios = {side: one['median_seconds'] / ours for side, one in sides.items()}
  for side, one in sides.items():
    bench.say(
      f'{name}: {side}: {one["texts_per_second"]:.2f} texts/s, '
      f'{ratios[side]:.2f} times our time'
    )
  del ratios[bench_lib.ENGINE]
  return {
    'shape': dataclasses.asdict(shape),
    'params': shape.params,
    'texts': len(texts),
    'tokens': sum(tokens),
    'cut_off': sum(count == shape.context for count in tokens),
    'operations': operations,
    'matmul_peak': peak,
    'sides': sides,
    'ratios': ratios,
    'checks': checks,
  }


def time_sides(
  bench: Bench, name: str, shape: Shape, texts: int
) -> tuple[dict[str, list[dict]], list[float], dict[str, float]]:
  """Checks that the sides agree, then has them work in turns.

  Returns:
    The answers of each side, the matmul peak after each turn, and how far each
    rival's embeddings lie from the engine's.
  """
  with contextlib.ExitStack() as stack:
    load = bench.load(name, shape)
    rivals = bench_lib.start_rivals(bench, load, stack)
    engine = stack.enter_context(bench_lib.engine_process('embed_engine'))
    engine.ask(**load)
    sides = {bench_lib.ENGINE: engine, **rivals}
    vectors = {side: _embed(bench, sides[side], side, texts) for side in sides}
    checks = {
      side: check_equal(
        f'{name}: {bench_lib.ENGINE} and {side}',
        vectors[bench_lib.ENGINE],
        vectors[side],
      )
      for side in rivals
    }
    samples, matmul = {side: [] for side in sides}, []
    for repeat in range(bench.config.repeats):
      for side in bench_lib.rotated(list(sides), repeat):
        samples[side].append(sides[side].ask(**bench.run(side, texts)))
      matmul.append(engine.ask(call='peak')['matmul'])
  return samples, matmul, checks


def check_equal(what: str, ours: np.ndarray, theirs: np.ndarray) -> float:
  """The largest difference in a component, of the length of its embedding.

  Args:
    what: is compared, for the error.
    ours: embeddings [texts, dim].
    theirs: to compare them with.

  Raises:
    ValueError: it is more than TOLERANCE, or the shapes differ.
  """
  if ours.shape != theirs.shape:
    raise ValueError(f'{what}: embeddings {ours.shape} and {theirs.shape}')
  apart = np.abs(ours - theirs).max(axis=1) / np.linalg.norm(theirs, axis=1)
  if not np.max(apart) <= TOLERANCE:  # NaN is no agreement.
    text = int(np.argmax(apart))
    raise ValueError(
      f'{what}: the embeddings of text {text} begin with '
      f'{ours[text, :3].tolist()} and {theirs[text, :3].tolist()}, '
      f'{apart[text]:.1e} of their length apart, more than {TOLERANCE:.0e}: '
      'they do not compute the same'
    )
  return float(np.max(apart))


def cost(config) -> dict:
  """What `estimate.show` prints, guessed from the useful operations.

  Raises:
    ValueError: for a shape or rival that is not there.
  """
  shapes = bench_lib.parse(config.benchmark.shapes, SHAPES)
  with bench_lib.engine_process('embed_engine') as probe:
    bench = Bench.open(config, '', probe)
    peak = probe.ask(call='peak')['matmul']
  sides = list(_SHARES) if config.benchmark.rival else [bench_lib.ENGINE]
  runs = 1 + config.benchmark.repeats
  texts = {name: bench.count(shape) for name, shape in shapes.items()}
  seconds = 0.0
  for name, shape in shapes.items():
    useful = shape.operations([min(_TOKENS, shape.context)] * texts[name])
    for side in sides:
      seconds += _START + runs * useful / (_SHARES[side] * peak)
  return {
    'documents': sum(texts.values()) * runs * len(sides),
    'steps': sum(texts.values()) * runs * len(sides),
    'memory': max(4 * shape.params for shape in shapes.values()) * len(sides),
    'seconds': seconds,
  }


def _settings(bench: Bench) -> dict[str, list[rival_lib.Setting]]:
  """The rival, and the settings that it could have."""
  if not bench.on_cpu:
    return {bench_lib.PLAIN: [rival_lib.Setting(('--device=cuda',), {})]}
  settings = [rival_lib.Setting((), one) for one in rival_lib.ENVIRONMENTS]
  eager = ('--attention=eager',)
  settings.append(rival_lib.Setting(eager, rival_lib.ENVIRONMENTS[0]))
  if not bench.config.try_settings:
    settings = settings[:1]
  return {bench_lib.PLAIN: settings}


def _embed(
  bench: Bench, process_: process.Process, side: str, texts: int
) -> np.ndarray:
  request = bench.run(side, texts)
  process_.ask(**request)
  return np.load(request['output'], allow_pickle=False)


def _summarise(
  answers: Sequence[Mapping], texts: int, operations: float, peak: float
) -> dict:
  """Medians of a side's timed answers."""
  seconds = float(np.median([answer['seconds'] for answer in answers]))
  return {
    'seconds': [answer['seconds'] for answer in answers],
    'median_seconds': seconds,
    'texts_per_second': texts / seconds,
    'share_of_peak': operations / seconds / peak,
    'padded_share': answers[-1]['padded_share'],
    'peak_bytes': max(answer['peak_bytes'] for answer in answers),
    'device_peak_bytes': max(a['device_peak_bytes'] for a in answers),
  }
