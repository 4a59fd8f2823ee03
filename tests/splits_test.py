"""Splits against brute force over all pairs of documents."""

import collections
import random
import textwrap

import pytest

from tttnn.corpus import splits


def _documents(number=360, seed=0):
  """Documents of random lines, some of which other units hold too."""
  rng = random.Random(seed)

  def lines(count):
    words = [rng.choice('abcdefghij') * rng.randint(1, 9) for _ in range(99)]
    return [' '.join(rng.sample(words, 5)) for _ in range(count)]

  shared = [lines(12) for _ in range(6)]
  documents = []
  for index in range(number):
    own = lines(rng.randint(10, 30))
    if rng.random() < 0.3:  # Some shared words, wrapped in another way.
      words = ' '.join(rng.choice(shared)).split()
      begin, end = sorted(rng.sample(range(len(words)), 2))
      own[4:4] = textwrap.wrap(' '.join(words[begin:end]), rng.randint(40, 60))
    if documents and rng.random() < 0.05:
      own = documents[rng.randrange(len(documents))].text.split('\n')
    unit = f'unit {rng.randrange(120)}'
    domain = rng.choice(['code', 'code', 'code', 'prose', 'tables'])
    document = splits.Document('\n'.join(own), domain, f'file {index}', unit)
    documents.append(document)
  return documents


def _runs(document, size):
  words = document.text.split()
  return {
    ' '.join(words[at : at + size]) for at in range(len(words) - size + 1)
  }


@pytest.fixture(scope='module')
def documents():
  return _documents()


@pytest.fixture(scope='module')
def sides(documents):
  return splits.assign(documents, seed=0)


@pytest.fixture(scope='module')
def parts(documents, sides):
  return splits.separate(documents, sides, collections.Counter())


def _units(documents, domain):
  return {doc.unit for doc in documents if doc.domain == domain}


def test_assign_holds_out_units_of_every_domain(documents, sides):
  assert sides.keys() == {document.unit for document in documents}
  for domain in ('code', 'prose', 'tables'):
    units = _units(documents, domain)
    for side in ('test', 'validation'):
      held = sum(sides[unit] == side for unit in units)
      assert min(12, 0.15 * len(units)) <= held <= 0.25 * len(units)


def test_assign_takes_a_twentieth_of_many_units():
  documents = [
    splits.Document('', 'code', '', str(unit)) for unit in range(2000)
  ]
  sides = collections.Counter(splits.assign(documents, seed=0).values())
  assert sides == {'train': 1800, 'validation': 100, 'test': 100}


def test_assign_depends_on_the_seed_alone(documents, sides):
  assert splits.assign(documents[::-1], seed=0) == sides
  assert splits.assign(documents, seed=1) != sides


def test_separate_keeps_units_whole(parts, sides):
  for side, documents in parts.items():
    assert documents
    assert {sides[document.unit] for document in documents} == {side}


def test_separate_against_all_pairs(documents, parts):
  """Nothing overlaps a held-out document; all that is left out did."""
  held_out = parts['test'] + parts['validation']
  kept = held_out + parts['train']
  long, short = ([_runs(doc, size) for doc in kept] for size in (31, 24))
  for index in range(len(held_out)):
    for other in range(index + 1, len(kept)):
      assert long[index].isdisjoint(long[other])
  copies = overlaps = 0
  for document in documents:
    if document not in kept:
      own = _runs(document, 24)
      overlap = any(not own.isdisjoint(runs) for runs in short[: len(held_out)])
      copy = any(document.text == other.text for other in kept)
      assert overlap or copy
      copies += copy
      overlaps += overlap and not copy
  assert copies > 5 and overlaps > 5
  assert len(parts['train']) > 150


def test_separate_counts_what_it_leaves_out(documents, sides, parts):
  left_out = collections.Counter()
  splits.separate(documents, sides, left_out)
  assert left_out['duplicate'] and left_out['overlaps held-out text']
  assert left_out.total() == len(documents) - sum(map(len, parts.values()))


def test_white_space_makes_no_other_text():
  documents = [
    splits.Document('one two\nthree', 'code', '1', 'a'),
    splits.Document('  one\n\n\ttwo three ', 'code', '2', 'b'),
    splits.Document('one two three four', 'code', '3', 'b'),
  ]
  sides = {'a': 'test', 'b': 'train'}
  parts = splits.separate(documents, sides, collections.Counter())
  assert parts['test'] == documents[:1]
  assert parts['train'] == documents[2:]


def _sizes(documents):
  sizes = collections.Counter()
  for document in documents:
    sizes[document.domain] += len(document.text.encode())
  return sizes


def test_limit_to_everything_keeps_everything(parts):
  for total in (0, 10**9):
    limited = splits.limit(parts, total, seed=0)
    for side in splits.SPLITS:
      assert limited[side] != parts[side]  # Another order.
      assert set(limited[side]) == set(parts[side])
      assert len(limited[side]) == len(parts[side])


def test_limit_takes_whole_units_in_equal_parts(parts):
  total = 45_000
  limited = splits.limit(parts, total, seed=0)
  sizes = _sizes(limited['train'])
  assert len(sizes) == 3
  for size in sizes.values():
    assert 0.9 * total / 3 < size <= total / 3
  for domain in sizes:
    whole = collections.Counter(
      doc.unit for doc in parts['train'] if doc.domain == domain
    )
    taken = collections.Counter(
      doc.unit for doc in limited['train'] if doc.domain == domain
    )
    assert taken.items() <= whole.items()


def test_limit_gives_what_small_domains_lack_to_others(parts):
  sizes = _sizes(parts['train'])
  small = min(sizes.values())
  total = small * 3 + 20_000
  limited = _sizes(splits.limit(parts, total, seed=0)['train'])
  assert min(limited.values()) == small
  assert 0.95 * total < limited.total() <= total


def test_limit_keeps_held_out_documents_of_many_units(parts):
  limited = splits.limit(parts, 45_000, seed=0)
  for side in ('validation', 'test'):
    for domain in ('code', 'prose', 'tables'):
      own = [doc for doc in limited[side] if doc.domain == domain]
      available = [doc for doc in parts[side] if doc.domain == domain]
      assert len(own) == min(12, len(available))
      units = _units(available, domain)
      assert len({doc.unit for doc in own}) == min(12, len(units))


def test_first_held_out_documents_are_some_of_each_domain(parts):
  limited = splits.limit(parts, 45_000, seed=0)
  assert len({document.domain for document in limited['test'][:3]}) == 3


def test_limit_refuses_what_leaves_a_domain_empty(parts):
  with pytest.raises(ValueError, match='max_bytes is 300, which gives .* 100'):
    splits.limit(parts, 300, seed=0)


def test_small_domains_are_dropped():
  left_out = collections.Counter()
  documents = [
    splits.Document('', domain, '', f'unit {unit}')
    for domain, size in (('large', 12), ('small', 11))
    for unit in range(size)
  ]
  kept = splits.drop_small_domains(documents * 2, left_out)
  assert {document.domain for document in kept} == {'large'}
  assert left_out.total() == 22
