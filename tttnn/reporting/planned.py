"""A plan of a store as a table, sentences and JSON."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from tttnn.datastore import index_types
from tttnn.datastore import plan as plan_lib
from tttnn.reporting import tables

_UNITS = (
  (86400, 'days'),
  (3600, 'h'),
  (60, 'min'),
  (1, 's'),
  (1e-3, 'ms'),
)


def title(plan: plan_lib.Plan) -> str:
  """What is planned, in a line."""
  corpus = plan.corpus
  return (
    f'Plan of a store: {corpus.documents:,} documents, {corpus.dim} '
    f'dimensions, {_count(corpus.shards, "file")}'
  )


def table(plan: plan_lib.Plan, rows: Sequence[plan_lib.Row]) -> tables.Cells:
  """A line an index type; all hosts and bytes are those of one replica."""
  head = [
    'index',
    'B/vector',
    'on disk',
    'RAM a host',
    'hosts',
    f'{plan.queries:,} queries',
    'built on CPU',
    'accelerated',
  ]
  return [head] + [
    [
      row.index.spec,
      f'{row.index.bytes_per_vector:,.0f}',
      size(row.layout.disk_bytes),
      size(row.layout.ram) + ('' if row.layout.fits else '!'),
      f'{row.layout.hosts:,}',
      duration(row.search),
      duration(row.build_host),
      duration(row.build_accelerated),
    ]
    for row in rows
  ]


def sentences(plan: plan_lib.Plan, rows: Sequence[plan_lib.Row]) -> list[str]:
  """What the table leaves open, a line each."""
  said = [_beside(plan), _embedding(plan)]
  said += _lists(plan, rows) + _codebooks(plan, rows)
  said += _memory(plan, rows) + [_network(plan, rows)]
  if plan.hosts.replicas > 1:
    said.append(
      f'{plan.hosts.replicas} replicas take {plan.hosts.replicas} times the '
      'hosts and index files, and search as many batches at once.'
    )
  said.append(
    'HNSW32 follows links from vector to vector: every step is a random read, '
    'so all of it must be in memory; its times depend on the graph.'
  )
  return said + [_rates(plan)]


def _beside(plan: plan_lib.Plan) -> str:
  corpus = plan.corpus
  texts = size(corpus.documents * corpus.text_bytes)
  offsets = size(index_types.ID_BYTES * (corpus.documents + corpus.shards))
  dtype = {4: 'float32', 2: 'float16'}[corpus.vector_bytes]
  return (
    f'Besides the index, on disk: texts {texts}, vectors '
    f'{size(corpus.stored_bytes)} ({dtype}), offsets {offsets}.'
  )


def _embedding(plan: plan_lib.Plan) -> str:
  embedding, accelerators = plan.embedding, plan.accelerators
  time = duration(plan.embed_seconds())
  first = 'Before an index is built, embedding: '
  count = _count(accelerators.count, 'accelerator')
  if embedding.rate:
    return f'{first}{time} on {count} at {embedding.rate:,.0f} texts/s.'
  flops = embedding.flops(plan.corpus.documents)
  return (
    f'{first}2 x {embedding.parameters / 1e6:,.1f}M parameters x '
    f'{embedding.tokens:,.0f} tokens x {plan.corpus.documents:,} documents = '
    f'{flops:.1e} FLOP: {time} on {count} at {accelerators.rate / 1e12:,.0f} '
    'TFLOP/s.'
  )


def _lists(plan, rows) -> list[str]:
  index = next(row.index for row in rows if row.index.lists)
  lists, corpus = index.lists, plan.corpus
  train = plan_lib.kmeans_flops(lists, corpus)
  assign = plan_lib.assign_flops(lists, corpus)
  host, fast = (
    duration((train + assign) / rate)
    for rate in (plan.rates.product, plan.accelerators.total)
  )
  sample = plan_lib.sample_rows(lists, corpus.documents)
  return [
    f'IVF{lists}: k-means on {sample:,} vectors ({plan_lib.ITERATIONS} '
    f'iterations) is {train:.1e} FLOP, assigning all {assign:.1e}: together '
    f'{host} on a host, {fast} on '
    f'{_count(plan.accelerators.count, "accelerator")}. A query probes '
    f'{plan.nprobe} lists, {plan.nprobe / lists:.2%} of a file.'
  ]


def _codebooks(plan, rows) -> list[str]:
  index = next(row.index for row in rows if row.index.codes == 'PQ')
  said = (
    f'Every file carries centroids and codebooks, {size(index.file_bytes)} for '
    f'{index.spec}'
  )
  if index.table_bytes:
    said += f', and in memory a table of {size(index.table_bytes)}'
  return [said + '; they count above.']


def _memory(plan, rows) -> list[str]:
  if all(row.layout.fits for row in rows):
    return []
  return [
    f'!: more than the {plan.hosts.ram / 1e9:,.0f} GB of a host, which reads '
    f'from disk at {plan.hosts.disk_rate / 1e9:g} GB/s.'
  ]


def _network(plan, rows) -> str:
  most = max(row.layout.hosts for row in rows)
  answers = plan_lib.merge_bytes(most, plan.neighbors)
  return (
    f'Network: a host is sent {size(4 * plan.corpus.dim)} a query and answers '
    f'{plan.neighbors} pairs of {plan_lib.PAIR_BYTES} B; '
    f'{_count(most, "host")} together {size(answers)}.'
  )


def _rates(plan: plan_lib.Plan) -> str:
  rates = plan.rates
  codes = ', '.join(f'{k} {v / 1e9:.1f}' for k, v in rates.codes.items())
  return (
    f'Rates of a host: memory {rates.memory / 1e9:.1f} GB/s, products '
    f'{rates.product / 1e9:,.0f} GFLOP/s, codes compared (GB/s, a query at a '
    f'time) {codes}. Times are what these allow; a run takes longer.'
  )


def to_json(
  plan: plan_lib.Plan, rows: Sequence[plan_lib.Row]
) -> dict[str, Any]:
  """Everything that the table and the sentences say, in bytes and seconds."""
  return {
    **dataclasses.asdict(plan),
    'embed_seconds': plan.embed_seconds(),
    'indexes': [dataclasses.asdict(row) for row in rows],
  }


def size(count: float) -> str:
  """'860 GB', '15.1 GB' or '600 B'."""
  for unit in ('B', 'kB', 'MB', 'GB', 'TB', 'PB'):
    if count < 999.5 or unit == 'PB':
      break
    count /= 1000
  digits = 0 if count >= 99.95 or unit == 'B' else 1
  return f'{count:.{digits}f} {unit}'


def duration(seconds: float | None) -> str:
  """'3.2 days', '41 s' or '0.3 ms'; '-' for None."""
  if seconds is None:
    return '-'
  scale, unit = next(((s, u) for s, u in _UNITS if seconds >= s), _UNITS[-1])
  value = seconds / scale
  return f'{value:,.{0 if value >= 9.95 else 1}f} {unit}'


def _count(number: int, noun: str) -> str:
  return f'{number:,} {noun}' + ('s' if number != 1 else '')
