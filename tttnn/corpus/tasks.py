"""The 22 tasks of the Pile: their names, domains and weights.

A task is the documents of one domain, which is what `meta.pile_set_name` says.
Data files and the Pile's paper (Gao et al., "The Pile", 2020) spell some
domains differently; here they go by the name in the Pile's own files.
"""

import dataclasses
import fnmatch

PREFIX = 'pile_'
ALL = 'pile_all'


@dataclasses.dataclass(frozen=True)
class Task:
  """A task.

  Attributes:
    name: as in `eval.tasks`.
    domain: `meta.pile_set_name` of its documents.
    weight: percent of the Pile's bytes (Gao et al. 2020, table 1).
  """

  name: str
  domain: str
  weight: float


# By name, which is the order in which they are evaluated.
TASKS = (
  Task('pile_arxiv', 'ArXiv', 8.96),
  Task('pile_bookcorpus2', 'BookCorpus2', 0.75),
  Task('pile_books3', 'Books3', 12.07),
  Task('pile_dm-mathematics', 'DM Mathematics', 1.24),
  Task('pile_enron', 'Enron Emails', 0.14),
  Task('pile_europarl', 'EuroParl', 0.73),
  Task('pile_freelaw', 'FreeLaw', 6.12),
  Task('pile_github', 'Github', 7.59),
  Task('pile_gutenberg', 'Gutenberg (PG-19)', 2.17),
  Task('pile_hackernews', 'HackerNews', 0.62),
  Task('pile_nih-exporter', 'NIH ExPorter', 0.30),
  Task('pile_opensubtitles', 'OpenSubtitles', 1.55),
  Task('pile_openwebtext2', 'OpenWebText2', 10.01),
  Task('pile_philpapers', 'PhilPapers', 0.38),
  Task('pile_pile-cc', 'Pile-CC', 18.11),
  Task('pile_pubmed-abstracts', 'PubMed Abstracts', 3.07),
  Task('pile_pubmed-central', 'PubMed Central', 14.40),
  Task('pile_stackexchange', 'StackExchange', 5.13),
  Task('pile_ubuntu-irc', 'Ubuntu IRC', 0.88),
  Task('pile_uspto', 'USPTO Backgrounds', 3.65),
  Task('pile_wikipedia', 'Wikipedia (en)', 1.53),
  Task('pile_youtubesubtitles', 'YoutubeSubtitles', 0.60),
)


def canonical(domain: str) -> str:
  """The Pile's own name of a domain, or `domain` if it is none of the Pile's.

  Case, blanks and punctuation do not matter.
  """
  return _DOMAINS.get(_letters(domain), domain)


def find(item: str) -> list[Task]:
  """The tasks that `pile_all`, a name, or a glob over names says, in order.

  Raises:
    ValueError: if there are none.
  """
  if item == ALL:
    return list(TASKS)
  item = _MISSPELT.get(item, item)
  found = [task for task in TASKS if fnmatch.fnmatchcase(task.name, item)]
  if not found:
    names = ', '.join(task.name for task in TASKS)
    raise ValueError(f'eval.tasks: {item!r} is none of {ALL}, {names}')
  return found


def _letters(name: str) -> str:
  return ''.join(c for c in name.casefold() if c.isalnum())


# By letters and digits. Without 'Wikipedia', which has other languages, too.
_DOMAINS = {_letters(task.domain): task.domain for task in TASKS} | {
  'enron': 'Enron Emails',
  'mathdmmathematics': 'DM Mathematics',
  'projectgutenberg': 'Gutenberg (PG-19)',
  'uspto': 'USPTO Backgrounds',
}

# By the dataset builder of the original (Q29).
_MISSPELT = {'pile_upsto': 'pile_uspto'}
