"""What is selected of the candidates, and filtered, in whole runs."""

import json

import numpy as np
import pytest

from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.corpus import overlap
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import embed
from tttnn.datastore import store as store_lib
from tttnn.jobs import neighbors
from tttnn.methods import select

POOL, COUNT = 20, 6
changed, rows_of = world_lib.changed, world_lib.rows_of


def run(world, workdir, **changes):
  """Rows of a run that scores only before and after."""
  settings = {
    'selection__pool': POOL,
    'retrieval__neighbors': COUNT,
    'eval__at': f'0,{COUNT}',
    'eval__limit': 4,
  }
  jobs.run(changed(world, **settings | changes), str(workdir))
  return rows_of(workdir)


@pytest.fixture(scope='module')
def queries(world):
  """(number of a document, its query's embedding), by the split protocol."""
  embedder = embed.load(world.embedder.path)
  tokenizer = tokenizer_lib.load(world.model.path)
  documents = documents_lib.read(world.eval.documents)[:4]
  texts = [
    documents_lib.apply_protocol(d, tokenizer, protocol='split', prefix=64)
    for d in documents
  ]
  numbers = [neighbors.number(document) for document in documents]
  return list(
    zip(numbers, embedder([case.query for case in texts]), strict=True)
  )


def expected(world, queries, name):
  """Ids picked from a pool that brute force finds, one query at a time."""
  store = store_lib.open(world.store.path)
  vectors = store.gather(range(store.manifest.rows))
  found = []
  for number, query in queries:
    distances = np.linalg.norm(vectors - query, axis=1)
    pool = np.argsort(distances, kind='stable')[:POOL]
    (picks,) = select.choose(
      select.Settings(name=name, pool=POOL),
      COUNT,
      [distances[pool]],
      query[None],
      [vectors[pool]],
      [(world.seed, number)],
    )
    found.append(pool[picks.indices].tolist())
  return found


def ids(rows):
  return [[n['id'] for n in row['neighbors']] for row in rows]


@pytest.mark.parametrize('name', select.NAMES)
def test_picks_are_those_of_each_query_by_itself(
  world, queries, tmp_path, name
):
  rows = run(world, tmp_path, selection__name=name)
  assert ids(rows) == expected(world, queries, name)
  for row in rows:
    assert len(row['steps']) == len(row['neighbors']) == COUNT
    assert row['missing_neighbors'] == 0
  assert ('remaining' in rows[0]) == (name in ('sift', 'frank_wolfe'))


@pytest.mark.parametrize('name', ['sift', 'frank_wolfe', 'random'])
def test_replayed_candidates_give_the_same_picks(
  world, queries, tmp_path, name
):
  saved = tmp_path / 'neighbors.jsonl'
  found = run(
    world,
    tmp_path / 'searched',
    selection__name=name,
    retrieval__save=str(saved),
  )
  # From the store's vectors, and from those of the texts embedded again.
  for store in (world.store.path, ''):
    again = run(
      world,
      tmp_path / f'replayed{len(store)}',
      selection__name=name,
      retrieval__replay=str(saved),
      store__path=store,
    )
    assert ids(again) == ids(found)
    for one, other in zip(found, again, strict=True):
      assert one['log_likelihood'] == pytest.approx(other['log_likelihood'])


def test_a_selection_that_stops_misses_nothing(world, tmp_path):
  rows = run(world, tmp_path, selection__name='sift', selection__alpha=3.0)
  assert any(len(row['neighbors']) < COUNT for row in rows)
  for row in rows:
    assert row['missing_neighbors'] == 0
    deviations = np.sqrt(row['remaining'])
    counts = np.arange(1, len(deviations) + 1)
    assert np.all(deviations <= 1 / (3.0 * counts))


def test_filters_leave_out_and_count_what_they_do(world, tmp_path):
  rows = run(world, tmp_path / 'all', eval__protocol='whole', eval__limit=0)
  corpus = list(jsonl.read(jsonl.expand(world.corpus.train)).iter_texts())
  documents = documents_lib.read(world.eval.documents)
  for row, document in zip(rows, documents, strict=True):
    texts = [corpus[n['id']] for n in row['neighbors']]
    shares = overlap.shares(document.text, texts)
    assert [n['overlap'] for n in row['neighbors']] == shares
  # The last document's text is in the store.
  assert rows[-1]['neighbors'][0]['overlap'] == 1
  assert 'removed' not in rows[-1]
  with open(tmp_path / 'all' / 'summary.json') as file:
    summary = json.load(file)
  distinct = summary['without_near_duplicates']['all']['last']['documents']
  near = [
    row
    for row in rows
    if any(
      n['overlap'] >= 0.5 or n['distance'] < 1e-4 for n in row['neighbors']
    )
  ]
  assert rows[-1] in near
  assert distinct == len(rows) - len(near)
  assert 'near-duplicate' in (tmp_path / 'all' / 'summary.md').read_text()
  # And now without them; what random picks comes from what is left.
  for name in ('knn', 'random'):
    kept = run(
      world,
      tmp_path / name,
      eval__protocol='whole',
      eval__limit=0,
      selection__name=name,
      retrieval__max_overlap=0.4,
      retrieval__min_distance=0.01,
    )
    for row in kept:
      assert all(n['overlap'] <= 0.4 for n in row['neighbors'])
    removed = kept[-1]['removed']
    assert removed['min_distance'] >= 1
    assert len(kept[-1]['neighbors']) == (
      COUNT - sum(removed.values()) if name == 'knn' else COUNT
    )
    with open(tmp_path / name / 'summary.json') as file:
      summary = json.load(file)
    for key in removed:
      total = sum(row['removed'][key] for row in kept)
      assert summary['neighbors_removed'][key] == total
    assert summary['without_near_duplicates'] is None


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'selection__name': 'best'}, "name='best' is not one of knn"),
    ({'selection__alpha': 0.2}, 'alpha=0.2 stops sift'),
    (
      {'selection__name': 'sift', 'selection__pool': 62},
      'selection.pool=62, but the store .* has 61 documents',
    ),
    (
      {'selection__name': 'random', 'retrieval__neighbors': 30},
      'selection.pool=20 has no 30 to draw',
    ),
    (
      {'retrieval__neighbors': 62},
      'retrieval.neighbors=62, but the store',
    ),
  ],
)
def test_bad_input_is_refused(world, tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    run(world, tmp_path, **changes)
