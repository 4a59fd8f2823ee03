"""What every benchmark has: its surroundings, its rivals, and turns to take.

Each is two modules: NAME has `measure(config, workdir)`, whose result is JSON
with what `result` gives among it, and `cost(config)`; NAME_report has
`tables_of`, `sentences` and `draw` of such a result.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import sys
from typing import Any
from typing import Self

from tttnn.benchmarks import process
from tttnn.benchmarks import rival as rival_lib
from tttnn.corpus import builtin
from tttnn.corpus import jsonl

# This program; the original's way, in float32; and, on accelerators, the best
# that PyTorch can be made.
ENGINE, PLAIN, BEST = 'tttnn', 'PyTorch', 'PyTorch, at its best'


@dataclasses.dataclass(kw_only=True)
class Bench:
  """A run of a benchmark.

  Attributes:
    config: section `benchmark`.
    workdir: where models and data go.
    seed: of both.
    device: what the engine computes on.
    rival: how the rivals are run, by side; empty where there is none.
    about: what they say of themselves, by side.
    missing: what they lack, where that is why there is none.
  """

  config: Mapping
  workdir: str
  seed: int
  device: dict
  rival: dict[str, rival_lib.Setting] = dataclasses.field(default_factory=dict)
  about: dict[str, dict] = dataclasses.field(default_factory=dict)
  missing: str = ''

  @classmethod
  def open(cls, config, workdir: str, probe: process.Process) -> Self:
    """From the config, and from what an engine says of its device."""
    return cls(
      config=config.benchmark,
      workdir=workdir,
      seed=config.seed,
      device=probe.ask(call='device'),
    )

  @property
  def on_cpu(self) -> bool:
    return self.device['backend'] == 'cpu'

  def of_device(self, choices: tuple[int, int]) -> int:
    """Of a pair for CPU and for accelerators, the one that goes."""
    return choices[not self.on_cpu]

  def texts(self) -> list[str]:
    """The files of `benchmark.texts`, or of the built-in corpus, written."""
    if self.config.texts:
      return jsonl.expand(self.config.texts)
    corpus = os.path.join(self.workdir, 'corpus')
    builtin.write(corpus, seed=self.seed)
    return jsonl.expand(os.path.join(corpus, 'train', '*.jsonl'))

  def lacks(self, error: process.MissingError) -> None:
    """Goes on without rivals."""
    self.rival, self.missing = {}, str(error)
    self.say(f'no rival ({error}): measuring this side alone')

  def say(self, text: str) -> None:
    print(f'benchmark: {text}', flush=True)

  def say_where(self) -> None:
    self.say(
      f'on {self.device["kind"]}, {self.device["cores"]} cores; it rests '
      'while a side is timed, as should the machine'
    )

  def result(self, trials: dict) -> dict:
    """What the result of every benchmark says of its surroundings."""
    return {
      'device': self.device,
      'environment': rival_lib.HUGE_PAGES,
      'rival': {
        'script': self.config.rival,
        'missing': self.missing,
        'trials': trials,
        'chosen': {
          side: dataclasses.asdict(setting) | {'about': self.about[side]}
          for side, setting in self.rival.items()
        },
      },
    }


def parse(shapes: str, known: Mapping[str, Any]) -> dict[str, Any]:
  """The shapes of comma-separated names, of those that a benchmark has.

  Raises:
    ValueError: for a name that is none.
  """
  names = [name.strip() for name in shapes.split(',')]
  for name in names:
    if name not in known:
      raise ValueError(
        f'benchmark.shapes={shapes!r}: {name!r} is none of {", ".join(known)}'
      )
  return {name: known[name] for name in names}


def parse_one(name: str, shapes: str, known: Mapping[str, Any]) -> Any:
  """The one shape that a benchmark, `name`, takes; errors as of `parse`."""
  found = parse(shapes, known)
  if len(found) != 1:
    raise ValueError(f'benchmark.shapes={shapes!r}: of {name}, name one')
  return found.popitem()[1]


def engine_process(module: str) -> process.Process:
  """A process of this program's side, `module` of `tttnn.benchmarks`."""
  return process.Process(
    ENGINE,
    [sys.executable, '-m', f'tttnn.benchmarks.{module}'],
    rival_lib.HUGE_PAGES,
  )


def choose_rivals(
  bench: Bench,
  settings: Mapping[str, Sequence[rival_lib.Setting]],
  load: Mapping,
  request: Mapping,
) -> dict:
  """Finds the rivals' best settings: fills `bench.rival`.

  Args:
    bench: to be filled.
    settings: the rivals, and the settings that each could have.
    load: the first request to a rival.
    request: the one to try settings on, whose answer has `seconds`.

  Returns:
    What was tried and how fast it was, by side.
  """
  script, python = bench.config.rival, bench.config.python
  if not script:
    return {}
  rival_lib.check(script)
  trials = {}
  try:
    for side, possible in settings.items():
      if len(possible) > 1:
        bench.say(f'trying what makes {side} fastest')
        tried = rival_lib.try_all(script, python, possible, load, request)
        trials[side] = [dataclasses.asdict(trial) for trial in tried]
        possible = [trial.setting for trial in tried]
      bench.rival[side] = possible[0]
  except process.MissingError as error:
    bench.lacks(error)
  return trials


def start_rivals(
  bench: Bench,
  load: Mapping,
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
    side.send(**load)
  try:
    for name, side in sides.items():
      bench.about[name] = side.receive()
  except process.MissingError as error:
    bench.lacks(error)
    return {}
  return sides


def rotated(sides: Sequence[str], by: int) -> list[str]:
  """In turns, none of them always comes first."""
  by %= len(sides)
  return [*sides[by:], *sides[:by]]
