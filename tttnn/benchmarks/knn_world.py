"""What the parts of the `knn_lm` benchmark share: texts, a model, a store.

All of it is made once in the work directory, from where the next run takes it.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from tttnn import files
from tttnn import language_model
from tttnn import settings
from tttnn.corpus import builtin
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.datastore import client as client_lib
from tttnn.datastore import store as store_lib
from tttnn.jobs import build as build_job
from tttnn.jobs import knn
from tttnn.methods import knn_tuning
from tttnn.models import gpt2
from tttnn.models import hf
from tttnn.models import model as model_lib

_VOCABULARY = 8192  # Of a tokenizer that is trained on the texts.
_TRAINED = 4000  # Texts that it is trained on.
_TEXTS = 256  # Tokenized at once.


@dataclasses.dataclass(frozen=True)
class Search:
  """How the store is searched.

  Attributes:
    spec: of the index.
    refine: as `knn.refine`.
  """

  spec: str
  refine: int = 1

  @property
  def name(self) -> str:
    return self.spec + f', refine {self.refine}' * (self.refine > 1)

  @property
  def factory(self) -> str:
    """Without parameters of searches."""
    return self.spec.partition(';')[0]


EXACT = Search(store_lib.FLAT)


@dataclasses.dataclass(frozen=True)
class Shape:
  """A GPT-2, its store, and what is asked of them.

  Attributes:
    layers: of the model, as `width`, `heads` and `context`.
    width: D, of a key too.
    heads: H.
    context: in tokens.
    entries: tokens of the store, or a few more.
    part: tokens whose keys are made to be timed.
    scored: tokens of the documents that are evaluated, or a few more.
    neighbors: k.
    searches: beside `EXACT`; the last one is RetoMaton's.
    clusters: states of RetoMaton's second automaton.
    max_knns: entries that its pointers lead to.
    min_knns: what it is tried with.
  """

  layers: int
  width: int
  heads: int
  context: int
  entries: int
  part: int
  scored: int
  neighbors: int
  searches: tuple[Search, ...]
  clusters: int
  max_knns: int
  min_knns: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class World:
  """What there is in the work directory.

  Attributes:
    config: of an evaluation by kNN-LM over the store, exactly.
    shape: of all.
    directory: where everything lies.
  """

  config: Any
  shape: Shape
  directory: pathlib.Path

  @property
  def documents(self) -> list[documents_lib.Document]:
    """Those that are evaluated; none is in the store."""
    return documents_lib.read(self.config.eval.documents)

  def changed(self, **changes):
    """The config with other values, SECTION__KEY=value or KEY=value."""
    config = self.config.copy_and_resolve_references()
    for key, value in changes.items():
      settings.override(config, key.replace('__', '.'), value)
    return config

  def store(self) -> store_lib.Store:
    return store_lib.open(self.config.store.path, EXACT.spec)

  @contextlib.contextmanager
  def served(self, search: Search, **changes) -> Iterator[Any]:
    """The config with a host of that search, which ends with the context."""
    spec = search.spec
    name = f'tttnn-benchmark-{os.getpid()}-{time.monotonic_ns()}'
    address = os.path.join(tempfile.gettempdir(), name)
    with client_lib.start(self.config.store.path, address, index=spec):
      yield self.changed(
        store__index=spec,
        store__address=address,
        knn__refine=search.refine,
        **changes,
      )

  def exact(
    self, model: language_model.LanguageModel, reader: knn.Reader
  ) -> knn_tuning.Cache:
    """The nearest entries of each token of the documents, as `knn.cache`."""
    say('exact neighbours')
    with self.served(EXACT) as config:
      return found(config, model, reader, self.documents, self.cache_path)

  @property
  def cache_path(self) -> str:
    return os.fspath(self.directory / 'exact')


def say(text: str) -> None:
  print(f'benchmark: knn_lm: {text}', flush=True)


def found(
  config,
  model: language_model.LanguageModel,
  reader: knn.Reader,
  documents: Sequence[documents_lib.Document],
  path: str = '',
) -> knn_tuning.Cache:
  """What a run of kNN-LM finds; `path`: the `knn.cache` that keeps it."""
  config = config.copy_and_resolve_references()
  config.knn.cache = path
  parts = {
    one.case.document.doc_id: part
    for one, part, _ in knn.looked_up(config, model, documents, reader)
  }
  return knn_tuning.join([parts[document.doc_id] for document in documents])


def prepare(config, workdir: str, shape: Shape) -> World:
  """Makes texts and model; not the store yet.

  Raises:
    ValueError: for texts that cannot be read or are too few, or a directory
      that holds others.
  """
  directory = pathlib.Path(os.path.abspath(workdir)) / 'knn_lm'
  directory.mkdir(parents=True, exist_ok=True)
  _check_same(directory / 'about.json', _about(config, shape))
  path = config.model.path or os.fspath(directory / 'model')
  if not (directory / 'documents.jsonl').exists():
    say('texts')
    texts = _texts(config, directory)
    tokenizer = _tokenizer(config, directory, texts)
    # Last what says that both are there.
    written = _split(texts, tokenizer, shape.scored, shape.entries)
    for name, part in zip(('store', 'documents'), written, strict=True):
      write_texts(directory / f'{name}.jsonl', part)
  if not os.path.exists(path):
    say('a model of random weights')
    _write_model(path, shape, _tokenizer(config, directory, ()), config.seed)
  run = config.copy_and_resolve_references()
  run.method, run.eval.protocol = 'knn_lm', 'whole'
  run.model.path = path
  run.store.path = os.fspath(directory / 'store')
  run.store.key, run.store.index = run.store.key or 'ffn_input', EXACT.spec
  run.store.min_recall = 0.0  # It is what is shown.
  run.corpus.train = os.fspath(directory / 'store.jsonl')
  run.eval.documents = os.fspath(directory / 'documents.jsonl')
  run.knn.neighbors = shape.neighbors
  return World(run, shape, directory)


def make_store(world: World) -> dict[str, float]:
  """Seconds that the store, with Flat, and then each other index took.

  Those of the run that finished it; what is there already is not made again.
  """
  path, made = world.directory / 'made.json', {}
  if path.exists():
    made = json.loads(path.read_text())
  # With the last parameters of each: few may find too little to be checked.
  searches = {
    search.factory: search for search in (EXACT, *world.shape.searches)
  }
  for factory, search in searches.items():
    if factory in made:
      continue
    say(f'a store of {world.shape.entries:,} tokens, index {search.spec}')
    begin = time.perf_counter()
    config = world.changed(job='build', store__index=search.spec)
    build_job.run(config, os.fspath(world.directory))
    made[factory] = time.perf_counter() - begin
    files.write_atomic(os.fspath(path), json.dumps(made, indent=2) + '\n')
  return made


def write_texts(path: pathlib.Path, texts: Sequence[str]) -> None:
  with files.atomic(os.fspath(path)) as file:
    for text in texts:
      file.write(json.dumps({'text': text}).encode() + b'\n')


def _about(config, shape: Shape) -> dict:
  """What is made depends on; `config.store.key` too."""
  return {
    'shape': repr(shape),
    'seed': config.seed,
    'benchmark.texts': config.benchmark.texts,
    'model.path': config.model.path,
    'train.tokenizer': config.train.tokenizer,
    'store.key': config.store.key,
  }


def _check_same(path: pathlib.Path, about: dict) -> None:
  if path.exists():
    differ = settings.difference(json.loads(path.read_text()), about)
    if differ:
      raise ValueError(
        f'{path.parent} is of another benchmark ({differ}): name another '
        'workdir'
      )
  files.write_if_changed(os.fspath(path), json.dumps(about, indent=2) + '\n')


def _texts(config, directory: pathlib.Path) -> list[str]:
  """Those of `benchmark.texts`, in an order that the seed gives."""
  spec = config.benchmark.texts
  if not spec:
    corpus = os.fspath(directory / 'corpus')
    builtin.write(corpus, seed=config.seed)
    spec = os.path.join(corpus, 'train', '*.jsonl')
  corpus = jsonl.read(jsonl.expand(spec))
  order = np.random.default_rng(config.seed).permutation(len(corpus))
  return [text for text in corpus.texts(order.tolist()) if text]


def _tokenizer(config, directory: pathlib.Path, texts: Sequence[str]):
  """That which is named, or one of the texts."""
  path = config.model.path or config.train.tokenizer
  if path:
    return tokenizer_lib.load(path)
  own = os.fspath(directory / 'tokenizer')
  if not texts:
    return tokenizer_lib.load(own)
  return tokenizer_lib.train(
    texts[:_TRAINED], own, vocab_size=_VOCABULARY, kind='gpt2'
  )


def _split(
  texts: Sequence[str], tokenizer, scored: int, entries: int
) -> tuple[list[str], list[str]]:
  """Texts of the store, and after them those that are evaluated."""
  parts, counts, wanted = ([], []), [0, 0], (entries, scored)
  place = 0
  for begin in range(0, len(texts), _TEXTS):
    batch = texts[begin : begin + _TEXTS]
    for text, ids in zip(
      batch, tokenizer_lib.encode(tokenizer, batch), strict=True
    ):
      # Two at least, as parts of them serve different ends.
      if counts[place] >= wanted[place] and len(parts[place]) > 1:
        place += 1
      if place == len(parts):
        return parts
      parts[place].append(text)
      counts[place] += len(ids)
  if counts[1] < scored or len(parts[1]) < 2:
    raise ValueError(
      f'benchmark.texts have {sum(counts):,} tokens, {sum(wanted):,} are needed'
    )
  return parts


def _write_model(path: str, shape: Shape, tokenizer, seed: int) -> None:
  config = gpt2.Config.create(
    vocab_size=len(tokenizer),
    layers=shape.layers,
    width=shape.width,
    heads=shape.heads,
    context=shape.context,
    bos_token_id=tokenizer.eos_token_id,
    eos_token_id=tokenizer.eos_token_id,
  )
  model = model_lib.Model('gpt2', config)
  temporary = f'{path}.tmp'
  hf.save(temporary, model, model.init(jax.random.key(seed)))
  tokenizer_lib.save(tokenizer, temporary)
  os.replace(temporary, path)
