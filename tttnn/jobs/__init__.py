"""The jobs, one file each: `run(config, workdir)` tells what it does."""

import difflib
import importlib

from tttnn import distributed
from tttnn import settings

JOBS = (
  'corpus',
  'tokenize',
  'train',
  'export',
  'build',
  'serve',
  'query',
  'retrieve',
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
  'retrieve',
  'evaluate',
  'generate',
  'compare',
  'benchmark',
  'distances',
  'pipeline',
)
# These share their work among processes.
_DISTRIBUTED = ('train', 'evaluate')
# These know without running whether they are done.
_TELL = ('train', 'evaluate')


def run(config, workdir: str, *, write_config: bool = True) -> None:
  """Runs `config.job` in `workdir` and leaves its config.json there.

  Args:
    config: as `configs/base.py` describes it.
    workdir: the job's directory; '' for jobs that need none.
    write_config: False where the directory's config.json is another job's.

  Raises:
    ValueError: if there is no such job, it needs a work directory or has no
      use for several processes, or it fails.
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
  processes = distributed.Settings.create(config.distributed)
  if processes.several and config.job not in _DISTRIBUTED:
    raise ValueError(
      f'job={config.job!r} is a run of one process; of several '
      f'(distributed.processes={processes.processes}, distributed.auto='
      f'{processes.auto}) are {", ".join(_DISTRIBUTED)}'
    )
  with distributed.session(processes):
    if workdir and write_config and not config.dry_run:
      with distributed.main_first('config.json'):
        if distributed.is_main():
          settings.write(config, workdir)
        else:
          settings.check_written(config, workdir)
    # Imported here: a search host has no use for JAX.
    job = importlib.import_module(f'tttnn.jobs.{config.job}')
    job.run(config, workdir)


def is_done(config, workdir: str) -> bool:
  """Whether a run in `workdir` has ended; False where its job cannot tell.

  Raises:
    ValueError: if what it reads is not there any more.
  """
  if config.job not in _TELL:
    return False
  job = importlib.import_module(f'tttnn.jobs.{config.job}')
  return job.is_done(settings.expand(config, workdir), workdir)
