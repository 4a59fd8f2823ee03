"""How far documents are from their neighbours, as the store grows.

python -m tttnn.main --config=configs/distances.py --workdir=/tmp/distances \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/validation.jsonl

A small store has few documents in its smallest fraction: ask for as many
neighbours, or fewer, by --config.retrieval.neighbors.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'distances'
  config.retrieval.neighbors = 100
  return config
