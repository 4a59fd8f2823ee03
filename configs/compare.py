"""Compare methods on the same documents and candidates: compare.py[:knn_lm].

python -m tttnn.main --config=configs/compare.py --workdir=/tmp/compare \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/test.jsonl \
  --config.eval.validation=/tmp/corpus/text/validation.jsonl

Some of the runs:  --config.compare.names='base,knn,sift'

compare.py:knn_lm has kNN-LM and RetoMaton, too, which need a store of tokens:

  --config.knn.store=/tmp/knn_lm/tokens
"""

from configs import base

_RUNS = (
  ('base', {'method': 'base'}),
  ('dynamic_eval', {'method': 'dynamic_eval', 'dynamic_eval.steps': 50}),
  ('in_context', {'method': 'in_context'}),
  ('interpolation', {'method': 'interpolation'}),
  ('knn', {}),
  ('knn-carried', {'ttt.optimizer_state': 'carry'}),
  ('sift', {'selection.name': 'sift'}),
  ('frank_wolfe', {'selection.name': 'frank_wolfe'}),
  ('random', {'selection.name': 'random'}),
)
# store.index and store.address are those of documents.
_TOKENS = {'store.index': '', 'store.address': ''}
_TOKEN_RUNS = (
  ('knn_lm', {'method': 'knn_lm', **_TOKENS}),
  ('retomaton', {'method': 'retomaton', **_TOKENS}),
)


def get_config(variant=''):
  config = base.get_config()
  if variant not in ('', 'knn_lm'):
    raise ValueError(f'compare.py:{variant}: the only variant is knn_lm')
  config.job = 'compare'
  config.method = 'ttt'
  config.compare.runs = _RUNS + (_TOKEN_RUNS if variant else ())
  config.retrieval.neighbors = 50
  config.eval.at = '0,1,5,10,20,50'
  config.knn.neighbors = 64
  config.knn.lambdas = '0.05,0.1,0.2,0.3,0.4,0.5,0.6'
  config.knn.temperatures = '1,3,10,30,100,300'
  return config
