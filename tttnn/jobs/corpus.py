"""Writes the built-in corpus and trains tokenizers on it.

Leaves `text/` (`train/*.jsonl`, `validation.jsonl`, `test.jsonl` and
`corpus.json`) and `tokenizers/{gpt2,roberta}` in the work directory.
"""

import os

from tttnn.corpus import builtin
from tttnn.corpus import jsonl
from tttnn.corpus import tokenizer as tokenizer_lib


def run(config, workdir: str) -> None:
  """The job; what is there already stays.

  Raises:
    ValueError: if the directory holds a corpus of other settings.
  """
  options = config.builtin
  if config.dry_run:
    print(f'corpus: would write the built-in corpus to {workdir} (seconds)')
    return
  text = os.path.join(workdir, 'text')
  summary = builtin.write(
    text, max_bytes=options.max_bytes, shards=options.shards
  )
  train = jsonl.read(jsonl.expand(os.path.join(text, 'train', '*.jsonl')))
  for kind in ('gpt2', 'roberta'):
    directory = os.path.join(workdir, 'tokenizers', kind)
    if not os.path.exists(os.path.join(directory, 'tokenizer.json')):
      tokenizer_lib.train(
        train.iter_texts(),
        directory,
        vocab_size=options.vocab_size,
        kind=kind,
      )
  for split in ('train', 'validation', 'test'):
    domains = summary[split]
    documents = sum(d['documents'] for d in domains.values())
    size = sum(d['bytes'] for d in domains.values())
    print(
      f'corpus: {split}: {documents:,} documents, {size / 1e6:.2f} MB, '
      f'{len(domains)} domains'
    )
