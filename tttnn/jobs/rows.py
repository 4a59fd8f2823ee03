"""What a row of `results.jsonl` says of a document, whatever the method."""

from tttnn.corpus import documents as documents_lib


def about(config, case: documents_lib.Case) -> dict:
  """The first fields of the row; without neighbours, until these are known."""
  document = case.document
  return {
    'doc_id': document.doc_id,
    'task': document.task,
    'method': config.method,
    'protocol': config.eval.protocol,
    'num_bytes': case.num_bytes,
    'num_words': case.num_words,
    'num_tokens': len(case.tokens),
    'neighbors': [],
    'missing_neighbors': 0,
    'seconds': {'retrieve': 0.0, 'select': 0.0},
  }
