"""Measure speed and memory beside the plain PyTorch loop, where there is torch.

python -m tttnn.main --config=configs/benchmark.py:ttt --workdir=/tmp/benchmark

About ten minutes on two cores, which should have nothing else to do, and under
eight with an accelerator. benchmark.py:ttt,short shows in a minute that it
works.
"""

import os

from configs import base

_RIVALS = os.path.join(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
  'launch',
  'rivals',
)


def get_config(variant='ttt'):
  config = base.get_config()
  config.job = 'benchmark'
  name, *preset = variant.split(',')
  if name != 'ttt' or preset not in ([], ['short']):
    raise ValueError(
      f'benchmark.py:{variant}: the variant is ttt, and behind a comma short'
    )
  config.benchmark.name = name
  config.benchmark.rival = os.path.join(_RIVALS, 'ttt_torch.py')
  # So much that a side that adapts otherwise is found out.
  config.ttt.learning_rate = 1e-4
  if preset:
    config.benchmark.shapes = 'mini'
    config.benchmark.repeats = 2
    config.benchmark.try_settings = False
  return config
