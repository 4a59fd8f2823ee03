"""Serve a store on this host; drivers find it by the store's path.

python -m tttnn.main --config=configs/serve.py --config.store.path=/tmp/store

serve.py:cluster serves it from actors of a Ray cluster, see configs/base.py:

python -m tttnn.main --config=configs/serve.py:cluster \
  --config.store.path=/data/store --config.cluster.address=auto
"""

from configs import base


def get_config(variant=''):
  config = base.get_config()
  config.job = 'serve'
  if variant not in ('', 'cluster'):
    raise ValueError(f'serve.py:{variant}: the only variant is cluster')
  if variant:
    config.store.search = variant
  return config
