"""Shared n-grams, against a plain loop over all pairs of positions."""

import re

import hypothesis
from hypothesis import strategies
import pytest

from tttnn.corpus import overlap

# Few words, so that runs are shared; each apart from the next.
TEXTS = strategies.lists(
  strategies.sampled_from(['a', 'B', 'b', 'straße', 'STRASSE', '1_2', ',', '']),
  max_size=30,
).map(' '.join)


def plain(scored, neighbor, n):
  def words(text):
    return [m.group() for m in re.finditer(r'\w+', text.casefold())]

  ours, theirs = words(scored), words(neighbor)
  if not ours:
    return 0.0
  n = min(n, len(ours))
  distinct = []
  for i in range(len(ours) - n + 1):
    if ours[i : i + n] not in distinct:
      distinct.append(ours[i : i + n])
  found = 0
  for gram in distinct:
    for j in range(len(theirs) - n + 1):
      if theirs[j : j + n] == gram:
        found += 1
        break
  return found / len(distinct)


@hypothesis.given(
  TEXTS, strategies.lists(TEXTS, max_size=4), strategies.integers(1, 14)
)
def test_shares_are_those_of_a_plain_loop(scored, neighbors, n):
  expected = [plain(scored, neighbor, n) for neighbor in neighbors]
  assert overlap.shares(scored, neighbors, n) == expected


def test_thirteen_words_make_a_gram():
  words = [f'w{i}' for i in range(20)]  # 8 grams.
  shares = overlap.shares(
    ' '.join(words),
    [
      ' '.join(words),
      'x ' + ', '.join(words[3:16]).upper() + '. x',
      ' '.join(words[3:15]),
      ' '.join(words[:14] + ['x'] + words[6:]),  # The first 2, the last 2.
      '',
    ],
  )
  assert shares == [1, 1 / 8, 0, 4 / 8, 0]


def test_short_texts_are_one_gram():
  near = ['It is so: the end, my friend.', 'the other end', 'end the']
  assert overlap.shares('The end', near) == [1, 0, 0]
  assert overlap.shares('... ?!', near) == [0, 0, 0]
  assert overlap.shares('', ['', '?']) == [0, 0]


def test_grams_do_not_run_from_one_neighbor_into_the_next():
  assert overlap.shares('a b c', ['a b', 'c'], 2) == [0.5, 0]
  assert overlap.shares('a b c', [], 2) == []
  # A gram that comes twice counts once.
  assert overlap.shares('a b a b c', ['a b'], 2) == [1 / 3]


def test_a_gram_has_words():
  with pytest.raises(ValueError, match='n=0'):
    overlap.shares('a', ['a'], 0)
