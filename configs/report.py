"""Tables, plots and the page of a work directory that `evaluate` filled.

python -m tttnn.main --config=configs/report.py --workdir=/tmp/ttt
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'report'
  return config
