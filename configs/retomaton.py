"""RetoMaton (Alon et al. 2022): kNN-LM with pointers instead of most searches.

python -m tttnn.main --config=configs/retomaton.py --workdir=/tmp/retomaton \
  --config.model.path=/tmp/lm/export --config.knn.store=/tmp/knn_lm/tokens \
  --config.eval.documents=/tmp/corpus/text/test.jsonl

retomaton.min_knns=inf searches always; retomaton.clusters=N makes states.
"""

from configs import base


def get_config():
  config = base.get_config()
  config.job = 'evaluate'
  config.method = 'retomaton'
  config.knn.neighbors = 64
  return config
