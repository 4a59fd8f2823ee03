"""Write a model, Orbax checkpoints for one, as a Hugging Face directory.

python -m tttnn.main --config=configs/export.py --workdir=/tmp/exported \
  --config.model.path=/tmp/lm/checkpoints
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'export'
  return config
