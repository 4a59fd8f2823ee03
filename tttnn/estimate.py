"""What `dry_run` prints: documents, steps, memory and time, from a trial."""

from collections.abc import Callable
import dataclasses
import time

import jax
import numpy as np

_TRIALS = 3


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one call of a compiled function.

  Attributes:
    memory: bytes of its arguments, results and temporary arrays.
    compile_seconds: once.
    call_seconds: median of a few calls.
  """

  memory: int
  compile_seconds: float
  call_seconds: float


def measure(step: Callable, state, *args) -> Cost:
  """Compiles and tries (state, *args) -> (state, ...); may use `state` up."""
  begin = time.monotonic()
  compiled = step.lower(state, *args).compile()
  compile_seconds = time.monotonic() - begin
  seconds = []
  for _ in range(1 + _TRIALS):
    begin = time.monotonic()
    state, *_ = jax.block_until_ready(compiled(state, *args))
    seconds.append(time.monotonic() - begin)
  about = compiled.memory_analysis()
  memory = (
    about.argument_size_in_bytes
    + about.output_size_in_bytes
    + about.temp_size_in_bytes
    - about.alias_size_in_bytes
  )
  return Cost(memory, compile_seconds, float(np.median(seconds[1:])))


def timed(call: Callable[[], object]) -> tuple[float, float]:
  """(extra seconds of the first call, median seconds of the next ones)."""
  seconds = []
  for _ in range(1 + _TRIALS):
    begin = time.monotonic()
    jax.block_until_ready(call())
    seconds.append(time.monotonic() - begin)
  again = float(np.median(seconds[1:]))
  return max(0.0, seconds[0] - again), again


def count(params) -> int:
  """Numbers in a tree of parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def num_bytes(tree) -> int:
  """Bytes of a tree of arrays."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def show(
  job: str,
  *,
  documents: int,
  steps: int,
  memory: int,
  seconds: float,
  at_once: int = 0,
) -> None:
  """Prints the estimate of a job.

  `memory` is that of its arrays; `at_once` of the documents go together.
  """
  print(f'{job}: what a run would take')
  print(f'  documents       {documents:,}')
  if at_once:
    print(f'  at once         {at_once:,}')
  print(f'  steps           {steps:,}')
  print(f'  memory          {memory / 1e9:.2f} GB of arrays, and the process')
  print(f'  estimated time  {duration(seconds)} ({seconds / 3600:.3f} hours)')


def duration(seconds: float) -> str:
  """'42 s', '3 min 20 s' or '5 h 2 min'."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60} min'
