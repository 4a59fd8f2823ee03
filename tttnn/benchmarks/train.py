"""This trainer beside a loop in plain PyTorch: steps of AdamW on packed rows.

Both sides begin with the same weights and get the same batches, masks included,
and must come to the same losses before anything is timed.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os

import numpy as np

from tttnn.benchmarks import bench as bench_lib
from tttnn.benchmarks import rival as rival_lib
from tttnn.corpus import sample
from tttnn.corpus import tokenizer as tokenizer_lib

# Largest difference of two losses of a step, in nats; in bfloat16, whose
# rounding adds up over steps, only one step in a hundred of them is asked for.
TOLERANCE, BF16_TOLERANCE = 1e-3, 5e-2
_TEXTS = 2000  # Of the tokenizer.
_TRIAL = 3  # Steps that rivals' settings are tried on.
_SETTINGS = {'learning_rate': 1e-4, 'weight_decay': 0.01, 'clip_norm': 1.0}
# Guesses, for `cost` alone: the share of the matmul peak that a side reaches,
# and seconds until it has started and compiled.
_SHARES = {bench_lib.ENGINE: 0.6, bench_lib.PLAIN: 0.3}
_START = 30.0


@dataclasses.dataclass(frozen=True)
class Shape:
  """A model, and what a step trains it on.

  Attributes:
    model_type: 'gpt2', which predicts each next token, or 'roberta', which
      predicts 15 % that are hidden.
    layers: of the model, as `width` and `heads`.
    width: D.
    heads: H.
    vocabulary: V.
    rows: of a step.
    context: tokens of a row, T.
    steps: of a run.
  """

  model_type: str
  layers: int
  width: int
  heads: int
  vocabulary: int
  rows: int
  context: int
  steps: int

  @property
  def params(self) -> int:
    """P, how many parameters take part in products."""
    return 12 * self.layers * self.width**2 + self.vocabulary * self.width

  @property
  def operations(self) -> float:
    """Of a step, roughly."""
    return 6.0 * self.params * self.rows * self.context

  @property
  def objective(self) -> str:
    return 'masked' if self.model_type == 'roberta' else 'causal'


SHAPES = {
  'roberta': Shape('roberta', 4, 256, 4, 8192, rows=16, context=256, steps=20),
  'gpt2': Shape('gpt2', 4, 256, 4, 8192, rows=16, context=256, steps=20),
  # Large vocabularies, as those of the published models.
  'roberta-50k': Shape(
    'roberta', 4, 256, 4, 50265, rows=16, context=256, steps=20
  ),
  'gpt2-50k': Shape('gpt2', 4, 256, 4, 50257, rows=16, context=256, steps=20),
  # As GPT-2-large; for accelerators.
  'large': Shape('gpt2', 36, 1280, 20, 50257, rows=16, context=1024, steps=20),
  # For a look at whether everything runs.
  'mini': Shape('roberta', 2, 32, 2, 512, rows=4, context=32, steps=20),
  'mini-gpt2': Shape('gpt2', 2, 32, 2, 512, rows=4, context=32, steps=20),
}


@dataclasses.dataclass(kw_only=True)
class Bench(bench_lib.Bench):
  """A run of the benchmark."""

  def model(self, name: str) -> str:
    return os.path.abspath(os.path.join(self.workdir, 'models', name))

  def load_rival(self, name: str, shape: Shape) -> dict:
    """The first request to a rival."""
    return {
      'call': 'load',
      'model': self.model(name),
      'batches': os.path.join(self.model(name), 'plain.npz'),
      'objective': shape.objective,
      'settings': _SETTINGS,
    }

  def load_engine(self, name: str, shape: Shape) -> dict:
    """The first request to the engine."""
    return {
      'call': 'load',
      'model': self.model(name),
      'shape': dataclasses.asdict(shape),
      'settings': _SETTINGS,
      'dtype': 'float32' if self.on_cpu else 'bfloat16',
    }


def measure(config, workdir: str) -> dict:
  """Everything; what comes of it is JSON.

  Raises:
    ValueError: for a wrong setting, texts that cannot be read, a rival that
      fails, or losses that differ.
  """
  shapes = bench_lib.parse(config.benchmark.shapes, SHAPES)
  with bench_lib.engine_process('train_engine') as probe:
    bench = Bench.open(config, workdir, probe)
    bench.say_where()
    texts = bench.texts()
    for name, shape in shapes.items():
      probe.ask(
        call='write',
        directory=bench.model(name),
        tokenizer=_tokenizer(bench, shape, texts),
        shape=dataclasses.asdict(shape),
        texts=texts,
        steps=shape.steps,
        seed=bench.seed,
      )
  # On the largest model: it is what takes the time.
  name, shape = max(shapes.items(), key=lambda item: item[1].operations)
  trials = bench_lib.choose_rivals(
    bench,
    _settings(bench),
    bench.load_rival(name, shape),
    {'call': 'run', 'steps': _TRIAL},
  )
  measured = {
    name: measure_shape(bench, name, shape) for name, shape in shapes.items()
  }
  return bench.result(trials) | {'shapes': measured}


def measure_shape(bench: Bench, name: str, shape: Shape) -> dict:
  """Checks that the sides agree on a shape, then has them work in turns."""
  with contextlib.ExitStack() as stack:
    rivals = bench_lib.start_rivals(bench, bench.load_rival(name, shape), stack)
    engine = stack.enter_context(bench_lib.engine_process('train_engine'))
    about = engine.ask(**bench.load_engine(name, shape))
    sides = {bench_lib.ENGINE: engine, **rivals}
    request = {'call': 'run', 'steps': shape.steps}
    first = {side: one.ask(**request) for side, one in sides.items()}
    checks = {
      side: check_equal(
        f'{name}: {bench_lib.ENGINE} and {side}',
        first[bench_lib.ENGINE]['losses'],
        first[side]['losses'],
        TOLERANCE if bench.on_cpu else BF16_TOLERANCE,
      )
      for side in rivals
    }
    samples, matmul = {side: [] for side in sides}, []
    for repeat in range(bench.config.repeats):
      for side in bench_lib.rotated(list(sides), repeat):
        samples[side].append(sides[side].ask(**request))
      matmul.append(engine.ask(call='peak')['matmul'])
  # On CPU that of the same minutes, as the machine's own speed drifts.
  peak = float(np.median(matmul)) if bench.on_cpu else about['peak']
  measured = {
    side: _summarise(answers, shape, about['operations'], peak)
    for side, answers in samples.items()
  }
  ours = measured[bench_lib.ENGINE]['seconds_a_step']
  ratios = {s: one['seconds_a_step'] / ours for s, one in measured.items()}
  for side, one in measured.items():
    bench.say(
      f'{name}: {side}: {one["tokens_per_second"]:,.0f} tokens/s, '
      f'{ratios[side]:.2f} times our time'
    )
  del ratios[bench_lib.ENGINE]
  return {
    'shape': dataclasses.asdict(shape),
    'params': shape.params,
    'operations': about['operations'],
    'peak': peak,
    'losses': first[bench_lib.ENGINE]['losses'],
    'sides': measured,
    'ratios': ratios,
    'checks': checks,
  }


def check_equal(
  what: str, ours: Sequence[float], theirs: Sequence[float], tolerance: float
) -> float:
  """The largest difference of two curves of losses, in nats.

  Raises:
    ValueError: it is more than the tolerance; shows both losses.
  """
  apart = np.abs(np.array(ours) - np.array(theirs))
  if not np.max(apart) <= tolerance:  # NaN is no agreement.
    step = int(np.argmax(np.where(np.isnan(apart), np.inf, apart)))
    raise ValueError(
      f'{what}: losses of step {step} are {ours[step]:.6f} and '
      f'{theirs[step]:.6f}, more than {tolerance:g} apart: they do not train '
      'the same'
    )
  return float(np.max(apart))


def cost(config) -> dict:
  """What `estimate.show` prints, guessed from the useful operations.

  Raises:
    ValueError: for a shape or rival that is not there.
  """
  shapes = bench_lib.parse(config.benchmark.shapes, SHAPES)
  with bench_lib.engine_process('train_engine') as probe:
    peak = probe.ask(call='peak')['matmul']
  sides = list(_SHARES) if config.benchmark.rival else [bench_lib.ENGINE]
  runs = 1 + config.benchmark.repeats
  seconds = sum(
    _START + runs * shape.steps * shape.operations / (_SHARES[side] * peak)
    for shape in shapes.values()
    for side in sides
  )
  steps = sum(shape.steps for shape in shapes.values()) * runs * len(sides)
  return {
    'documents': 0,
    'steps': steps,
    'memory': max(16 * shape.params for shape in shapes.values()) * len(sides),
    'seconds': seconds,
  }


def _tokenizer(bench: Bench, shape: Shape, texts: Sequence[str]) -> str:
  """Of no more ids than the model has; one is enough for both vocabularies."""
  size = min(shape.vocabulary, 8192)
  directory = os.path.join(bench.workdir, f'{shape.model_type}-{size}')
  if not os.path.exists(os.path.join(directory, 'tokenizer.json')):
    tokenizer_lib.train(
      sample.look(texts, _TEXTS)[0],
      directory,
      vocab_size=size,
      kind=shape.model_type,
    )
  return directory


def _settings(bench: Bench) -> dict[str, list[rival_lib.Setting]]:
  """The rivals, and the settings that each could have."""
  if not bench.on_cpu:
    best = ('--device=cuda', '--dtype=bf16', '--fused')
    return {bench_lib.BEST: [rival_lib.Setting(best, {})]}
  settings = [rival_lib.Setting((), one) for one in rival_lib.ENVIRONMENTS]
  for options in (('--attention=eager',), ('--fused',)):
    settings.append(rival_lib.Setting(options, rival_lib.ENVIRONMENTS[0]))
  if not bench.config.try_settings:
    settings = settings[:1]
  return {bench_lib.PLAIN: settings}


def _summarise(
  answers: Sequence[Mapping], shape: Shape, operations: float, peak: float
) -> dict:
  """Medians of a side's timed answers."""
  seconds = [answer['seconds'] / shape.steps for answer in answers]
  median = float(np.median(seconds))
  return {
    'seconds': seconds,
    'seconds_a_step': median,
    'tokens_per_second': shape.rows * shape.context / median,
    'share_of_peak': operations / median / peak,
    'peak_bytes': max(answer['peak_bytes'] for answer in answers),
    'device_peak_bytes': max(a['device_peak_bytes'] for a in answers),
  }
