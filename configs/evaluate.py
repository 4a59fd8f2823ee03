"""Evaluate a method on documents: evaluate.py:METHOD.

base, ttt, dynamic_eval, in_context or interpolation. METHOD,faithful behaves as
the code of Hardt & Sun (2024) does; METHOD,clean is the default, the clean way.

python -m tttnn.main --config=configs/evaluate.py:ttt --workdir=/tmp/ttt \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/test.jsonl
"""

from configs import base

_METHODS = (
  'base',
  'ttt',
  'dynamic_eval',
  'in_context',
  'interpolation',
  'knn_lm',
  'retomaton',
)


def get_config(variant='ttt'):
  config = base.get_config()
  config.job = 'evaluate'
  method, *preset = variant.split(',')
  if method not in _METHODS or preset not in ([], ['clean'], ['faithful']):
    raise ValueError(
      f'evaluate.py:{variant}: the variant is one of {", ".join(_METHODS)}, '
      'and behind a comma clean (as without it) or faithful'
    )
  config.method = method
  if preset == ['faithful']:
    _faithful(config)
  return config


def _faithful(config) -> None:
  config.ttt.optimizer_state = 'carry'  # Q1
  config.ttt.weight_decay = 0.01  # Q2
  config.ttt.dropout = True  # Q4
  config.ttt.short_windows = 'step'  # Q6
  config.eval.protocol = 'whole'  # Q14
  config.eval.split_prefix = 1024  # Q15
  if config.method == 'ttt':
    config.retrieval.max_distance = 4.0  # Q16
    config.eval.at = 'all'  # Q13
    return
  config.retrieval.neighbors = 20
  if config.method == 'dynamic_eval':  # Q33
    config.eval.protocol = 'split'
    config.dynamic_eval.steps = 20
    config.eval.at = '0,6'
  if config.method == 'in_context':
    config.in_context.variant = 'as_coded'  # Q31
    config.retrieval.max_distance = 2.3  # Q16
  if config.method == 'interpolation':
    config.interpolation.alpha = 'test'  # Q32
