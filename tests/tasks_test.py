"""The names that the Pile's tasks go by."""

import pytest

from tttnn.corpus import tasks


def test_the_table_is_whole_and_in_order():
  names = [task.name for task in tasks.TASKS]
  assert len(names) == 22
  assert names == sorted(set(names))
  assert len({task.domain for task in tasks.TASKS}) == 22
  weights = {task.name: task.weight for task in tasks.TASKS}
  assert sum(weights.values()) == pytest.approx(100, abs=1e-9)
  # The six largest, as the paper on nearest neighbours plots them.
  largest = sorted(weights, key=weights.get)[-6:]
  assert largest == [
    f'pile_{name}'
    for name in (
      'github',
      'arxiv',
      'openwebtext2',
      'books3',
      'pubmed-central',
      'pile-cc',
    )
  ]
  assert sum(weights[name] for name in largest) == pytest.approx(71.14)


@pytest.mark.parametrize(
  ('written', 'domain'),
  [
    *((task.domain, task.domain) for task in tasks.TASKS),
    ('GitHub', 'Github'),
    ('arXiv', 'ArXiv'),
    ('Stack Exchange', 'StackExchange'),
    ('Project Gutenberg', 'Gutenberg (PG-19)'),
    ('Youtube Subtitles', 'YoutubeSubtitles'),
    ('YouTubeSubtitles', 'YoutubeSubtitles'),
    ('NIH ExPORTER', 'NIH ExPorter'),
    ('Europarl', 'EuroParl'),
    ('Hacker News', 'HackerNews'),
    ('USPTO', 'USPTO Backgrounds'),
    ('Enron', 'Enron Emails'),
    ('Pubmed Central', 'PubMed Central'),
    ('Open Subtitles', 'OpenSubtitles'),
    ('Math: DM Mathematics', 'DM Mathematics'),
    # None of the Pile's.
    ('Wikipedia', 'Wikipedia'),
    ('Wikipedia (de)', 'Wikipedia (de)'),
    ('PubMed', 'PubMed'),
    ('', ''),
  ],
)
def test_spellings(written, domain):
  assert tasks.canonical(written) == domain


def test_items_name_tasks():
  def names(item):
    return [task.name for task in tasks.find(item)]

  assert names('pile_all') == names('pile_*')
  assert len(names('pile_all')) == 22
  assert names('pile_pubmed-*') == [
    'pile_pubmed-abstracts',
    'pile_pubmed-central',
  ]
  assert names('pile_upsto') == names('pile_uspto') == ['pile_uspto']
  for item in ('pile_arXiv', 'pile_', 'pile_x*'):
    with pytest.raises(ValueError, match='none of pile_all, pile_arxiv, pile_'):
      tasks.find(item)
