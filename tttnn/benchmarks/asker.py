"""A client of the search host for the `search` benchmark, a process of its own.

    python -m tttnn.benchmarks.asker ADDRESS QUERIES.npy K OUTSTANDING

It prints "ready", waits for a line with a number of seconds, asks for that long
with so many queries outstanding, each over a connection of its own, and prints
JSON: how many were answered, and the ids of the first ones.
"""

import json
import sys
import threading
import time

import numpy as np

from tttnn.datastore import client as client_lib

SHOWN = 8  # Queries whose ids are told.


def main(address: str, path: str, k: int, outstanding: int) -> None:
  queries_QxD = np.load(path, allow_pickle=False)
  clients = [client_lib.Client(address) for _ in range(outstanding)]
  answered = [0] * outstanding
  first = {}

  def keep_asking(worker: int, end: float) -> None:
    number = worker
    while time.perf_counter() < end:
      i = number % len(queries_QxD)
      _, ids_Qxk = clients[worker].search(queries_QxD[i : i + 1], k)
      if number < SHOWN:
        first[number] = ids_Qxk[0].tolist()
      answered[worker] += 1
      number += outstanding

  print('ready', flush=True)
  end = time.perf_counter() + float(sys.stdin.readline())
  workers = [
    threading.Thread(target=keep_asking, args=(i, end))
    for i in range(outstanding)
  ]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  print(json.dumps({'answered': sum(answered), 'first': first}), flush=True)


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
