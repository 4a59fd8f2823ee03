"""Go on with prompts, before and after adapting: generate.py:ttt, or :base.

Or with neighbours at each token: generate.py:knn_lm, or :retomaton.

python -m tttnn.main --config=configs/generate.py \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.ttt.learning_rate=5e-4 --config.generate.prompt='def main(argv):'

Neighbours at each token:  --config.store.path=/tmp/knn_lm/tokens, as
knn_lm.py leaves it, in place of the store of documents and its embedder.
A file of prompts:  --config.generate.input=FILE --config.generate.output=FILE
Drawn, not likeliest:  --config.generate.temperature=0.8 \
  --config.generate.top_p=0.95 --config.seed=1
"""

from configs import base


def get_config(variant='ttt'):
  config = base.get_config()
  config.job = 'generate'
  if variant not in ('base', 'ttt', 'knn_lm', 'retomaton'):
    raise ValueError(
      f'generate.py:{variant}: the variants are base, ttt, knn_lm and retomaton'
    )
  config.method = variant
  config.knn.neighbors = 64
  config.retrieval.neighbors = 10
  return config
