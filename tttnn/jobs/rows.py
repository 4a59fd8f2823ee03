"""What a row of `results.jsonl` says of a document, whatever the method."""

from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.corpus import pairs


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
