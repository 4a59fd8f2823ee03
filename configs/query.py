"""Look texts up in a store, or how they go on; see or stop its server.

python -m tttnn.main --config=configs/query.py --config.store.path=/tmp/store \
  --config.embedder.path=/tmp/embedder/export \
  --config.query.text='def main(argv):'

A file of texts:  --config.query.input=FILE --config.query.output=FILE
How a text goes on, by a store of tokens (configs/knn_lm.py):
  --config.model.path=/tmp/lm/export instead of the embedder
The server:       --config.query.action=status, or shutdown
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'query'
  config.retrieval.neighbors = 10
  return config
