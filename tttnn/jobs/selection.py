"""The neighbours that documents get: found, filtered, and selected of."""

from collections.abc import Sequence
import dataclasses
import time

import numpy as np

from tttnn.corpus import documents as documents_lib
from tttnn.corpus import overlap
from tttnn.datastore import retrieve
from tttnn.jobs import neighbors
from tttnn.methods import select


@dataclasses.dataclass(frozen=True)
class Chosen:
  """The neighbours of a document, in the order in which they are used.

  Attributes:
    neighbors: one may come several times.
    overlaps: of each, the share of the scored text's word n-grams it has.
    remaining: what the selection says of each, see `select.Picks`.
    removed: how many of the candidates each filter took away, of those on.
    missing: how many fewer than were wanted, unless the selection stopped.
    missing_shards: as of `retrieve.Neighbors`.
    seconds: 'retrieve' and 'select', in which filtering is.
  """

  neighbors: list[retrieve.Neighbor]
  overlaps: list[float]
  remaining: list[float]
  removed: dict[str, int]
  missing: int
  missing_shards: tuple[int, ...]
  seconds: dict[str, float]

  @property
  def texts(self) -> list[str]:
    return [neighbor.text for neighbor in self.neighbors]

  def to_json(self) -> list[dict]:
    """As a row of `results.jsonl` has them."""
    return [
      {'id': n.id, 'distance': n.distance, 'overlap': share}
      for n, share in zip(self.neighbors, self.overlaps, strict=True)
    ]


def choose(
  config, find: neighbors.Find, cases: Sequence[documents_lib.Case]
) -> list[Chosen]:
  """What each document gets, whatever the company it is in.

  Raises:
    ValueError: as of the search, or for settings of the selection.
  """
  settings = select.Settings.create(config.selection)
  wanted = config.retrieval.neighbors
  begin = time.monotonic()
  found = find(cases)
  searching = (time.monotonic() - begin) / len(cases)
  begin = time.monotonic()
  pools = [
    _filtered(config.retrieval, case, candidates)
    for case, candidates in zip(cases, found, strict=True)
  ]
  queries_QxD = vectors = None
  if settings.needs_vectors:
    queries_QxD = np.stack([f.query_D for f in found])
    vectors = [
      f.vectors_KxD[pool.places] for f, pool in zip(found, pools, strict=True)
    ]
  picks = select.choose(
    settings,
    wanted,
    [np.array([n.distance for n in pool.neighbors]) for pool in pools],
    queries_QxD,
    vectors,
    [(config.seed, neighbors.number(case.document)) for case in cases],
  )
  selecting = (time.monotonic() - begin) / len(cases)
  return [
    _chosen(config, wanted, *parts, searching, selecting)
    for parts in zip(cases, found, pools, picks, strict=True)
  ]


@dataclasses.dataclass(frozen=True)
class _Pool:
  """The candidates that the filters left, and where they were among all.

  `shares` are overlaps that the filters looked at, by text.
  """

  neighbors: list[retrieve.Neighbor]
  places: list[int]
  removed: dict[str, int]
  shares: dict[str, float]


def _filtered(
  section, case: documents_lib.Case, candidates: retrieve.Neighbors
) -> _Pool:
  removed, shares = {}, {}
  places = list(range(len(candidates)))

  def keep(name, is_kept):
    nonlocal places
    kept = [place for place in places if is_kept(place)]
    removed[name] = len(places) - len(kept)
    places = kept

  if section.min_distance:
    bound = section.min_distance
    keep('min_distance', lambda i: candidates[i].distance >= bound)
  if section.max_distance:
    limit = section.max_distance
    keep('max_distance', lambda i: candidates[i].distance < limit)
  if section.max_overlap:
    shares = _shares(section, case, candidates)
    most = section.max_overlap
    keep('max_overlap', lambda i: shares[candidates[i].text] <= most)
  return _Pool([candidates[i] for i in places], places, removed, shares)


def _shares(
  section, case: documents_lib.Case, neighbors_: Sequence[retrieve.Neighbor]
) -> dict[str, float]:
  """Overlap of each text with the scored one."""
  texts = list({neighbor.text: None for neighbor in neighbors_})
  shares = overlap.shares(case.text, texts, section.overlap_words)
  return dict(zip(texts, shares, strict=True))


def _chosen(
  config, wanted, case, found, pool, picks, searching, selecting
) -> Chosen:
  picked = [pool.neighbors[i] for i in picks.indices]
  shares = pool.shares or _shares(config.retrieval, case, picked)
  stops = pool.neighbors and config.selection.alpha
  return Chosen(
    neighbors=picked,
    overlaps=[shares[neighbor.text] for neighbor in picked],
    remaining=picks.remaining,
    removed=pool.removed,
    missing=0 if stops else wanted - len(picked),
    missing_shards=found.missing_shards,
    seconds={
      'retrieve': searching if found.seconds is None else found.seconds,
      'select': selecting,
    },
  )
