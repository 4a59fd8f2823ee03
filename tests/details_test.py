"""What the page has of a document, unpacked as its script does."""

import base64
import json
import math
import zlib

import numpy as np
import pytest

from tttnn.reporting import details
from tttnn.reporting import listing
from tttnn.scoring import token_scores


def unpack(text):
  """(head, numbers int16) of what the page has."""
  data = zlib.decompress(base64.b64decode(text))
  length = int.from_bytes(data[:4], 'little')
  head = json.loads(data[4 : 4 + length])
  return head, np.frombuffer(data[4 + length :], '<i2')


class Scores(dict):
  """Token scores in memory."""

  ids = property(dict.keys)
  read = dict.__getitem__


def row_of(tokens, doc_id=0, **fields):
  sums = [math.fsum(map(float, scores)) for scores in tokens.scores_CxT]
  count = len(tokens.neighbors)
  return {
    'doc_id': doc_id,
    'task': 'code',
    'method': 'ttt',
    'num_bytes': max(1, len(tokens.text.encode())),
    'at': tokens.at,
    'log_likelihood': sums,
    'train_loss': [2.5] * count,
    'steps': [1] * count,
    'missing_neighbors': 0,
    'neighbors': [
      {'id': i, 'distance': 1.0 + i, 'overlap': 0.0} for i in range(count)
    ],
  } | fields


def tokens_of(text, scores, ends=None, **fields):
  return token_scores.Tokens(
    text=text,
    ends_T=np.array(ends or range(1, len(text) + 1), np.uint32),
    at=list(range(len(scores))),
    scores_CxT=np.array(scores, np.float32),
    **fields,
  )


WIDE = details.LIMITS[0]


def packed(tokens, limits=WIDE, **fields):
  row = row_of(tokens, **fields)
  return unpack(details.Document(row, Scores({0: tokens}), 0.5).pack(limits))


def test_numbers_are_changes_in_hundredths_of_a_bit():
  nats = -math.log(2)
  tokens = tokens_of('abc', [[nats, 2 * nats, 3 * nats], [0.0, 4 * nats, 0.0]])
  head, numbers = packed(tokens)
  assert numbers.reshape(2, 3).tolist() == [
    [-100, -200, -300],
    [100, -200, 300],
  ]
  assert head['text'] == 'abc' and head['lengths'] == [1, 1, 1]
  assert head['bits'] == [pytest.approx(2.0), pytest.approx(4 / 3, rel=1e-5)]


def test_tokens_that_share_a_character_are_one_group():
  # The second character is three tokens; its UTF-16 has two units.
  nats = -math.log(2)
  scores = [[nats, nats, 2 * nats, 4 * nats, nats, 0.5 * nats]]
  tokens = tokens_of('x\U0001f389yz', scores, [1, 2, 2, 2, 3, 4])
  head, numbers = packed(tokens)
  assert numbers.tolist() == [-100, -700, -100, -50]
  assert head['lengths'] == [1, 2, 1, 1] and head['several'] == {'1': 3}
  cut = details.Limits(2, 9, 9)
  head, numbers = packed(tokens, cut)
  assert head['text'] == 'x\U0001f389' and head['groups'] == 4
  assert numbers.tolist() == [-100, -700]


def test_what_is_no_number_or_very_large():
  tokens = tokens_of('ab', [[-np.inf, -1e6], [-np.inf, -1.0]])
  head, numbers = packed(tokens)
  assert numbers.tolist() == [-32767, -32767, -32768, 32767]
  assert head['bits'][0] is None
  head, numbers = packed(tokens_of('', [[], []], query='asked'))
  assert head['text'] == '' and head['query'] == 'asked' and not len(numbers)


def test_neighbours_have_texts_and_what_they_did():
  tokens = tokens_of(
    'ab', [[-1, -1]], neighbors=['x' * 50, '\ud800'], neighbor_chars=[9000, 1]
  )
  head, _ = packed(tokens, details.Limits(9, 9, 20))
  first, second = head['neighbors']
  assert first == {
    'id': '0',
    'distance': 1.0,
    'overlap': 0.0,
    'loss': 2.5,
    'steps': 1,
    'near': False,
    'text': 'x' * 20,
    'chars': 9000,
  }
  assert second['text'] == '?'
  near = [
    {'id': None, 'distance': 0.0},
    {'id': 'x', 'distance': None, 'overlap': 0.6},
    {'id': 'x', 'distance': 0.1, 'overlap': 0.4},
  ]
  assert [details.is_near(one, 0.5) for one in near] == [True, True, False]
  assert not any(details.is_near(one, 0) for one in near)


def test_without_scores_of_tokens_there_are_the_rows():
  row = row_of(tokens_of('ab', [[-1, -1]], neighbors=['x'], neighbor_chars=[1]))
  head, numbers = unpack(details.Document(row, Scores(), 0.5).pack(WIDE))
  assert 'text' not in head and not len(numbers)
  assert 'text' not in head['neighbors'][0]


def test_bits_round_as_in_the_table():
  nats = [-2.0192501 * math.log(2), -1.0]
  row = row_of(tokens_of('a', [[-1], [-1]]), log_likelihood=nats)
  head, _ = unpack(details.Document(row, None, 0.5).pack(WIDE))
  assert (
    f'{head["bits"][0]:.4f}'
    == listing.cells(row | {'seconds': {}, 'at': [0, 1]})[2][0]
  )


def test_passes_have_losses():
  row = row_of(tokens_of('a', [[-1], [-2]]), train_loss=[3.0, None])
  head, _ = unpack(details.Document(row, None, 0.5).pack(WIDE))
  assert head['passes'] == [3.0, None] and not head['neighbors']


def test_counts_are_spread():
  assert details.spread(3, 5) == [0, 1, 2]
  assert details.spread(51, 3) == [0, 25, 50]
  tokens = tokens_of('a', [[-i] for i in range(21)])
  head, numbers = packed(tokens, details.Limits(9, 5, 9))
  assert head['shown_at'] == [0, 5, 10, 15, 20] and len(numbers) == 5
  assert len(head['bits']) == 21


def realistic(number, rng):
  """A document as large as those of the Pile, with 20 neighbours."""
  words = [f'w{i}' for i in rng.zipf(1.3, 1500) % 5000]
  text = ' '.join(words)
  ends = np.cumsum([len(word) + 1 for word in words])
  ends[-1] = len(text)
  base = -rng.gamma(1.0, 3.0, len(words))
  scores = base + rng.normal(0, 0.3, (21, len(words))).cumsum(axis=0)
  neighbors = [' '.join(rng.permutation(words)[:800]) for _ in range(20)]
  return tokens_of(
    text, scores, ends.tolist(), neighbors=neighbors, neighbor_chars=[9000] * 20
  )


def test_a_thousand_documents_fit():
  rng = np.random.default_rng(0)
  some = [realistic(number, rng) for number in range(20)]
  scores = Scores({i: some[i % 20] for i in range(1000)})
  documents = [
    details.Document(row_of(scores[i], i), scores, 0.5) for i in range(1000)
  ]
  texts, limits = details.pack(documents)
  assert len(texts) == 1000
  size = sum(map(len, texts))
  assert size <= details.BUDGET
  assert limits.groups >= 400 and limits.chars >= 150  # And there is a lot.
  assert details.pack(documents[:10])[1] == WIDE
  texts, limits = details.pack(documents[:20], budget=1)
  assert limits == details.LIMITS[-1] and len(texts) == 20
  assert unpack(texts[0])[0]['text'] == ''
