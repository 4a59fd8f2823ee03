"""Write the built-in corpus and train tokenizers on it.

python -m tttnn.main --config=configs/corpus.py --workdir=/tmp/corpus
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'corpus'
  return config
