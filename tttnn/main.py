"""`python -m tttnn.main --config=configs/NAME.py --workdir=DIR`: runs a job.

Exit status, by which `launch/retry.sh` goes: 0, done; 78 (EX_CONFIG), a flag,
setting or input is wrong, so that the same command cannot succeed; 130,
interrupted; 1, anything else, after which it may: a full disk, a server that is
gone, a crash.
"""

import os
import re
import sys
from typing import NoReturn

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from tttnn import jobs
from tttnn import settings

# Errors of the operating system that a path is wrong.
_LASTING = (
  FileNotFoundError,
  FileExistsError,
  NotADirectoryError,
  IsADirectoryError,
  PermissionError,
)

_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'configs/NAME.py[:VARIANT]',
  lock_config=True,
  sys_argv=settings.quoted(sys.argv),
)
_WORKDIR = flags.DEFINE_string('workdir', '', "The job's output directory.")
_DEBUG = flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')


def main(argv: list[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  try:
    if argv[1:]:
      raise ValueError(f'unknown argument {argv[1]!r}: flags begin with --')
    if _CONFIG.value is None:
      raise ValueError('--config=configs/NAME.py is missing')
    workdir = os.path.abspath(_WORKDIR.value) if _WORKDIR.value else ''
    jobs.run(_CONFIG.value, workdir)
  except (ValueError, OSError) as error:
    if _DEBUG.value:
      raise
    fail(error)
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', file=sys.stderr)
    sys.exit(130)


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with one line for a wrong key, type or file."""
  try:
    settings.check_keys(argv)
    left = flags.FLAGS(settings.quoted(argv))
    if _CONFIG.value is not None:
      _ = _CONFIG.value.job  # A file that was not loaded says why at first use.
    return left
  except AttributeError as error:  # What a locked config says to a new key.
    text = re.sub(r' Other fields present: .*\\n', ' ', str(error))
    fail(ValueError(text))
  except (flags.Error, ValueError, OSError) as error:
    fail(ValueError(error))


def fail(error: Exception) -> NoReturn:
  """Says in one line what is wrong, and exits with the status above."""
  text = str(error)
  if 'Traceback' in text:  # ml_collections hands on that of a config file.
    text = text.strip().splitlines()[-1].removeprefix('ValueError: ')
  text = ' '.join(text.split())
  print(f'error: {text} (--debug shows where)', file=sys.stderr)
  mends = isinstance(error, OSError) and not isinstance(error, _LASTING)
  sys.exit(1 if mends else os.EX_CONFIG)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
