"""What kinds of faiss index there are to choose from, and their bytes."""

import dataclasses

ID_BYTES = 8
_PQ_CENTROIDS = 256
# Beyond this faiss does without the table of (list, codebook) products.
_MOST_TABLE_BYTES = 1 << 31
# HNSW32: 64 links of 4 bytes on the ground floor, 32 on each floor above, which
# one vector in 32 reaches, and level and place of the links of each.
_HNSW_BYTES = 4 * (64 + 32 / 31) + 4 + 8


@dataclasses.dataclass(frozen=True)
class Index:
  """A faiss index type at a given width.

  Attributes:
    spec: factory string.
    codes: what of it is compared with queries: Flat, SQfp16, SQ8, PQ, RaBitQ
      or HNSW.
    code_bytes: of a vector, compared with a query.
    bytes_per_vector: of the file, with ids and what refines.
    file_bytes: of a file, whatever its rows: centroids, codebooks, rotation.
    table_bytes: in memory beside the file: faiss's table of products.
    lists: inverted lists; 0: none.
    encode_flops: of adding a vector, after its list is known.
  """

  spec: str
  codes: str
  code_bytes: int
  bytes_per_vector: float
  file_bytes: int = 0
  table_bytes: int = 0
  lists: int = 0
  encode_flops: int = 0


def indexes(dim: int, *, lists: int, pq: int) -> list[Index]:
  """The index types to compare, exact ones first.

  Args:
    dim: of the vectors.
    lists: inverted lists of a file.
    pq: bytes of a product quantiser's code.

  Raises:
    ValueError: `pq` does not divide `dim`.
  """
  if dim % pq:
    raise ValueError(f'plan.pq={pq} does not divide the {dim} dimensions')
  ivf = f'IVF{lists}'
  # A centroid and the length of its list.
  coarse = lists * (4 * dim + 8)
  books = 4 * _PQ_CENTROIDS * dim
  table = 4 * _PQ_CENTROIDS * pq * lists
  product = Index(
    f'{ivf},PQ{pq}',
    'PQ',
    code_bytes=pq,
    bytes_per_vector=pq + ID_BYTES,
    file_bytes=coarse + books,
    table_bytes=table if table <= _MOST_TABLE_BYTES else 0,
    lists=lists,
    encode_flops=2 * _PQ_CENTROIDS * dim,
  )
  rabitq = -(-dim // 8) + 8  # A bit a component, and two corrections.
  limits = 8 * dim  # Of each component, the least and the range.
  return [
    Index('Flat', 'Flat', 4 * dim, 4 * dim),
    Index('SQfp16', 'SQfp16', 2 * dim, 2 * dim),
    Index('SQ8', 'SQ8', dim, dim, limits),
    dataclasses.replace(
      product,
      spec=f'{ivf},SQ8',
      codes='SQ8',
      code_bytes=dim,
      bytes_per_vector=dim + ID_BYTES,
      file_bytes=coarse + limits,
      table_bytes=0,
      encode_flops=0,
    ),
    product,
    dataclasses.replace(
      product,
      spec=f'OPQ{pq},{product.spec}',
      file_bytes=product.file_bytes + 4 * dim * dim,
      encode_flops=product.encode_flops + 2 * dim * dim,
    ),
    dataclasses.replace(
      product,
      spec=f'{ivf},RaBitQ',
      codes='RaBitQ',
      code_bytes=rabitq,
      bytes_per_vector=rabitq + ID_BYTES,
      file_bytes=coarse,
      table_bytes=0,
      encode_flops=0,
    ),
    _refined(product, 'Refine(SQ8)', dim, limits),
    _refined(product, 'Refine(SQfp16)', 2 * dim),
    _refined(product, 'RFlat', 4 * dim),
    Index('HNSW32', 'HNSW', 4 * dim, 4 * dim + _HNSW_BYTES),
  ]


def _refined(index: Index, stage: str, size: int, fixed: int = 0) -> Index:
  return dataclasses.replace(
    index,
    spec=f'{index.spec},{stage}',
    bytes_per_vector=index.bytes_per_vector + size,
    file_bytes=index.file_bytes + fixed,
  )
