"""Choosing texts to train on by the plain form of SIFT, to measure with.

The posterior covariance of the query and all of its candidates is held in
float64 and conditioned on each pick, as Huebotter et al. (2025) write it. It
imports numpy alone.

It answers JSON lines on stdin with JSON lines on stdout. The first request is
{"call": "load", "queries": FILE, "vectors": FILE}, .npy files of [Q, D] and
[Q, M, D], the next ones are {"call": "run", "lambda": NOISE, "count": PICKS}.
The end of stdin ends it.
"""

import json
import os
import sys
import time

import numpy as np


class Side:
  """Queries and their candidates."""

  def load(self, queries, vectors):
    self.queries = np.load(queries, allow_pickle=False)
    self.vectors = np.load(vectors, allow_pickle=False)
    return {
      'versions': {'numpy': np.__version__},
      'threads': len(os.sched_getaffinity(0)),
    }

  def run(self, count, **settings):
    begin = time.perf_counter()
    picks = [
      pick(query, vectors, settings['lambda'], count)
      for query, vectors in zip(self.queries, self.vectors, strict=True)
    ]
    return {'seconds': time.perf_counter() - begin, 'picks': picks}


def pick(query, vectors, noise, count):
  """Places of the picks of one query."""
  points = np.concatenate([vectors, query[None]]).astype(np.float64)
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  covariance = points @ points.T  # The query is the last.
  picks = []
  for _ in range(count):
    gains = covariance[-1, :-1] ** 2 / (np.diagonal(covariance)[:-1] + noise)
    best = int(np.argmax(gains))
    column = covariance[:, best] / np.sqrt(covariance[best, best] + noise)
    covariance = covariance - np.outer(column, column)
    picks.append(best)
  return picks


def main():
  side = Side()
  calls = {'load': side.load, 'run': side.run}
  for line in sys.stdin:
    request = json.loads(line)
    answer = calls[request.pop('call')](**request)
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  main()
