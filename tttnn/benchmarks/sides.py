"""The sides of the `ttt` benchmark: this engine, and PyTorch."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import dataclasses
import os

from tttnn.benchmarks import bench as bench_lib
from tttnn.benchmarks import process
from tttnn.benchmarks import rival as rival_lib
from tttnn.benchmarks import workload
from tttnn.methods import ttt

_TRIAL = 128  # Tokens of the document that rivals' settings are tried on.


@dataclasses.dataclass(kw_only=True)
class Bench(bench_lib.Bench):
  """A run of the benchmark.

  Attributes:
    settings: of adaptation, for both sides, without lengths.
    batch_documents: as `ttt.batch_documents`.
  """

  settings: dict
  batch_documents: str

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
  return bench_lib.engine_process('engine')


def choose_rival(bench: Bench, shapes: Mapping[str, workload.Shape]) -> dict:
  """Finds the rivals' best settings, on a short document: fills `bench.rival`.

  Returns:
    What was tried and how fast it was, by side.
  """
  # On the largest model: it is what takes the time.
  shape = max(shapes.values(), key=lambda shape: shape.params)
  path = bench.documents('trial')
  length = min(shape.context, _TRIAL)
  workload.write_documents(path, shape, [(length, [length])], bench.seed)
  request = {'call': 'run', 'documents': [0], 'neighbors': 1}
  return bench_lib.choose_rivals(
    bench, settings_to_try(bench), bench.load(shape, path), request
  )


def settings_to_try(bench: Bench) -> dict[str, list[rival_lib.Setting]]:
  """The rivals, and the settings that each could have."""
  if bench.on_cpu:
    # The reference's own AdamW: what is tried is threads and memory alone.
    settings = [rival_lib.Setting((), one) for one in rival_lib.ENVIRONMENTS]
    settings = settings if bench.config.try_settings else settings[:1]
    return {bench_lib.PLAIN: settings}
  best = [
    rival_lib.Setting(('--device=cuda', f'--dtype={dtype}', '--fused'), {})
    for dtype in ('bf16', 'tf32')
  ]
  plain = [rival_lib.Setting(('--device=cuda',), {})]
  return {bench_lib.PLAIN: plain, bench_lib.BEST: best}


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
