"""How well written texts agree with references: corpus BLEU, exact match.

BLEU (Papineni et al., ACL 2002) is that of sacreBLEU (Post, WMT 2018), which an
extra installs, and comes with its signature.
"""

from collections.abc import Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Of texts with their references.

  Attributes:
    bleu: corpus BLEU, 0 to 100.
    exact_match: share of the texts that are their reference, but for white
      space around them.
    signature: what sacreBLEU says of how BLEU was computed.
  """

  bleu: float
  exact_match: float
  signature: str


def load():
  """The package sacrebleu.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import sacrebleu
  except ImportError as e:
    raise ValueError(
      'BLEU is computed by sacrebleu, which is not here: install the extra '
      "[mt], as in pip install -e '.[cpu,mt]'"
    ) from e
  return sacrebleu


def check(tokenize: str) -> None:
  """Raises `ValueError` without sacrebleu, or for a tokenization it lacks."""
  known = sorted(load().metrics.BLEU.TOKENIZERS)
  if tokenize not in known:
    raise ValueError(
      f'eval.bleu_tokenize={tokenize!r} is not one of {", ".join(known)}'
    )


def agreement(
  texts: Sequence[str], references: Sequence[str], tokenize: str = '13a'
) -> Agreement:
  """Compares texts with one reference each.

  Args:
    texts: as they were written.
    references: as many.
    tokenize: how sacreBLEU cuts both into words.

  Raises:
    ValueError: as `check`, without texts, or for another number of references.
  """
  check(tokenize)
  if not texts or len(texts) != len(references):
    raise ValueError(f'{len(texts)} texts for {len(references)} references')
  bleu = load().metrics.BLEU(tokenize=tokenize)
  score = bleu.corpus_score(list(texts), [list(references)]).score
  same = sum(
    text.strip() == reference.strip()
    for text, reference in zip(texts, references, strict=True)
  )
  return Agreement(score, same / len(texts), str(bleu.get_signature()))
