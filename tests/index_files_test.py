"""Flat files that were made elsewhere, adopted by a store."""

import functools
import json
import os

import faiss
import numpy as np
import pytest

from tests import index_test
from tttnn.datastore import build
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib


def import_files(directory, parts, metric=faiss.METRIC_L2):
  """A corpus of the parts' row numbers, a Flat file of each, its embedder."""
  directory.mkdir()
  paths, files, number = [], [], 0
  vectors = np.concatenate(parts)
  for i, part in enumerate(parts):
    paths.append(str(directory / f'{i}.jsonl'))
    with open(paths[-1], 'w') as f:
      for _ in part:
        f.write(json.dumps({'text': str(number)}) + '\n')
        number += 1
    index = faiss.IndexFlat(part.shape[1], metric)
    index.add(part)
    files.append(str(directory / f'{i}.index'))
    faiss.write_index(index, files[-1])

  def embed(texts):
    return vectors[[int(text) for text in texts]]

  return paths, files, functools.partial(map, embed)


def test_files_made_elsewhere_are_used_where_they_are(tmp_path):
  rng = np.random.default_rng(0)
  parts = [index_test.usual(rng, 40), index_test.usual(rng, 30)]
  parts[1][5] = np.nan
  paths, files, embed = import_files(tmp_path / 'c', parts)
  arguments = {'dim': 6, 'fingerprint': '', 'imported': files}
  chosen = {'options': build.Options(threads=1)}
  store = build.build(tmp_path / 's', paths, embed, **arguments, **chosen)
  assert not list(store.directory.rglob('*.faiss'))
  assert store.manifest.shards[1].left_out == (5,)
  assert store.index.self_check['recall'] == 1
  queries = index_test.usual(rng, 5)
  found = engine_lib.Engine(store, threads=1).search(queries, 69)
  expected = index_test.brute_force(np.concatenate(parts), queries, 69)
  np.testing.assert_array_equal(found[1], expected[1])
  np.testing.assert_array_equal(found[0], expected[0])
  # Another index is built from them.
  chosen = {'options': build.Options(index='SQ8', threads=1)}
  store = build.build(tmp_path / 's', paths, embed, **arguments, **chosen)
  found = engine_lib.Engine(store, threads=1).search(queries, 9)
  np.testing.assert_array_equal(found[1], expected[1][:, :9])
  os.truncate(files[0], 100)
  with pytest.raises(ValueError, match=r'0\.index has 100 bytes, but \d+ are'):
    store_lib.open(tmp_path / 's', 'Flat')


def test_files_of_something_else_are_not_imported(tmp_path):
  rng = np.random.default_rng(0)
  paths, files, embed = import_files(
    tmp_path / 'c', [index_test.usual(rng, 40), index_test.usual(rng, 30)]
  )
  chosen = {'options': build.Options(threads=1), 'fingerprint': ''}

  def run(imported, dim=6, embed=embed):
    build.build(
      tmp_path / 's', paths, embed, dim=dim, imported=imported, **chosen
    )

  with pytest.raises(ValueError, match='1 index files .* 2 corpus files'):
    run(files[:1])
  with pytest.raises(ValueError, match=r'holds 30 vectors .* has 40 lines'):
    run(files[::-1])
  with pytest.raises(ValueError, match=r'line \d+ finds document \d+, at'):
    run(
      files,
      embed=lambda blocks: (index_test.usual(rng, len(b)) for b in blocks),
    )
  other = faiss.IndexFlatIP(6)
  other.add(index_test.usual(rng, 40))
  faiss.write_index(other, files[0])
  with pytest.raises(ValueError, match='faiss metric 0; .* l2 is 1'):
    run(files)
  other = faiss.index_factory(6, 'SQ8')
  other.train(index_test.usual(rng, 40))
  other.add(index_test.usual(rng, 40))
  faiss.write_index(other, files[0])
  with pytest.raises(ValueError, match='ScalarQuantizer: only Flat files'):
    run(files)


def test_vectors_of_other_lengths_are_no_cosine(tmp_path):
  rng = np.random.default_rng(0)
  vectors = index_test.usual(rng, 40)
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  metric = faiss.METRIC_INNER_PRODUCT
  options = build.Options(metric='cosine', threads=1)

  def run(name, vectors):
    paths, files, embed = import_files(tmp_path / name, [vectors], metric)
    return build.build(
      tmp_path / name / 's',
      paths,
      embed,
      dim=6,
      fingerprint='',
      imported=files,
      options=options,
    )

  engine = engine_lib.Engine(run('unit', unit), threads=1)
  distances, ids = engine.search(3 * vectors[:5], 1)
  assert ids[:, 0].tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_allclose(distances, 0, atol=1e-6)
  with pytest.raises(ValueError, match='vector 0 has length .*cosine all have'):
    run('other', vectors)
