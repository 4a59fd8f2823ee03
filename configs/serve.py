"""Serve a store on this host; drivers find it by the store's path.

python -m tttnn.main --config=configs/serve.py --config.store.path=/tmp/store
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'serve'
  return config
