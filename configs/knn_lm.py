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

Of pairs of texts, JSONL {"input", "output", "id"?}, by a T5 or a causal LM that
is there (knn_mt.py trains one):

python -m tttnn.main --config=configs/knn_lm.py:t5 --workdir=/tmp/knn_t5 \
  --config.model.path=google-t5/t5-small \
  --config.corpus.train='/tmp/text/train-*.jsonl' \
  --config.corpus.test=/tmp/text/test.jsonl

The pairs go to WORKDIR/pairs. --config.eval.generate=True writes outputs, too.
"""

from configs import base


def get_config(variant='gpt2'):
  config = base.get_config()
  if variant not in ('gpt2', 't5'):
    raise ValueError(
      f'knn_lm.py:{variant}: the variants are gpt2, for documents by GPT-2 and '
      'GPT-Neo, and t5, for pairs'
    )
  config.job = 'pipeline'
  config.method = 'knn_lm'
  config.store.key = 'ffn_input'
  config.store.path = '{workdir}/tokens'
  config.knn.neighbors = 64
  steps = (('build', {'job': 'build'}), ('', {'job': 'evaluate'}))
  if variant == 't5':
    config.pairs.train = '{workdir}/pairs/train.arrow'
    config.pairs.test = '{workdir}/pairs/test.arrow'
    config.knn.neighbors = 32
    config.knn.temperature = 50.0
    steps = (('pairs', {'job': 'tokenize'}), *steps)
  config.pipeline.steps = steps
  return config
