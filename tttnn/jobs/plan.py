"""Says what a store of some size would take, for each kind of index.

Prints it, and leaves `plan.json` and `plan.md` in the work directory where
there is one.
"""

import json
import os

import jax

from tttnn import checkpoint
from tttnn import files
from tttnn.corpus import jsonl
from tttnn.corpus import sample
from tttnn.datastore import index_types
from tttnn.datastore import plan
from tttnn.datastore import rates as rates_lib
from tttnn.reporting import planned
from tttnn.reporting import tables

_SAMPLE = 1024
# The Pile: 1.3 TB of JSONL in 30 files of 210 million documents.
_PILE_SHARDS = 30
_PILE_TEXT_BYTES = 6200.0
# RoBERTa-large without its embedding tables, and its positions.
_EMBEDDER = {'dim': 1024, 'parameters': 303_000_000, 'tokens': 512}
_BYTES_A_TOKEN = 4
_NPROBE = 32
_DTYPES = {'float32': 4, 'float16': 2}


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: a number that is not possible, no documents to plan for, or a
      corpus or embedder that does not load.
  """
  options = config.plan
  _check(options)
  embedder = _embedder(config)
  corpus = _corpus(config, options.dim or embedder['dim'])
  lists = options.lists or plan.default_lists(corpus)
  if lists > corpus.documents:
    raise ValueError(f'plan.lists={lists} for {corpus.documents} documents')
  flops = 1e12 * options.accelerator_tflops * options.utilization
  indexes = index_types.indexes(corpus.dim, lists=lists, pq=options.pq)
  found = plan.Plan(
    corpus=corpus,
    hosts=plan.Hosts(
      ram=1e9 * options.ram,
      disk_rate=1e9 * options.disk_rate,
      count=options.hosts,
      replicas=options.replicas,
    ),
    rates=rates_lib.measure(
      corpus.dim,
      options.pq,
      memory=1e9 * options.scan_rate,
      product=1e9 * options.host_gflops,
      cores=options.cores,
    ),
    accelerators=plan.Accelerators(options.accelerators, flops),
    embedding=plan.Embedding(
      parameters=options.parameters or embedder['parameters'],
      tokens=options.tokens
      or min(corpus.text_bytes / _BYTES_A_TOKEN, embedder['tokens']),
      rate=options.embed_rate,
    ),
    queries=options.queries,
    nprobe=options.nprobe or min(_NPROBE, lists),
    neighbors=config.retrieval.neighbors,
  )
  rows = [found.row(index) for index in indexes]
  cells, said = planned.table(found, rows), planned.sentences(found, rows)
  print(f'{planned.title(found)}\n\n{tables.render_text(cells)}')
  print('\n'.join(said))
  if workdir:
    _write(workdir, found, rows, cells, said)


def _check(options) -> None:
  for name, value in options.items():
    if value < 0:
      raise ValueError(f'plan.{name}={value} is below 0')
  for name in (
    *('pq', 'queries', 'ram', 'replicas', 'disk_rate'),
    *('accelerators', 'accelerator_tflops', 'utilization'),
  ):
    if not options[name]:
      raise ValueError(f'plan.{name}=0: it must be above 0')
  if options.utilization > 1:
    raise ValueError(f'plan.utilization={options.utilization} is above 1')


def _corpus(config, dim: int) -> plan.Corpus:
  options = config.plan
  dtype = config.store.dtype
  if dtype not in _DTYPES:
    raise ValueError(f'store.dtype={dtype!r} is not {" or ".join(_DTYPES)}')
  documents, shards = options.documents, options.shards
  text_bytes = options.text_bytes
  if config.corpus.train:
    paths = jsonl.expand(config.corpus.train)
    texts, number = sample.look(paths, _SAMPLE, config.corpus.on_error)
    documents = documents or number
    shards = shards or len(paths)
    text_bytes = text_bytes or sum(len(t.encode()) for t in texts) / len(texts)
  if not documents:
    raise ValueError(
      'plan.documents=0 and corpus.train is empty: name a number or a corpus'
    )
  return plan.Corpus(
    documents=documents,
    dim=dim,
    shards=shards or min(_PILE_SHARDS, documents),
    text_bytes=text_bytes or _PILE_TEXT_BYTES,
    vector_bytes=_DTYPES[dtype],
  )


def _embedder(config) -> dict[str, int]:
  """`dim`, `parameters` without tables, and the most `tokens` of a text."""
  options = config.embedder
  found = dict(_EMBEDDER)
  if options.path:
    model, params = checkpoint.load_model(
      options.path, revision=options.revision, role='embedder'
    )
    params = {k: v for k, v in params.items() if k != 'embeddings'}
    found = {
      'dim': model.width,
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
      'tokens': model.context,
    }
  if options.max_length:
    found['tokens'] = options.max_length + 2
  return found


def _write(workdir: str, found, rows, cells, said) -> None:
  content = json.dumps(planned.to_json(found, rows), indent=2) + '\n'
  files.write_if_changed(os.path.join(workdir, 'plan.json'), content)
  parts = [f'# {planned.title(found)}', tables.render_markdown(cells).strip()]
  parts.append('\n'.join(f'- {tables.escape(line)}' for line in said))
  content = '\n\n'.join(parts) + '\n'
  files.write_if_changed(os.path.join(workdir, 'plan.md'), content)
  print(f'Written to {os.path.join(workdir, "plan.{json,md}")}')
