"""Which documents go to the device together, and what became of them.

Documents advance independently. What each has to do next is a training step or
a scored window, of some padded length; those with the same next thing to do are
a group, and one dispatch takes members of one group. Plain Python: nothing here
touches a device.
"""

import collections
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from tttnn.corpus import buckets
from tttnn.methods import ttt
from tttnn.scoring import rolling


@dataclasses.dataclass(frozen=True)
class Work:
  """One document, ready for the device.

  Attributes:
    key: what the caller knows it by.
    scored: the windows to score, by the number of neighbours after which they
      are; 0 is the model before it adapts. Counts above the number of
      neighbours are not reached.
    neighbors: the training windows of each neighbour, in order.
    number: that dropout's keys are made of, below 2**32.
    afresh: whether it begins with the base model where the settings would have
      it go on from the document before.
  """

  key: Any
  scored: Mapping[int, Sequence[rolling.Window]]
  neighbors: Sequence[Sequence[Sequence[int]]] = ()
  number: int = 0
  afresh: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
  """What one dispatch does.

  Attributes:
    kind: 'step', 'again' (a step by the gradient of the step before) or
      'score'.
    size: padded length of the windows, in tokens; 0 where none is read.
  """

  kind: str
  size: int


@dataclasses.dataclass(frozen=True)
class Action:
  """The next thing that a document has to do.

  Attributes:
    group: that it belongs to.
    count: 1-based number of the neighbour to train on, or the neighbour count
      that is scored.
    window: token ids to train on, or a window to score.
    number: of the step in its document.
  """

  group: Group
  count: int
  window: Sequence[int] | rolling.Window
  number: int = 0

  @property
  def tokens(self) -> int:
    """Without the padding."""
    scored = isinstance(self.window, rolling.Window)
    return len(self.window.inputs if scored else self.window)


class Member:
  """A document in flight.

  Attributes:
    work: the document.
    shard: of the devices it is on.
    slot: in that shard.
    actions: that are still to be dispatched.
  """

  def __init__(
    self,
    work: Work,
    shard: int,
    slot: int,
    settings: ttt.Settings,
    context: int,
    fine: bool = False,
  ):
    self.work = work
    self.shard = shard
    self.slot = slot
    self.actions = collections.deque(_actions(work, settings, context, fine))
    self._losses = collections.defaultdict(list)  # By neighbour.
    self._scores = collections.defaultdict(list)  # By neighbour count.
    self._seconds = collections.Counter()
    self._waiting = len(self.actions)
    self._loss = math.nan  # Of the last gradient.

  def settle(self, action: Action, value: np.ndarray, seconds: float) -> None:
    """Takes note of what came of an action.

    Args:
      action: of this document; actions are settled in order.
      value: of a step its loss; of a score the log-likelihoods of what follows
        each token of the padded window, [T] or [T, K]; of 'again' nothing that
        counts.
      seconds: that it took.
    """
    kind = action.group.kind
    if kind == 'score':
      end = len(action.window.inputs)
      begin = end - len(action.window.targets)
      self._scores[action.count].append(value[begin:end])
    else:
      self._loss = float(value) if kind == 'step' else self._loss
      self._losses[action.count].append(self._loss)
    self._seconds[kind == 'score', action.count] += seconds
    self._waiting -= 1

  @property
  def finished(self) -> bool:
    """Whether everything is settled."""
    return not self._waiting

  def outcome(self) -> ttt.Outcome:
    neighbors = range(1, len(self.work.neighbors) + 1)
    at = sorted(n for n in self.work.scored if n <= len(self.work.neighbors))
    tokens = [
      np.concatenate(self._scores[count] or [np.zeros(0, np.float32)])
      for count in at
    ]
    # Of scores [tokens, K] the first.
    nats = [scores if scores.ndim == 1 else scores[:, 0] for scores in tokens]
    losses = [self._losses[count] for count in neighbors]
    return ttt.Outcome(
      at=at,
      log_likelihood=[math.fsum(of_count) for of_count in nats],
      token_log_likelihood=tokens,
      train_loss=[
        float(np.mean(values)) if values else 0.0 for values in losses
      ],
      steps=[len(values) for values in losses],
      adapt_seconds=[self._seconds[False, count] for count in neighbors],
      score_seconds=[self._seconds[True, count] for count in at],
    )


def _actions(
  work: Work, settings: ttt.Settings, context: int, fine: bool
) -> list[Action]:
  """Everything that a document has to do, in order."""
  actions, steps = [], 0
  before, repeats = [], 0

  def score(count):
    for window in work.scored.get(count, ()):
      size = buckets.padded(len(window.inputs), context, fine)
      actions.append(Action(Group('score', size), count, window))

  score(0)
  for count, windows in enumerate(work.neighbors, 1):
    # Of a text that comes several times in a row, as a selection may want it.
    repeats = repeats + 1 if windows == before else 0
    before = windows
    for window in windows:
      group = Group('again', 0)
      if repeats % settings.gradient_reuse == 0:
        size = buckets.padded(len(window), settings.max_length, fine)
        group = Group('step', size)
      actions.append(Action(group, count, window, steps))
      steps += 1
    score(count)
  return actions


def widths(slots: int) -> list[int]:
  """How many documents a dispatch may take, given those in flight on a shard.

  Up to a quarter of them, since the others are at something else, in steps of
  four, since each width is a program to compile.
  """
  width = min(slots, max(2, slots // 4))
  chosen = [width]
  while width > 1:
    width = max(1, width // 4)
    chosen.append(width)
  return chosen[::-1]


def choose(
  ready: Sequence[Member], shards: int, widths_: Sequence[int]
) -> tuple[Group, int, list[list[Member]]]:
  """The next dispatch: (its group, its width, the members of each shard).

  A group that fills the greatest width goes first. Where none does, a small one
  goes, so that its members come to join the others; were it a large one, no
  group would ever grow. A width that some shards cannot fill is padded.

  Args:
    ready: documents with something left to do.
    shards: that work in step.
    widths_: that there are programs for, ascending.
  """
  groups = collections.defaultdict(lambda: [[] for _ in range(shards)])
  for member in ready:
    groups[member.actions[0].group][member.shard].append(member)

  def width(group):
    most = max(map(len, groups[group]))
    return max(w for w in widths_ if w <= most)

  def rank(group):
    room = shards * width(group)
    rows = sum(min(len(shard), width(group)) for shard in groups[group])
    members = sum(map(len, groups[group]))
    full = rows == shards * widths_[-1]
    return full, rows / room, members if full else -members, group.size

  best = max(groups, key=rank)
  taken = width(best)
  return best, taken, [shard[:taken] for shard in groups[best]]
