"""Train a RoBERTa with masked LM, to embed with.

python -m tttnn.main --config=configs/train_embedder.py \
  --workdir=/tmp/embedder \
  --config.corpus.train='/tmp/corpus/text/train/*.jsonl' \
  --config.corpus.validation=/tmp/corpus/text/validation.jsonl \
  --config.train.tokenizer=/tmp/corpus/tokenizers/roberta

To go on from a checkpoint instead: --config.train.init=DIRECTORY_OR_HUB_ID
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'train'
  config.train.objective = 'masked'
  config.train.model_type = 'roberta'
  return config
