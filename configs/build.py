"""Embed and index a corpus.

python -m tttnn.main --config=configs/build.py --workdir=/tmp/build \
  --config.corpus.train='/tmp/corpus/text/train/*.jsonl' \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store

With store.key, of the tokens of the corpus, as a language model reads them:

python -m tttnn.main --config=configs/build.py --workdir=/tmp/build_tokens \
  --config.corpus.train='/tmp/corpus/text/train/*.jsonl' \
  --config.model.path=/tmp/lm/export --config.store.key=ffn_input \
  --config.store.path=/tmp/tokens
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'build'
  return config
