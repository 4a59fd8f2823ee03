"""What the rivals in PyTorch have in common: how they answer, and about what.

A rival answers JSON lines on stdin with JSON lines on stdout; without torch and
transformers it says so and ends. It shares no code with `tttnn`. To be imported
before anything that prints.
"""

import json
import os
import sys

# The answers have the first stdout to themselves; what libraries print joins
# the errors.
ANSWERS = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)


def answer(**values):
  print(json.dumps(values), file=ANSWERS, flush=True)


try:
  import numpy as np  # noqa: F401 (for those that have arrays)
  import torch
  import transformers
except ImportError as error:
  answer(missing=str(error))
  sys.exit(0)


def about(device):
  """What answers: versions, threads and the device, 'cpu' or 'cuda'."""
  return {
    'versions': {
      'torch': torch.__version__,
      'transformers': transformers.__version__,
    },
    'threads': torch.get_num_threads(),
    'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
  }


def peaks(device):
  """The most memory that the process held so far, in bytes."""
  host = 0
  with open('/proc/self/status', encoding='ascii') as file:
    for line in file:
      if line.startswith('VmHWM:'):
        host = int(line.split()[1]) * 1024
  on_device = torch.cuda.max_memory_allocated() if device == 'cuda' else 0
  return {'peak_bytes': host, 'device_peak_bytes': on_device}


def serve(kind, args):
  """Answers with kind(args).load and .run until stdin ends."""
  if args.device == 'cuda' and not torch.cuda.is_available():
    answer(missing='PyTorch sees no CUDA device')
    return
  side = kind(args)
  calls = {'load': side.load, 'run': side.run}
  for line in sys.stdin:
    request = json.loads(line)
    answer(**calls[request.pop('call')](**request))
