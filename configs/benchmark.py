"""Measure speed and memory beside plain PyTorch, where there is torch.

python -m tttnn.main --config=configs/benchmark.py:ttt --workdir=/tmp/benchmark

What is measured: `ttt`, adapting to neighbours; `embed`, embedding texts, those
of --config.benchmark.texts='/tmp/texts/*.jsonl' or of the built-in corpus;
`search`, the search host and search on the devices, beside faiss and the
original's server; `select`, choosing among neighbours; `train`, steps of a
masked and a causal LM on packed rows. Each takes up to ten minutes on two
cores, which should have nothing else to do, and under eight with an
accelerator. benchmark.py:ttt,short (embed,short, search,short and so on) shows
in a minute that it works.

`knn_lm` makes a store of 500,000 tokens and evaluates with it, beside the model
alone: half an hour on two cores. Run again, it goes on with what is not there;
--config.benchmark.parts=build,speed,retomaton chooses what is measured.
"""

import os

from configs import base

_RIVALS = os.path.join(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
  'launch',
  'rivals',
)
_SHAPES = {
  'embed': 'small,base,long',
  'knn_lm': 'full',
  'search': 'full',
  'select': 'full',
  'train': 'roberta,gpt2',
  'ttt': 'small-1024,small-128,tiny',
}
_SCRIPTS = {  # Of rivals.
  'embed': 'embed_torch.py',
  'search': 'search_connection.py',
  'select': 'select_dense.py',
  'train': 'train_torch.py',
  'ttt': 'ttt_torch.py',
}


def get_config(variant='ttt'):
  config = base.get_config()
  config.job = 'benchmark'
  name, *preset = variant.split(',')
  if name not in _SHAPES or preset not in ([], ['short']):
    raise ValueError(
      f'benchmark.py:{variant}: the variant is one of {", ".join(_SHAPES)}, '
      'and behind a comma short'
    )
  config.benchmark.name = name
  if name in _SCRIPTS:
    config.benchmark.rival = os.path.join(_RIVALS, _SCRIPTS[name])
  config.benchmark.shapes = _SHAPES[name]
  # So much that a side that adapts otherwise is found out.
  config.ttt.learning_rate = 1e-4
  if preset:
    config.benchmark.shapes = 'mini'
    config.benchmark.repeats = 2
    config.benchmark.try_settings = False
  return config
