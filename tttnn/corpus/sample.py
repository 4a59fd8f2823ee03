"""A first look at a corpus, for estimates: some texts, and how many there are.

What is compressed is not read to its end for that.
"""

from collections.abc import Sequence
import os

from tttnn.corpus import formats
from tttnn.corpus import jsonl

_LOOK_BYTES = 1 << 22


def look(
  paths: Sequence[str], count: int, on_error: str = 'error'
) -> tuple[list[str], int]:
  """At most about `count` texts, the same number of each file; all documents.

  Of a plain file the texts are spread over it, of another they are its first.
  The number of documents is exact for plain files and Parquet, malformed lines
  included; for others it is drawn from the file's beginning.

  Raises:
    ValueError: an empty corpus, or what `jsonl.records` raises.
  """
  jsonl.check_on_error(on_error)
  share = -(-count // len(paths))
  texts, documents = [], 0
  for path in paths:
    see = _spread if formats.is_plain(path) else _beginning
    some, number = see(path, share, on_error)
    texts += some
    documents += number
  if not texts:
    raise ValueError(f'the corpus is empty: {", ".join(paths)}')
  return texts, documents


def _spread(path: str, count: int, on_error: str) -> tuple[list[str], int]:
  lines = jsonl.open_shard(path)
  count = min(count, len(lines))
  texts = []
  for i in range(count):
    try:
      texts.append(lines.text(i * len(lines) // count))
    except jsonl.MalformedLine:
      if on_error == 'error':
        raise
  return texts, len(lines)


def _beginning(path: str, count: int, on_error: str) -> tuple[list[str], int]:
  texts, seen, row = [], 0, -1
  # Unbuffered, so that its position is what has been unpacked, but for little.
  with open(path, 'rb', buffering=0) as file:
    for row, line in enumerate(jsonl.lines(file)):
      if len(texts) >= count and seen >= _LOOK_BYTES:
        position = file.tell()
        break
      seen += len(line)
      try:
        text = jsonl.parse(line, path, row + 1)['text']
      except jsonl.MalformedLine:
        if on_error == 'error':
          raise
        continue
      if len(texts) < count:
        texts.append(text)
    else:
      return texts, row + 1
    if path.endswith('.parquet'):
      return texts, formats.rows(path)
    return texts, row * os.path.getsize(path) // position
