"""Runs jobs in order in one work directory; each skips what is done.

A step is (folder, overrides): the job runs in that folder of the work
directory ('' is the work directory itself) with the pipeline's config, changed
by the overrides.
"""

import contextlib
import io
import os
import shutil
import tempfile
import time

from tttnn import jobs
from tttnn import settings


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: what the steps raise, or if there are none.
  """
  if not config.pipeline.steps:
    raise ValueError('pipeline.steps is empty: see configs/quickstart.py')
  if config.dry_run:
    _dry_run(config)
    return
  begin = time.monotonic()
  for folder, overrides in config.pipeline.steps:
    step = _step(config, overrides, workdir)
    print(f'== {step.job}{f" ({folder})" if folder else ""}', flush=True)
    jobs.run(step, os.path.join(workdir, folder), write_config=bool(folder))
  print(f'pipeline: done in {time.monotonic() - begin:.0f} s')


def _step(config, overrides: dict, workdir: str):
  step = config.copy_and_resolve_references()
  step.pipeline.steps = ()
  for key, value in overrides.items():
    settings.override(step, key, value)
  return settings.expand(step, workdir)


def _dry_run(config) -> None:
  """Estimates every step in a scratch directory, which is removed.

  What costs little and later steps need is made there for real: the corpus,
  tokenized pairs, and models of the right shape without training.
  """
  scratch = tempfile.mkdtemp(prefix='tttnn-dry-run-')
  try:
    for folder, overrides in config.pipeline.steps:
      step = _step(config, overrides, scratch)
      step.dry_run = step.job not in ('corpus', 'tokenize')
      jobs.run(step, os.path.join(scratch, folder))
      if step.job == 'train':
        step.update(dry_run=False)
        step.train.steps = 0
        silence = io.StringIO()
        with (
          contextlib.redirect_stdout(silence),
          contextlib.redirect_stderr(silence),
        ):
          jobs.run(step, os.path.join(scratch, folder))
  finally:
    shutil.rmtree(scratch)
