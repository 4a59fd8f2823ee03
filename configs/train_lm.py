"""Train a causal language model, GPT-2 or GPT-Neo.

python -m tttnn.main --config=configs/train_lm.py --workdir=/tmp/lm \
  --config.corpus.train='/tmp/corpus/text/train/*.jsonl' \
  --config.corpus.validation=/tmp/corpus/text/validation.jsonl \
  --config.train.tokenizer=/tmp/corpus/tokenizers/gpt2

To go on from a checkpoint instead: --config.train.init=DIRECTORY_OR_HUB_ID
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'train'
  config.train.objective = 'causal'
  return config
