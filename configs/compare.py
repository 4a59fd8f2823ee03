"""Compare methods on the same documents and candidates.

python -m tttnn.main --config=configs/compare.py --workdir=/tmp/compare \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/test.jsonl \
  --config.eval.validation=/tmp/corpus/text/validation.jsonl

Some of the runs:  --config.compare.names='base,knn,sift'
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


def get_config():
  config = base.get_config()
  config.job = 'compare'
  config.method = 'ttt'
  config.compare.runs = _RUNS
  config.retrieval.neighbors = 50
  config.eval.at = '0,1,5,10,20,50'
  return config
