"""Choosing documents, against the original's rule written out."""

import random

import hypothesis
from hypothesis import strategies
import pytest

from tttnn.corpus import choice
from tttnn.corpus import tasks

DOMAINS = ['ArXiv', 'Books3', 'Ubuntu IRC', 'USPTO Backgrounds', 'Ours']
FILES = strategies.lists(strategies.sampled_from(DOMAINS), max_size=60)


def choose(domains, spec='', **fields):
  return choice.choose(choice.Choice(spec, **fields), domains)


def original(domains, domain, portion, rank=0, world_size=1):
  """What the original's code does for one task, on positions."""
  positions = [i for i, name in enumerate(domains) if name == domain]
  generator = random.Random()
  generator.seed(1216)
  generator.shuffle(positions)
  positions = positions[: int(portion * len(positions))]
  return [positions[i] for i in range(rank, len(positions), world_size)]


def test_the_shuffle_is_that_of_seed_1216():
  order = [11, 14, 15, 13, 5, 9, 4, 7, 10, 12, 18, 0, 19, 8, 16, 2, 6, 1, 3, 17]
  assert choose(['ArXiv'] * 20, 'pile_arxiv') == order
  assert choose(['ArXiv'] * 20, 'pile_arxiv', portion=0.2) == order[:4]
  # Positions among all documents, and the shuffle of each task is its own.
  domains = ['Books3', 'ArXiv'] * 20
  assert choose(domains, 'pile_arxiv') == [2 * i + 1 for i in order]
  assert choose(domains, 'pile_books3,pile_arxiv') == [
    *(2 * i + 1 for i in order),
    *(2 * i for i in order),
  ]
  # int rounds down.
  assert len(choose(['ArXiv'] * 19, 'pile_arxiv', portion=0.2)) == 3
  assert len(choose(['ArXiv'] * 10, 'pile_arxiv', portion=0.29)) == 2


@hypothesis.given(
  FILES, strategies.sampled_from([0.2, 0.5, 0.77, 1.0]), strategies.data()
)
def test_tasks_follow_the_original(domains, portion, data):
  world_size = data.draw(strategies.integers(1, 5))
  rank = data.draw(strategies.integers(0, world_size - 1))
  found = choose(
    domains,
    'pile_all',
    portion=portion,
    rank=rank,
    world_size=world_size,
    missing_tasks='allow',
  )
  expected = []
  for domain in DOMAINS[:4]:  # Ubuntu before USPTO, as tasks.
    expected += original(domains, domain, portion, rank, world_size)
  assert found == expected


@hypothesis.given(FILES, strategies.integers(0, 70), strategies.integers(1, 6))
def test_ranks_share_the_choice_whatever_their_number(domains, limit, size):
  for spec in ('', 'pile_all', 'A*,Ours', 'pile_arxiv,Ours'):
    fields = {'limit': limit, 'missing_tasks': 'allow'}
    everything = choose(domains, spec, **fields)
    unlimited = choose(domains, spec, missing_tasks='allow')
    assert everything == (unlimited[:limit] if limit else unlimited)
    parts = [
      choose(domains, spec, rank=rank, world_size=size, **fields)
      for rank in range(size)
    ]
    assert sorted(sum(parts, [])) == sorted(everything)
    for part in parts:  # In the same order.
      assert part == [i for i in everything if i in set(part)]


@hypothesis.given(FILES)
def test_globs_over_domains_keep_file_order(domains):
  everything = list(range(len(domains)))
  assert choose(domains) == everything
  assert choose(domains, '*') == everything
  assert choose(domains, ' Ours ,U* ') == [
    i for i, domain in enumerate(domains) if domain[0] in 'OU'
  ]
  assert (
    choose(domains, 'ArXiv', rank=1, world_size=2)
    == [i for i, domain in enumerate(domains) if domain == 'ArXiv'][1::2]
  )


def test_a_task_and_a_glob_over_its_domain_do_not_take_it_twice():
  domains = ['Ours', 'PubMed Central', 'PubMed Abstracts', 'PubMed Central'] * 5
  found = choose(domains, 'PubMed *,pile_pubmed-central', portion=0.5)
  drawn = original(domains, 'PubMed Central', 0.5)
  assert found == drawn + [2, 6, 10, 14, 18]


def test_wants_is_what_can_be_chosen():
  for spec, wanted in (
    ('', DOMAINS),
    ('pile_all', DOMAINS[:4]),
    ('pile_u*,Ours', DOMAINS[2:]),
    ('arXiv,O?rs', ['ArXiv', 'Ours']),
  ):
    wants = choice.Choice(spec).wants
    assert [domain for domain in DOMAINS if wants(domain)] == wanted


def test_only_named_tasks_may_not_be_missing():
  assert choose(['ArXiv'], 'pile_*') == [0]
  assert choose(['ArXiv'], 'pile_*,pile_arxiv') == [0]
  for spec in ('pile_all', 'pile_*,pile_books3', 'pile_books3,pile_*'):
    with pytest.raises(
      ValueError, match=r'no document of.*pile_books3 \(Books'
    ):
      choose(['ArXiv'], spec)
    assert choose(['ArXiv'], spec, missing_tasks='allow') == [0]
  with pytest.raises(ValueError) as error:
    choose([task.domain for task in tasks.TASKS[2:]], 'pile_all')
  assert 'pile_arxiv (ArXiv), pile_bookcorpus2 (BookCorpus2);' in str(error)
  assert 'pile_books3' not in str(error.value)


def test_a_portion_that_leaves_nothing_is_named():
  domains = ['ArXiv'] * 5 + ['Books3'] * 4
  assert len(choose(domains[:5], 'pile_arxiv', portion=0.2)) == 1
  for spec in ('pile_arxiv,pile_books3', 'pile_*'):
    with pytest.raises(
      ValueError, match=r'portion=0.2 leaves .* pile_books3 \(4 documents\);'
    ):
      choose(domains, spec, portion=0.2)
    found = choose(domains, spec, portion=0.2, missing_tasks='allow')
    assert found == original(domains, 'ArXiv', 0.2)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'portion': 0.2}, "portion=0.2 goes with pile_ tasks only, .*=''"),
    ({'portion': 0.2, 'tasks': 'ArXiv'}, 'goes with pile_ tasks only'),
    ({'portion': 0.0, 'tasks': 'pile_all'}, r'portion=0.0 is not in \(0, 1\]'),
    ({'portion': 1.1, 'tasks': 'pile_all'}, 'portion=1.1'),
    ({'portion': float('nan'), 'tasks': 'pile_all'}, 'portion=nan'),
    ({'rank': 2, 'world_size': 2}, r'rank=2 is not in 0\.\.1.*world_size=2'),
    ({'rank': -1}, 'rank=-1'),
    ({'world_size': 0}, 'world_size=0'),
    ({'limit': -1}, 'limit=-1'),
    ({'missing_tasks': 'skip'}, "'skip' is neither error nor allow"),
    ({'tasks': 'ArXiv,pile_archive'}, "'pile_archive' is none of pile_all"),
  ],
)
def test_wrong_choices_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    choice.Choice(**fields)
