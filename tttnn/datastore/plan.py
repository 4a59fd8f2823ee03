"""What a datastore of a given size takes: bytes, hosts and seconds.

Arithmetic alone. The times are what the rates allow when nothing waits, so a
run takes somewhat longer. Sizes are in bytes, rates in bytes or operations a
second; a shard is one file of the corpus, with one index file of its own.
"""

from collections.abc import Mapping
import dataclasses
import math

from tttnn.datastore import index_types

# Of one inverted list: what k-means is trained on, the least it needs, and
# how often it goes through that.
SAMPLE_ROWS = 64
_LEAST_ROWS = 39
ITERATIONS = 10
PAIR_BYTES = 12  # An id and a distance, as a host answers them.


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What is to be stored.

  Attributes:
    documents: vectors, one a document.
    dim: of a vector.
    shards: files.
    text_bytes: mean of a document.
    vector_bytes: of a component as it is stored, 4 or 2.
  """

  documents: int
  dim: int
  shards: int
  text_bytes: float
  vector_bytes: int = 4

  def __post_init__(self):
    if not 1 <= self.shards <= self.documents:
      raise ValueError(
        f'{self.documents} documents in {self.shards} files: a file holds at '
        'least one'
      )

  @property
  def rows(self) -> int:
    """Vectors of the largest shard."""
    return -(-self.documents // self.shards)

  @property
  def stored_bytes(self) -> int:
    """Bytes of all vectors, beside their index."""
    return self.documents * self.dim * self.vector_bytes


@dataclasses.dataclass(frozen=True)
class Hosts:
  """Search hosts, all alike.

  Attributes:
    ram: usable bytes.
    disk_rate: bytes read a second.
    count: hosts of a replica; 0: as many as hold the index in memory.
    replicas: of the whole index.
  """

  ram: float
  disk_rate: float
  count: int = 0
  replicas: int = 1


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a host does in a second.

  Attributes:
    memory: bytes read.
    product: operations of a float32 matrix product.
    codes: by `Index.codes`, bytes of codes compared, counted once a query.
  """

  memory: float
  product: float
  codes: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Accelerators:
  """What embeds, and assigns vectors to lists; `rate` operations a second."""

  count: int
  rate: float

  @property
  def total(self) -> float:
    return self.count * self.rate


@dataclasses.dataclass(frozen=True)
class Layout:
  """An index spread over hosts by whole files.

  Attributes:
    disk_bytes: of all index files, once.
    hosts: of one replica.
    shards: of the fullest host.
    ram: what that host would need to hold its files in memory.
    fits: whether it has that.
  """

  disk_bytes: float
  hosts: int
  shards: int
  ram: float
  fits: bool


@dataclasses.dataclass(frozen=True)
class Embedding:
  """Of documents into vectors.

  Attributes:
    parameters: of the embedder, without its embedding tables.
    tokens: of a document that it sees, mean.
    rate: documents a second and accelerator; 0: as operations take.
  """

  parameters: int
  tokens: float
  rate: float = 0.0

  def flops(self, documents: int) -> float:
    """Two operations a parameter and token; attention is left out."""
    return 2.0 * documents * self.parameters * self.tokens


@dataclasses.dataclass(frozen=True)
class Row:
  """What one index type takes; None where it cannot be said.

  Attributes:
    index: the type.
    layout: on hosts.
    search: seconds of a batch of queries.
    build_host: seconds to make the index on one host.
    build_accelerated: the same, training and assigning on accelerators.
  """

  index: index_types.Index
  layout: Layout
  search: float | None
  build_host: float | None
  build_accelerated: float | None


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is planned for, and with.

  Attributes:
    queries: searched at once.
    nprobe: lists that a query probes.
    neighbors: of a query.
  """

  corpus: Corpus
  hosts: Hosts
  rates: Rates
  accelerators: Accelerators
  embedding: Embedding
  queries: int
  nprobe: int
  neighbors: int

  def row(self, index: index_types.Index) -> Row:
    """What `index` takes."""
    layout = lay_out(index, self.corpus, self.hosts)
    product, disk_rate = self.rates.product, self.hosts.disk_rate
    return Row(
      index=index,
      layout=layout,
      search=search_seconds(
        index,
        layout,
        self.corpus,
        self.rates,
        self.hosts,
        queries=self.queries,
        nprobe=self.nprobe,
      ),
      build_host=build_seconds(index, self.corpus, product, disk_rate),
      build_accelerated=build_seconds(
        index, self.corpus, product, disk_rate, self.accelerators.total
      ),
    )

  def embed_seconds(self) -> float:
    """Of all documents on all accelerators, or of reading them, if longer."""
    documents = self.corpus.documents
    if self.embedding.rate:
      seconds = documents / (self.embedding.rate * self.accelerators.count)
    else:
      seconds = self.embedding.flops(documents) / self.accelerators.total
    read = documents * self.corpus.text_bytes / self.hosts.disk_rate
    return max(seconds, read)


def default_lists(corpus: Corpus) -> int:
  """Inverted lists for a corpus, a power of two.

  The one nearest to 16 sqrt(rows of a file), as each file has its own lists;
  at most one list for 39 documents, the least that k-means asks for.
  """
  wanted = round(math.log2(16 * math.sqrt(corpus.rows)))
  most = int(math.log2(max(1, corpus.documents // _LEAST_ROWS)))
  return 1 << min(wanted, most)


def lay_out(index: index_types.Index, corpus: Corpus, hosts: Hosts) -> Layout:
  """Spreads the files of an index over as few hosts as hold them in memory.

  Where not even one file fits a host, each file gets one, which reads it from
  disk.

  Raises:
    ValueError: more hosts than files are asked for.
  """
  if hosts.count > corpus.shards:
    raise ValueError(
      f'plan.hosts={hosts.count} for {corpus.shards} files: a host serves '
      'whole files'
    )
  file_ram = (
    corpus.rows * index.bytes_per_vector + index.file_bytes + index.table_bytes
  )
  number = hosts.count
  if not number:
    number = -(-corpus.shards // max(1, int(hosts.ram // file_ram)))
  shards = -(-corpus.shards // number)
  return Layout(
    disk_bytes=(
      corpus.documents * index.bytes_per_vector
      + corpus.shards * index.file_bytes
    ),
    hosts=number,
    shards=shards,
    ram=shards * file_ram,
    fits=shards * file_ram <= hosts.ram,
  )


def search_seconds(
  index: index_types.Index,
  layout: Layout,
  corpus: Corpus,
  rates: Rates,
  hosts: Hosts,
  *,
  queries: int,
  nprobe: int,
) -> float | None:
  """Seconds of one search for `queries` on the fullest host of a replica.

  The longer of comparing and of reading, from memory or, where the host does
  not hold its files, from disk. None for HNSW, whose reads depend on the graph.

  Raises:
    ValueError: `nprobe` above the lists there are.
  """
  if index.codes == 'HNSW':
    return None
  rows = min(layout.shards * corpus.rows, corpus.documents)
  share = seen = 1.0
  compare = 0.0
  if index.lists:
    if nprobe > index.lists:
      raise ValueError(f'plan.nprobe={nprobe} of {index.lists} lists')
    share = nprobe / index.lists
    seen = 1 - (1 - share) ** queries  # Lists that at least one query probes.
    coarse = 2 * queries * index.lists * corpus.dim
    compare = layout.shards * coarse / rates.product
  if index.codes == 'Flat':
    compare += 2 * queries * rows * corpus.dim / rates.product
  else:
    codes = queries * rows * share * index.code_bytes
    compare += codes / rates.codes[index.codes]
  rate = rates.memory if layout.fits else hosts.disk_rate
  return max(compare, rows * seen * index.code_bytes / rate)


def sample_rows(lists: int, documents: int) -> int:
  """Vectors that k-means is trained on."""
  return min(SAMPLE_ROWS * lists, documents)


def kmeans_flops(lists: int, corpus: Corpus) -> int:
  """Operations of training the centroids."""
  rows = sample_rows(lists, corpus.documents)
  return 2 * ITERATIONS * rows * lists * corpus.dim


def assign_flops(lists: int, corpus: Corpus) -> int:
  """Operations of finding the list of every vector."""
  return 2 * corpus.documents * lists * corpus.dim


def build_seconds(
  index: index_types.Index,
  corpus: Corpus,
  product: float,
  disk_rate: float,
  accelerator: float = 0.0,
) -> float | None:
  """Seconds to make the index files of stored vectors, on one host.

  Args:
    index: what to make; None comes back for HNSW, whose time is not known.
    corpus: what of.
    product: the host's operations a second.
    disk_rate: bytes a second of reading vectors and writing files.
    accelerator: operations a second of what trains and assigns; 0: the host.
  """
  if index.codes == 'HNSW':
    return None
  train = assign = 0.0
  if index.lists:
    coarse = accelerator or product
    train = kmeans_flops(index.lists, corpus) / coarse
    assign = assign_flops(index.lists, corpus) / coarse
  encode = corpus.documents * index.encode_flops / product
  moved = (
    corpus.stored_bytes
    + corpus.documents * index.bytes_per_vector
    + corpus.shards * index.file_bytes
  )
  return train + max(assign + encode, moved / disk_rate)


def merge_bytes(hosts: int, k: int) -> int:
  """Bytes that answers to one query take on the network."""
  return hosts * k * PAIR_BYTES
