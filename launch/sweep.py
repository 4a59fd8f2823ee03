"""Runs a config at every point of a grid, and ranks the points.

python launch/sweep.py --config=configs/evaluate.py:ttt --workdir=/tmp/sweep \
  --sweep='ttt.learning_rate=1e-4,3e-4,1e-3;retrieval.neighbors=5,20' \
  --config.model.path=/tmp/lm/export \
  --config.embedder.path=/tmp/embedder/export --config.store.path=/tmp/store \
  --config.eval.documents=/tmp/corpus/text/validation.jsonl

Each point is a run of `python -m tttnn.main` in a directory of its own, with
its output in log.txt. What is done is skipped; a point that fails stops no
other. Points of `evaluate` that ask a store the same look their neighbours up
once, see tttnn/jobs/shared.py. At the end sweep.md and sweep.csv have a line a
point, the best first. A value that holds commas or semicolons stands in quotes:
'eval.at="0,5","0,20"'.

Elsewhere than here:  --print=commands, those of neighbours first; or
--print=slurm > sweep.slurm; bash sweep.slurm [SBATCH OPTION...]
and then --print=table.
"""

import os
import sys

from absl import app

# This checkout, whatever else is installed.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tttnn import sweep

if __name__ == '__main__':
  app.run(sweep.main, flags_parser=sweep.parse_flags)
