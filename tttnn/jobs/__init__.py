"""The jobs, one file each: `run(config, workdir)` tells what it does."""

import difflib
import importlib

from tttnn import settings

JOBS = (
  'corpus',
  'tokenize',
  'train',
  'export',
  'build',
  'serve',
  'query',
  'evaluate',
  'generate',
  'report',
  'compare',
  'benchmark',
  'distances',
  'plan',
  'pipeline',
)
# These answer on the terminal and need no directory of their own.
_WITHOUT_WORKDIR = ('serve', 'query', 'generate', 'plan')
# These take long enough for `dry_run`.
_ESTIMATED = (
  'train',
  'build',
  'evaluate',
  'generate',
  'compare',
  'benchmark',
  'distances',
  'pipeline',
)


def run(config, workdir: str, *, write_config: bool = True) -> None:
  """Runs `config.job` in `workdir` and leaves its config.json there.

  Args:
    config: as `configs/base.py` describes it.
    workdir: the job's directory; '' for jobs that need none.
    write_config: False where the directory's config.json is another job's.

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
  if config.job != 'pipeline':  # Whose steps may run in another directory.
    config = settings.expand(config, workdir)
  if workdir and write_config and not config.dry_run:
    settings.write(config, workdir)
  # Imported here: a search host has no use for JAX.
  job = importlib.import_module(f'tttnn.jobs.{config.job}')
  job.run(config, workdir)
