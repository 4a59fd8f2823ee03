"""`python -m tttnn.main --config=configs/NAME.py --workdir=DIR`: runs a job."""

import os
import re
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from tttnn import jobs
from tttnn import settings

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
    _fail(error)
  except KeyboardInterrupt:
    sys.exit('interrupted; the same command goes on from here')


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser, with one line for a wrong key, type or file."""
  try:
    settings.check_keys(argv)
    return flags.FLAGS(settings.quoted(argv))
  except AttributeError as error:  # What a locked config says to a new key.
    _fail(re.sub(r' Other fields present: .*\\n', ' ', str(error)))
  except (flags.Error, ValueError, OSError) as error:
    _fail(error)


def _fail(error: Exception | str) -> None:
  text = str(error)
  if 'Traceback' in text:  # ml_collections hands on that of a config file.
    text = text.strip().splitlines()[-1].removeprefix('ValueError: ')
  text = ' '.join(text.split())
  sys.exit(f'error: {text} (--debug shows where)')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
