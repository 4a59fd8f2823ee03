"""What a store would take: bytes, hosts, time to build and to search.

python -m tttnn.main --config=configs/plan.py \
  --config.plan.documents=210_000_000 --config.plan.ram=512
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'plan'
  return config
