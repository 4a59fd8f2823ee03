"""Embed and index a corpus.

python -m tttnn.main --config=configs/build.py --workdir=/tmp/build \
  --config.corpus.train='/tmp/corpus/text/train/*.jsonl' \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'build'
  return config
