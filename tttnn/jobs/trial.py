"""Trials on the device, from which `dry_run` tells what adapting would take."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

from tttnn import estimate
from tttnn import language_model
from tttnn.corpus import buckets
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule


def training(
  model: language_model.LanguageModel,
  pool: pool_lib.Pool,
  texts: Sequence[str],
  total: int,
) -> tuple[int, float]:
  """(training steps, seconds) of training on `total` texts like those given.

  Counts the windows of these, and tries each of their sizes.
  """
  windows = [window for cut in model.trained(texts) for window in cut]
  scale = total / max(1, len(texts))
  seconds = 0.0
  for size, count, programs in sizes(
    windows, model.adaptation.settings.max_length, pool.fine
  ):
    work = schedule.Work('', {}, [[[model.start] * size]])
    compiling, each = timed(pool, work)
    seconds += compiling * programs + each * count * scale
  return round(len(windows) * scale), seconds


def sizes(
  windows: Iterable[Sequence[int]], longest: int, fine: bool
) -> Iterator[tuple[int, float, int]]:
  """(length to try, how many windows of it cost as much as those, programs).

  What is padded to finer lengths is counted in parts of a coarse one, so that
  few are tried.
  """
  tokens, programs = collections.Counter(), collections.defaultdict(set)
  for window in windows:
    size = buckets.padded(len(window), longest)
    finer = buckets.padded(len(window), longest, fine)
    tokens[size] += finer
    programs[size].add(finer)
  for size, total in tokens.items():
    yield size, total / size, len(programs[size])


def timed(pool: pool_lib.Pool, work: schedule.Work) -> tuple[float, float]:
  """(extra seconds of the first run, seconds a document) of a full pool."""
  extra, seconds = estimate.timed(
    lambda: len(list(pool.run([work] * pool.slots)))
  )
  return extra, seconds / pool.slots
