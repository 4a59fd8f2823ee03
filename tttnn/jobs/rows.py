"""What a row of `results.jsonl` says of a document, whatever the method."""

from collections.abc import Sequence

import numpy as np

from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.corpus import pairs
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.scoring import results
from tttnn.scoring import token_scores

# Characters of a neighbour, and of a query, that are kept with token scores.
_KEPT = 4000


def about(config, case: documents_lib.Case) -> dict:
  """The first fields of the row; without neighbours, until these are known."""
  document = case.document
  return {
    'doc_id': document.doc_id,
    'task': document.task,
    'method': config.method,
    'protocol': config.eval.protocol,
    **windows(config),
    'num_bytes': case.num_bytes,
    'num_words': case.num_words,
    'num_tokens': len(case.tokens),
    'neighbors': [],
    'missing_neighbors': 0,
    'seconds': {'retrieve': 0.0, 'select': 0.0},
  }


def tokens(
  config,
  tokenizer,
  case: documents_lib.Case,
  scores: Sequence[np.ndarray],
  at: Sequence[int],
  neighbors: Sequence[str] = (),
  *,
  mixture: bool = False,
) -> dict[str, token_scores.Tokens]:
  """What a row has beside its line: nothing without eval.save_tokens.

  Args:
    config: of the run.
    tokenizer: of the scored tokens.
    case: the document.
    scores: log-likelihoods [T] of its tokens, nats, one a count.
    at: the counts.
    neighbors: texts, in the row's order.
    mixture: as of `token_scores.Tokens`.
  """
  if not config.eval.save_tokens:
    return {}
  text, ends = tokenizer_lib.pieces(tokenizer, case.text, case.tokens)
  kept = token_scores.Tokens(
    text=text,
    ends_T=np.array(ends, np.uint32),
    at=list(at),
    scores_CxT=np.stack([np.asarray(one, np.float32) for one in scores]),
    mixture=mixture,
    query=case.query[:_KEPT] if case.query != case.text else '',
    neighbors=[neighbor[:_KEPT] for neighbor in neighbors],
    neighbor_chars=[len(neighbor) for neighbor in neighbors],
  )
  return {results.TOKENS: kept}


def windows(config) -> dict[str, int]:
  """How documents are cut to be scored, as far as it is not the usual way."""
  names = ('window', 'stride')
  return {name: config.eval[name] for name in names if config.eval[name]}


def identity(config) -> dict[str, object]:
  """What the scored text and its windows depend on, flat."""
  if config.pairs.test:
    return {'pairs.test': pairs.open(config.pairs.test).digest}
  return {
    'eval.documents': jsonl.digest(config.eval.documents),
    'eval.protocol': config.eval.protocol,
    'eval.split_prefix': config.eval.split_prefix,
    **{f'eval.{name}': value for name, value in windows(config).items()},
  }
