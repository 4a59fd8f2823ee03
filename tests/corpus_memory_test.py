"""What text costs in memory: less than a 50th of it, in a process of its own.

Pages of mapped files count as resident, so it is anonymous memory that says
what a process really holds.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from tests import tiny
from tttnn.corpus import jsonl
from tttnn.corpus import seekable

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = 12_000
TEXT_BYTES = 10_000

# Prints lines "name bytes". The embedder stands in for one whose own memory
# would hide that of the texts.
BUILD_AND_READ = """
import sys
import numpy as np
from tttnn.datastore import build
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib

def anonymous():
  with open('/proc/self/status') as file:
    line = next(line for line in file if line.startswith('RssAnon'))
  return int(line.split()[1]) * 1024

def embed(blocks):
  for texts in blocks:
    yield np.array([[len(t), hash(t) % 997] for t in texts], np.float32)

directory, path, action = sys.argv[1:]
if action == 'build':
  options = build.Options(block=64, threads=1, min_recall=0)
  build.build(
    directory, [path], embed, dim=2, fingerprint='', options=options
  )
before = anonymous()
store = store_lib.open(directory)
engine = engine_lib.Engine(store, threads=1)
engine.search(np.zeros((1, 2)), 3)
length = sum(len(store.corpus.text(i)) for i in range(len(store.corpus)))
print(anonymous() - before, length)
"""

UNPACK = """
import sys
import threading
import tempfile
import numpy
import pyarrow.parquet
from tttnn.corpus import seekable

def anonymous():
  with open('/proc/self/status') as file:
    line = next(line for line in file if line.startswith('RssAnon'))
  return int(line.split()[1]) * 1024

directory, path = sys.argv[1:]
before = most = anonymous()
done = threading.Event()

def watch():
  global most
  while not done.wait(0.002):
    most = max(most, anonymous())

thread = threading.Thread(target=watch)
thread.start()
seekable.unpack(path, seekable.stamp(path), directory)
done.set()
thread.join()
print(most - before)
"""


def python(script, *arguments):
  command = [sys.executable, '-c', script, *map(str, arguments)]
  found = subprocess.run(
    command, cwd=ROOT, check=True, timeout=120, stdout=subprocess.PIPE
  )
  return [int(word) for word in found.stdout.split()]


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  words = ' '.join(rng.choice(tiny.TEXT.split(), 100_000))
  begins = rng.integers(0, len(words) - TEXT_BYTES, DOCUMENTS)
  return [words[begin : begin + TEXT_BYTES] for begin in begins]


@pytest.fixture(scope='module')
def compressed(texts, tmp_path_factory):
  path = tmp_path_factory.mktemp('corpus') / 'a.jsonl.zst'
  with pyarrow.CompressedOutputStream(os.fspath(path), 'zstd') as file:
    for text in texts:
      file.write(json.dumps({'text': text}).encode() + b'\n')
  return path


def test_a_process_that_reads_every_text_holds_none(compressed, tmp_path):
  arguments = (BUILD_AND_READ, tmp_path / 's', compressed)
  python(*arguments, 'build')
  held, length = python(*arguments, 'read')
  assert length == DOCUMENTS * TEXT_BYTES
  assert held < 0.02 * length


def test_unpacking_holds_a_part(compressed, texts, tmp_path):
  size = DOCUMENTS * TEXT_BYTES
  (most,) = python(UNPACK, tmp_path / 'zst', compressed)
  assert most < 0.1 * size
  path = tmp_path / 'a.parquet'
  # One group of rows; its pages, not the group, are what Parquet unpacks.
  table = pyarrow.table({'text': texts})
  parquet.write_table(
    table, path, row_group_size=len(texts), write_batch_size=64
  )
  assert parquet.read_metadata(path).num_row_groups == 1
  (most,) = python(UNPACK, tmp_path / 'parquet', path)
  assert most < 0.4 * size
  plain = seekable.unpack(path, seekable.stamp(path), tmp_path / 'parquet')
  assert len(jsonl.scan(plain)) == DOCUMENTS + 1
