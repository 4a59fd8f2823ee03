"""Look neighbours up once, for many runs of evaluate to replay.

python -m tttnn.main --config=configs/retrieve.py --workdir=/tmp/neighbors \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/test.jsonl

They then take --config.retrieval.replay=/tmp/neighbors/neighbors.jsonl, and
retrieval.neighbors up to the one given here. launch/sweep.py does so by itself.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'retrieve'
  return config
