"""kNN-LM (Khandelwal et al. 2020): a store of a model's states, then evaluate.

python -m tttnn.main --config=configs/knn_lm.py --workdir=/tmp/knn_lm \
  --config.model.path=/tmp/lm/export \
  --config.corpus.train='/tmp/corpus/text/train/*.jsonl' \
  --config.eval.documents=/tmp/corpus/text/test.jsonl

The store goes to WORKDIR/tokens. Lambda and temperature that suit it, chosen on
other documents than the scored ones:

  --config.eval.validation=/tmp/corpus/text/validation.jsonl \
  --config.knn.lambdas=0.05,0.1,0.2,0.3,0.4,0.5 \
  --config.knn.temperatures=1,3,10,30,100
"""

from configs import base


def get_config(variant='gpt2'):
  config = base.get_config()
  if variant != 'gpt2':
    raise ValueError(
      f'knn_lm.py:{variant}: the only variant is gpt2, for GPT-2 and GPT-Neo'
    )
  config.job = 'pipeline'
  config.method = 'knn_lm'
  config.store.key = 'ffn_input'
  config.store.path = '{workdir}/tokens'
  config.knn.neighbors = 64
  config.pipeline.steps = (
    ('build', {'job': 'build'}),
    ('', {'job': 'evaluate'}),
  )
  return config
