"""kNN-MT (Khandelwal et al. 2021): train a T5 on pairs, store, write outputs.

python -m tttnn.main --config=configs/knn_mt.py --workdir=/tmp/knn_mt \
  --config.corpus.train='/tmp/text/train-*.jsonl' \
  --config.corpus.validation=/tmp/text/validation.jsonl \
  --config.corpus.test=/tmp/text/test.jsonl

with JSONL {"input", "output", "id"?}. One command tokenizes (tokens/), trains
(train/), stores the tokens of the training outputs (store/) and writes outputs
for the test inputs with and without neighbours (outputs.jsonl, summary.md:
BLEU, extra [mt]); rerunning goes on. knn_mt.py:retomaton leaves most searches
out (Alon et al. 2022).

The temperature is the model's own: try 10 to 200 with a lambda of 0.2 to 0.8 on
validation pairs, in another --workdir:

python -m tttnn.main --config=configs/evaluate.py:knn_lm --workdir=/tmp/try \
  --config.model.path=/tmp/knn_mt/train/best \
  --config.store.path=/tmp/knn_mt/store \
  --config.pairs.test=/tmp/knn_mt/tokens/validation.arrow \
  --config.knn.neighbors=32 --config.knn.temperature=100 \
  --config.knn.cache=/tmp/try/found

For a million tokens and more: --config.store.index='IVF4096,PQ64;nprobe=32'
"""

from configs import train_pairs

_METHODS = {'knn': 'knn_lm', 'retomaton': 'retomaton'}


def get_config(variant='knn'):
  config = train_pairs.get_config('t5')
  if variant not in _METHODS:
    raise ValueError(
      f'knn_mt.py:{variant}: the variant is one of {", ".join(_METHODS)}'
    )
  config.pairs.test = '{workdir}/tokens/test.arrow'
  config.store.key = 'ffn_input'
  config.store.path = '{workdir}/store'
  config.method = _METHODS[variant]
  config.knn.neighbors = 32
  config.knn.temperature = 50.0
  config.eval.generate = True
  config.generate.beams = 5
  config.generate.max_tokens = 128
  of_best = {'model.path': '{workdir}/train/best'}
  config.pipeline.steps = (
    ('tokens', {'job': 'tokenize'}),
    ('train', {'job': 'train'}),
    ('build', {'job': 'build'} | of_best),
    ('', {'job': 'evaluate'} | of_best),
  )
  return config
