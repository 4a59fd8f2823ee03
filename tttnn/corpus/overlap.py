"""How much of a text stands word for word in others.

Shared runs of 13 words are the field's measure of whether a language model has
met its test text in training: Brown et al., "Language Models are Few-Shot
Learners", 2020, appendix C, look for them between benchmarks and the training
data of GPT-3, as shorter ones are often common phrases. Here they tell whether
a neighbour helps as a near copy of the document, or otherwise.
"""

from collections.abc import Sequence
import re


def shares(scored: str, neighbors: Sequence[str], n: int = 13) -> list[float]:
  """The share of a text's distinct word n-grams that occur in each neighbour.

  Words are runs of letters, digits and underscores, case-folded.

  Args:
    scored: the text. One of fewer than n words is a single gram of all of
      them; one without words has the share 0.
    neighbors: other texts; n-grams do not run from one into the next.
    n: words of a gram.

  Returns:
    A number from 0 to 1 a neighbour.

  Raises:
    ValueError: for an n below 1.
  """
  if n < 1:
    raise ValueError(f'a gram of n={n} words')
  words = _words(scored)
  if not words:
    return [0.0] * len(neighbors)
  n = min(n, len(words))
  grams = set(_grams(words, n))
  return [
    len(grams.intersection(_grams(_words(text), n))) / len(grams)
    for text in neighbors
  ]


def _words(text: str) -> list[str]:
  return re.findall(r'\w+', text.casefold())


def _grams(words: list[str], n: int):
  """All runs of n words, as tuples; lazy, so that few exist at a time."""
  return zip(*(words[i:] for i in range(n)), strict=False)
