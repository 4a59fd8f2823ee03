"""The sides of the `ttt` benchmark: this engine, and PyTorch."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import sys

from tttnn.benchmarks import process
from tttnn.benchmarks import rival as rival_lib
from tttnn.benchmarks import workload
from tttnn.methods import ttt

# The loop as the original has it, in float32; and, on accelerators, the best
# that PyTorch can be made.
ENGINE, PLAIN, BEST = 'tttnn', 'PyTorch', 'PyTorch, at its best'
_TRIAL = 128  # Tokens of the document that rivals' settings are tried on.


@dataclasses.dataclass
class Bench:
  """A run of the benchmark.

  Attributes:
    config: section `benchmark`.
    settings: of adaptation, for both sides, without lengths.
    batch_documents: as `ttt.batch_documents`.
    workdir: where models and documents go.
    seed: of both.
    device: what the engine computes on.
    rival: how the rivals are run, by side; empty where there is none.
    about: what they say of themselves, by side.
    missing: what they lack, where that is why there is none.
  """

  config: Mapping
  settings: dict
  batch_documents: str
  workdir: str
  seed: int
  device: dict
  rival: dict[str, rival_lib.Setting] = dataclasses.field(default_factory=dict)
  about: dict[str, dict] = dataclasses.field(default_factory=dict)
  missing: str = ''

  @property
  def on_cpu(self) -> bool:
    return self.device['backend'] == 'cpu'

  def of_device(self, choices: tuple[int, int]) -> int:
    """Of a pair for CPU and for accelerators, the one that goes."""
    return choices[not self.on_cpu]

  def lengths(self, shape: workload.Shape) -> list[tuple[int, list[int]]]:
    """Of documents and their neighbours."""
    documents = self.config.documents or self.of_device(shape.documents)
    neighbors = self.config.neighbors or self.of_device(shape.neighbors)
    return workload.lengths(shape, documents, neighbors, self.seed)

  def load(self, shape: workload.Shape, documents: str) -> dict:
    """The first request to a side."""
    lengths = {'max_length': shape.window, 'stride': shape.window}
    return {
      'call': 'load',
      'model': self.model(shape),
      'documents': documents,
      'settings': self.settings | lengths | {'start': shape.start},
    }

  def model(self, shape: workload.Shape) -> str:
    return os.path.join(self.workdir, 'models', f'{shape.layers}x{shape.width}')

  def documents(self, name: str) -> str:
    return os.path.join(self.workdir, 'documents', f'{name}.json')

  def lacks(self, error: process.MissingError) -> None:
    """Goes on without rivals."""
    self.rival, self.missing = {}, str(error)
    self.say(f'no rival ({error}): measuring this side alone')

  def say(self, text: str) -> None:
    print(f'benchmark: {text}', flush=True)


def open_bench(config, workdir: str, probe: process.Process) -> Bench:
  """From the config, and from what an engine says of its device."""
  return Bench(
    config=config.benchmark,
    settings=check_settings(config),
    batch_documents=config.ttt.batch_documents,
    workdir=workdir,
    seed=config.seed,
    device=probe.ask(call='device'),
  )


def check_settings(config) -> dict:
  """The settings that both sides know.

  Raises:
    ValueError: where another one is not at its default.
  """
  settings = ttt.Settings.create(config.ttt)
  known = ('learning_rate', 'weight_decay', 'adam_epsilon', 'clip_norm')
  chosen = {name: getattr(settings, name) for name in known}
  plain = ttt.Settings(**chosen)
  if settings != plain or config.ttt.trainable != 'full':
    raise ValueError(
      'of `ttt` the benchmark takes learning_rate, weight_decay, adam_epsilon, '
      'clip_norm and batch_documents; the rest stays as it is: '
      f'{settings} with trainable={config.ttt.trainable}, not {plain}'
    )
  return chosen


def engine_process() -> process.Process:
  """A process of this engine."""
  return process.Process(
    ENGINE,
    [sys.executable, '-m', 'tttnn.benchmarks.engine'],
    rival_lib.HUGE_PAGES,
  )


def choose_rival(bench: Bench, shapes: Mapping[str, workload.Shape]) -> dict:
  """Finds the rivals' best settings, on a short document: fills `bench.rival`.

  Returns:
    What was tried and how fast it was, by side.
  """
  script, python = bench.config.rival, bench.config.python
  if not script:
    return {}
  rival_lib.check(script)
  # On the largest model: it is what takes the time.
  name, shape = max(shapes.items(), key=lambda item: item[1].params)
  path = bench.documents('trial')
  length = min(shape.context, _TRIAL)
  workload.write_documents(path, shape, [(length, [length])], bench.seed)
  request = {'call': 'run', 'documents': [0], 'neighbors': 1}
  trials = {}
  try:
    for side, settings in settings_to_try(bench).items():
      if len(settings) > 1:
        bench.say(f'trying what makes {side} fastest ({name})')
        tried = rival_lib.try_all(
          script, python, settings, bench.load(shape, path), request
        )
        trials[side] = [dataclasses.asdict(trial) for trial in tried]
        settings = [trial.setting for trial in tried]
      bench.rival[side] = settings[0]
  except process.MissingError as error:
    bench.lacks(error)
  return trials


def settings_to_try(bench: Bench) -> dict[str, list[rival_lib.Setting]]:
  """The rivals, and the settings that each could have."""
  if bench.on_cpu:
    # The reference's own AdamW: what is tried is threads and memory alone.
    settings = [rival_lib.Setting((), one) for one in rival_lib.ENVIRONMENTS]
    return {PLAIN: settings if bench.config.try_settings else settings[:1]}
  best = [
    rival_lib.Setting(('--device=cuda', f'--dtype={dtype}', '--fused'), {})
    for dtype in ('bf16', 'tf32')
  ]
  return {PLAIN: [rival_lib.Setting(('--device=cuda',), {})], BEST: best}


@contextlib.contextmanager
def start_engine(
  bench: Bench,
  shape: workload.Shape,
  documents: str,
  dtype: str = '',
  batch_documents: str = '',
) -> Iterator[process.Process]:
  """A process of this engine that has compiled nothing yet."""
  with engine_process() as engine:
    engine.ask(
      **bench.load(shape, documents),
      dtype=dtype or ('float32' if bench.on_cpu else 'bfloat16'),
      batch_documents=batch_documents or bench.batch_documents,
    )
    yield engine


def start_rivals(
  bench: Bench,
  shape: workload.Shape,
  documents: str,
  stack: contextlib.ExitStack,
  names: Sequence[str] = (PLAIN, BEST),
) -> dict[str, process.Process]:
  """The rivals of those names that there are, ready; they end with `stack`.

  Where they lack a package there are none, from then on.
  """
  sides = {
    side: stack.enter_context(
      rival_lib.start(bench.config.rival, bench.config.python, setting)
    )
    for side, setting in bench.rival.items()
    if side in names
  }
  for side in sides.values():
    side.send(**bench.load(shape, documents))
  try:
    for name, side in sides.items():
      bench.about[name] = side.receive()
  except process.MissingError as error:
    bench.lacks(error)
    return {}
  return sides
