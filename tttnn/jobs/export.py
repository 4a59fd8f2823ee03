"""Writes a model as a Hugging Face directory: `export/` of the work directory.

`model.path` may be Orbax checkpoints, a Hugging Face directory or a hub id.
"""

import os

from tttnn import checkpoint
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: if there is no model to read, or the directory exists.
  """
  directory = os.path.join(workdir, 'export')
  if os.path.exists(directory):
    raise ValueError(f'{directory} exists already')
  model, params = checkpoint.load_model(
    config.model.path, revision=config.model.revision
  )
  tokenizer = tokenizer_lib.load(config.model.path, config.model.revision)
  hf.save(directory, model, params)
  tokenizer_lib.save(tokenizer, directory)
  print(f'export: {directory} is a model.path')
