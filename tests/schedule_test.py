"""Which documents go together, and how much padding that costs."""

import collections

import numpy as np
import pytest

from tttnn.corpus import buckets
from tttnn.methods import schedule
from tttnn.methods import ttt
from tttnn.scoring import rolling

CONTEXT = 1024


def make_work(lengths, document=0):
  return schedule.Work(
    key=None,
    scored=dict.fromkeys(
      {0, len(lengths)}, rolling.windows([1] * document, CONTEXT, 0)
    ),
    neighbors=[[[1] * n] for n in lengths],
  )


def make_member(lengths, shard=0, slot=0, document=0):
  work = make_work(lengths, document)
  settings = ttt.Settings(max_length=CONTEXT, stride=CONTEXT)
  return schedule.Member(work, shard, slot, settings, CONTEXT)


def test_a_document_scores_and_trains_in_order():
  member = make_member([70, 1024], document=1500)
  found = [
    (action.group.kind, action.count, action.group.size, action.tokens)
    for action in member.actions
  ]
  score = [('score', 1024, 1024), ('score', 1024, 1024)]
  expected = [
    *((kind, 0, size, n) for kind, size, n in score),
    ('step', 1, 128, 70),
    ('step', 2, 1024, 1024),
    *((kind, 2, size, n) for kind, size, n in score),
  ]
  assert found == expected
  losses = iter([0.5, 0.25])
  values = np.arange(1024, dtype=np.float32)
  while member.actions:
    assert not member.finished
    action = member.actions.popleft()
    value = values if action.group.kind == 'score' else next(losses)
    member.settle(action, value, seconds=1.0)
  assert member.finished
  outcome = member.outcome()
  assert outcome.at == [0, 2]
  # Of the second window the last 476 places are scored.
  expected = [*range(1024), *range(548, 1024)]
  for tokens in outcome.token_log_likelihood:
    np.testing.assert_array_equal(tokens, expected)
  assert outcome.log_likelihood == [sum(expected)] * 2
  assert outcome.train_loss == [0.5, 0.25]
  assert outcome.steps == [1, 1]
  assert outcome.adapt_seconds == [1.0, 1.0]
  assert outcome.score_seconds == [2.0, 2.0]


def test_what_else_is_scored_is_kept_beside():
  member = make_member([], document=1500)
  values = np.stack([np.arange(1024), np.arange(1024) % 2], -1)
  while member.actions:
    member.settle(member.actions.popleft(), values, seconds=1.0)
  outcome = member.outcome()
  expected = np.concatenate([values, values[548:]])
  np.testing.assert_array_equal(outcome.token_log_likelihood, [expected])
  assert outcome.log_likelihood == [expected[:, 0].sum()]
  nothing = make_member([]).outcome()
  assert nothing.log_likelihood == [0.0]
  assert nothing.token_log_likelihood[0].shape == (0,)


def test_a_full_group_goes_first_and_else_a_small_one():
  ready = [make_member([n], slot=i) for i, n in enumerate([60, 100, 101, 102])]
  group, width, (members,) = schedule.choose(ready, 1, [1, 2])
  assert group == schedule.Group('step', 128)
  assert width == 2
  assert members == ready[1:3]
  group, width, (members,) = schedule.choose(ready, 1, [1, 4])
  assert group == schedule.Group('step', 64)
  assert (width, members) == (1, ready[:1])


def test_shards_go_in_step():
  ready = [
    make_member([60], shard=0),
    make_member([100], shard=0, slot=1),
    make_member([101], shard=1),
  ]
  group, width, shards = schedule.choose(ready, 2, [1, 2])
  assert group == schedule.Group('step', 128)
  assert width == 1
  assert shards == [ready[1:2], ready[2:3]]


@pytest.mark.parametrize(
  ('slots', 'expected'),
  [
    (1, [1]),
    (2, [1, 2]),
    (3, [1, 2]),
    (8, [1, 2]),
    (16, [1, 4]),
    (32, [1, 2, 8]),
    (64, [1, 4, 16]),
  ],
)
def test_widths_are_few(slots, expected):
  assert schedule.widths(slots) == expected


@pytest.mark.parametrize('slots', [8, 16])
def test_padding_is_a_part_of_what_lockstep_gives(slots):
  # Lengths as real documents have them: log-normal, long ones cut up.
  rng = np.random.default_rng(0)
  waiting = collections.deque()
  for _ in range(64):
    lengths = rng.lognormal(6, 1.2, 20).astype(int).clip(2, 8000)
    windows = [
      min(CONTEXT, n - start) for n in lengths for start in range(0, n, CONTEXT)
    ]
    waiting.append([n for n in windows if n > 1])
  lockstep = [list(waiting)[i : i + slots] for i in range(0, 64, slots)]
  real = sum(map(sum, waiting))
  padded = sum(
    slots * buckets.padded(max(step), CONTEXT)
    for batch in lockstep
    for step in zip(
      *(w + [2] * (max(map(len, batch)) - len(w)) for w in batch), strict=True
    )
  )
  assert 1 - real / padded > 0.5
  tokens, computed, rows, dispatches = _drain(waiting, slots)
  assert tokens == real
  assert 1 - tokens / computed < 0.25
  assert rows / dispatches > slots / 8


def _drain(waiting, slots):
  """What the pool does, without a device."""
  widths = schedule.widths(slots)
  members, free = [], list(range(slots))
  tokens = computed = rows = dispatches = 0
  while waiting or members:
    while free and waiting:
      members.append(make_member(waiting.popleft(), slot=free.pop()))
    group, width, (taken,) = schedule.choose(members, 1, widths)
    assert 0 < len(taken) <= width
    for member in taken:
      action = member.actions.popleft()
      assert action.group == group
      member.settle(action, 0.0, 0.0)
      tokens += action.tokens
      if member.finished:
        members.remove(member)
        free.append(member.slot)
    computed += width * group.size
    rows += len(taken)
    dispatches += 1
  return tokens, computed, rows, dispatches
