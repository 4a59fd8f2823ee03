"""Train a T5 or a GPT-2 on pairs of texts, to write outputs given inputs.

python -m tttnn.main --config=configs/train_pairs.py:t5 --workdir=/tmp/pairs \
  --config.corpus.train='/tmp/text/train-*.jsonl' \
  --config.corpus.validation=/tmp/text/validation.jsonl

with JSONL {"input", "output", "id"?}; train_pairs.py:gpt2 trains a GPT-2. One
command tokenizes (tokens/), trains (train/) and exports the parameters with the
smallest validation loss (export/); rerunning goes on.

To begin with another model: --config.train.init=DIRECTORY_OR_HUB_ID
From scratch: --config.train.init='' --config.train.tokenizer=DIRECTORY, and a
shape (train.layers and so on).
"""

from configs import base

_INIT = {'t5': 'google-t5/t5-small', 'gpt2': 'openai-community/gpt2'}
_LEARNING_RATES = {'t5': 3e-4, 'gpt2': 5e-5}


def get_config(variant='t5'):
  config = base.get_config()
  if variant not in _INIT:
    raise ValueError(
      f'train_pairs.py:{variant}: the variant is one of {", ".join(_INIT)}'
    )
  config.job = 'pipeline'
  config.pairs.train = '{workdir}/tokens/train.arrow'
  config.pairs.validation = '{workdir}/tokens/validation.arrow'
  config.train.objective = 'pairs'
  config.train.model_type = variant
  config.train.init = _INIT[variant]
  config.train.learning_rate = _LEARNING_RATES[variant]
  config.train.batch_size = 32
  config.train.dropout = True
  config.train.eval_every = 100
  config.pipeline.steps = (
    ('tokens', {'job': 'tokenize'}),
    ('train', {'job': 'train'}),
    ('', {'job': 'export', 'model.path': '{workdir}/train/best'}),
  )
  return config
