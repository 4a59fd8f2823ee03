"""Turn pairs of texts, JSONL {"input", "output", "id"?}, into token ids.

python -m tttnn.main --config=configs/tokenize.py --workdir=/tmp/pairs \
  --config.corpus.train='/tmp/text/train-*.jsonl' \
  --config.corpus.validation=/tmp/text/validation.jsonl \
  --config.model.path=google-t5/t5-small \
  --config.tokenize.max_input=512 --config.tokenize.max_output=128

`train`, `build` and `evaluate` take the files that it leaves:
--config.pairs.train=/tmp/pairs/train.arrow
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'tokenize'
  return config
