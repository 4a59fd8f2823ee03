"""Neighbours that are looked up once, for others to replay."""

import json

import numpy as np
import pytest

from tests import world as world_lib
from tttnn import jobs
from tttnn.datastore import embed
from tttnn.datastore import store as store_lib

COUNT = 7


@pytest.fixture(scope='module')
def config(world):
  return world_lib.changed(
    world, job='retrieve', eval__limit=5, eval__protocol='whole',
    retrieval__neighbors=COUNT,
  )  # fmt: skip


@pytest.fixture(scope='module')
def workdir(config, tmp_path_factory):
  directory = tmp_path_factory.mktemp('retrieved')
  jobs.run(config, str(directory))
  return directory


def saved(directory):
  with open(directory / 'neighbors.jsonl') as file:
    return [json.loads(line) for line in file]


def test_they_are_the_nearest(config, workdir):
  store = store_lib.open(config.store.path)
  vectors_NxD = store.gather(range(len(store.corpus))).astype(np.float64)
  with open(config.eval.documents) as file:
    texts = [json.loads(line)['text'] for line in file][:5]
  embedder = embed.load(**config.embedder)
  rows = saved(workdir)
  assert [row['doc_id'] for row in rows] == list(range(5))
  for row, text in zip(rows, texts, strict=True):
    query_D = embedder([text])[0].astype(np.float64)
    distances_N = np.sqrt(((vectors_NxD - query_D) ** 2).sum(-1))
    nearest = np.argsort(distances_N, kind='stable')[:COUNT]
    assert [n['id'] for n in row['neighbors']] == nearest.tolist()
    found = [n['distance'] for n in row['neighbors']]
    np.testing.assert_allclose(found, distances_N[nearest], rtol=1e-6)


def test_more_documents_go_on_behind_those_that_are_there(config, workdir):
  before = (workdir / 'neighbors.jsonl').read_bytes()
  jobs.run(world_lib.changed(config, eval__limit=7), str(workdir))
  assert (workdir / 'neighbors.jsonl').read_bytes().startswith(before)
  assert len(saved(workdir)) == 7
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary == {'documents': 7, 'candidates': COUNT}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'eval__protocol': 'split'}, "protocol: 'whole' there, 'split' now"),
    ({'retrieval__neighbors': 3}, 'retrieval.neighbors: 7 there, 3 now'),
    ({'retrieval__exclude_self': True}, 'exclude_self: False there'),
  ],
)
def test_other_neighbours_want_another_directory(
  config, workdir, changes, message
):
  with pytest.raises(ValueError, match=message):
    jobs.run(world_lib.changed(config, **changes), str(workdir))


def test_what_is_done_with_them_does_not_matter(config, workdir):
  before = (workdir / 'neighbors.jsonl').read_bytes()
  other = world_lib.changed(
    config, method='in_context', selection__name='sift', selection__pool=COUNT,
    retrieval__max_distance=0.1, model__dtype='float32', seed=5,
  )  # fmt: skip
  jobs.run(other, str(workdir))
  assert (workdir / 'neighbors.jsonl').read_bytes() == before


def test_a_dry_run_leaves_nothing(config, tmp_path, capsys):
  dry = world_lib.changed(config, dry_run=True)
  jobs.run(dry, str(tmp_path / 'w'))
  assert not (tmp_path / 'w').exists()
  assert 'retrieve: what a run would take' in capsys.readouterr().out
