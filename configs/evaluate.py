"""Evaluate a method on documents: evaluate.py:ttt, or evaluate.py:base.

evaluate.py:ttt,faithful behaves as the code of Hardt & Sun (2024) does;
evaluate.py:ttt,clean, the clean way, is the default.

python -m tttnn.main --config=configs/evaluate.py:ttt --workdir=/tmp/ttt \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/test.jsonl
"""

from configs import base


def get_config(variant='ttt'):
  config = base.get_config()
  config.job = 'evaluate'
  method, *preset = variant.split(',')
  if method not in ('base', 'ttt') or preset not in (
    [],
    ['clean'],
    ['faithful'],
  ):
    raise ValueError(
      f'evaluate.py:{variant}: the variants are base and ttt, and behind a '
      'comma clean (as without it) or faithful'
    )
  config.method = method
  if preset == ['faithful']:
    config.ttt.optimizer_state = 'carry'  # Q1
    config.ttt.weight_decay = 0.01  # Q2
    config.ttt.dropout = True  # Q4
    config.ttt.short_windows = 'step'  # Q6
    config.retrieval.max_distance = 4.0  # Q16
    config.eval.at = 'all'  # Q13
    config.eval.protocol = 'whole'  # Q14
    config.eval.split_prefix = 1024  # Q15
  return config
