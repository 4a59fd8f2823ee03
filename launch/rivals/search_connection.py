"""Search as the original serves it: one request a connection, one at a time.

A process holds a faiss index, accepts connections of multiprocessing.connection
at a Unix socket, and searches each query by itself, in the order they come.

    python search_connection.py serve INDEX ADDRESS THREADS
    python search_connection.py ask ADDRESS QUERIES.npy K OUTSTANDING

`serve` prints "ready". `ask` prints "ready", waits for a line with a number of
seconds, asks for that long with so many queries outstanding, and prints JSON:
how many were answered, and the ids of the first ones.
"""

import json
from multiprocessing import connection
import sys
import threading
import time

import numpy as np

KEY = b'benchmark'
SHOWN = 8


def serve(path, address, threads):
  import faiss

  faiss.omp_set_num_threads(int(threads))
  index = faiss.read_index(path)
  with connection.Listener(address, backlog=128, authkey=KEY) as listener:
    print('ready', flush=True)
    while True:
      with listener.accept() as asked:
        query, k = asked.recv()
        asked.send(index.search(query, k))


def ask(address, queries_path, k, outstanding):
  queries = np.load(queries_path, allow_pickle=False)
  k, outstanding = int(k), int(outstanding)
  answered = [0] * outstanding
  first = {}
  end = 0.0

  def one(i):
    with connection.Client(address, authkey=KEY) as client:
      client.send((queries[i : i + 1], k))
      return client.recv()[1][0].tolist()

  def keep_asking(worker):
    number = worker
    while time.perf_counter() < end:
      found = one(number % len(queries))
      if number < SHOWN:
        first[number] = found
      answered[worker] += 1
      number += outstanding

  one(0)
  print('ready', flush=True)
  end = time.perf_counter() + float(sys.stdin.readline())
  workers = [
    threading.Thread(target=keep_asking, args=(i,)) for i in range(outstanding)
  ]
  for worker in workers:
    worker.start()
  for worker in workers:
    worker.join()
  print(json.dumps({'answered': sum(answered), 'first': first}), flush=True)


if __name__ == '__main__':
  {'serve': serve, 'ask': ask}[sys.argv[1]](*sys.argv[2:])
