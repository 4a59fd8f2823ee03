"""Evaluate a method on documents: evaluate.py:ttt, or evaluate.py:base.

python -m tttnn.main --config=configs/evaluate.py:ttt --workdir=/tmp/ttt \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/test.jsonl
"""

from configs import base


def get_config(variant='ttt'):
  config = base.get_config()
  config.job = 'evaluate'
  if variant not in ('base', 'ttt'):
    raise ValueError(f'evaluate.py:{variant}: the variants are base and ttt')
  config.method = variant
  return config
