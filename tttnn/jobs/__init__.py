"""The jobs, one file each: `run(config, workdir)` tells what it does."""

import difflib
import importlib

from tttnn import settings

JOBS = (
  'corpus',
  'train',
  'export',
  'build',
  'serve',
  'query',
  'evaluate',
  'report',
  'pipeline',
)
# These answer on the terminal and need no directory of their own.
_WITHOUT_WORKDIR = ('serve', 'query')
# These take long enough for `dry_run`.
_ESTIMATED = ('train', 'build', 'evaluate', 'pipeline')


def run(config, workdir: str) -> None:
  """Runs `config.job` in `workdir` and leaves its config.json there.

  Raises:
    ValueError: if there is no such job, it needs a work directory, or it fails.
  """
  if config.job not in JOBS:
    near = difflib.get_close_matches(config.job, JOBS, 1, cutoff=0.0)[0]
    raise ValueError(
      f'job={config.job!r} is not a job; did you mean {near!r}? There are: '
      f'{", ".join(JOBS)}'
    )
  if config.dry_run and config.job not in _ESTIMATED:
    print(f'{config.job}: takes seconds, there is nothing to estimate')
    return
  if not workdir and config.job not in _WITHOUT_WORKDIR:
    raise ValueError(f'job={config.job!r} needs --workdir=DIR')
  if workdir and not config.dry_run:
    settings.write(config, workdir)
  # Imported here: a search host has no use for JAX.
  job = importlib.import_module(f'tttnn.jobs.{config.job}')
  job.run(config, workdir)
