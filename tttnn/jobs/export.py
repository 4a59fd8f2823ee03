"""Writes a model as a Hugging Face directory: `export/` of the work directory.

`model.path` may be Orbax checkpoints, a Hugging Face directory or a hub id.
"""

import json
import os

from tttnn import checkpoint
from tttnn import files
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf


def run(config, workdir: str) -> None:
  """The job; what was made of the same model stays.

  Raises:
    ValueError: if there is no model to read, or the directory holds another.
  """
  path, revision = config.model.path, config.model.revision
  directory = os.path.join(workdir, 'export')
  about = {'digest': checkpoint.digest(path, revision)}
  done = os.path.join(workdir, 'export.json')
  # config.json comes last: without it, nothing else is whole.
  if os.path.exists(os.path.join(directory, hf.CONFIG)):
    if not _says(done, about):
      raise ValueError(f'{directory} exists already')
    print(f'export: {directory} is there')
    return
  model, params = checkpoint.load_model(
    path, revision=revision, role=hf.role_of(path, revision)
  )
  tokenizer = tokenizer_lib.load(path, revision)
  tokenizer_lib.save(tokenizer, directory)
  files.write_atomic(done, json.dumps(about) + '\n')
  hf.save(directory, model, params)
  print(f'export: {directory} is a model.path')


def _says(path: str, about: dict) -> bool:
  if not os.path.exists(path):
    return False
  with open(path, encoding='utf-8') as file:
    return json.load(file) == about
