"""Text embeddings in plain PyTorch, to measure with.

The way of the original code (Hardt & Sun, ICLR 2024): a Hugging Face RoBERTa,
texts in the order of the file, 16 at a time, padded to the longest of them, and
the mean of the last hidden states over the tokens. It shares no code with
`tttnn` and imports torch and transformers alone.

  python embed_torch.py [--device cpu|cuda] [--attention sdpa|eager]

It answers JSON lines on stdin with JSON lines on stdout. The first request is
{"call": "load", "model": DIRECTORY, "texts": FILE, "max_tokens": HOW_MANY}, the
next ones are {"call": "run", "texts": HOW_MANY, "output": FILE}. The first FILE
is a JSON list of texts, the second becomes an .npy of the first texts'
embeddings. The end of stdin ends it.
"""

import argparse
import json
import os
import sys
import time

# The answers have the first stdout to themselves; what libraries print joins
# the errors.
ANSWERS = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)


def answer(**values):
  print(json.dumps(values), file=ANSWERS, flush=True)


try:
  import numpy as np
  import torch
  import transformers
except ImportError as error:
  answer(missing=str(error))
  sys.exit(0)

BATCH = 16  # Texts at once.


class Loop:
  """The reference's loop over one model and its texts."""

  def __init__(self, args):
    self.args = args

  def load(self, model, texts, max_tokens):
    with open(texts, encoding='utf-8') as file:
      self.texts = json.load(file)
    self.max_tokens = max_tokens
    self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    self.model = transformers.RobertaModel.from_pretrained(
      model,
      add_pooling_layer=False,
      attn_implementation=self.args.attention,
    )
    self.model.to(self.args.device, torch.float32).eval()
    on_cuda = self.args.device == 'cuda'
    return {
      'versions': {
        'torch': torch.__version__,
        'transformers': transformers.__version__,
      },
      'threads': torch.get_num_threads(),
      'device': torch.cuda.get_device_name() if on_cuda else 'cpu',
    }

  @torch.no_grad()
  def run(self, texts, output):
    """Embeds the first `texts` texts, from text to float32 on the host."""
    begin = time.perf_counter()
    self.real = self.computed = 0
    vectors = np.concatenate(
      [
        self.embed(self.texts[first : min(first + BATCH, texts)])
        for first in range(0, texts, BATCH)
      ]
    )
    seconds = time.perf_counter() - begin
    np.save(output, vectors, allow_pickle=False)
    return {
      'seconds': seconds,
      'padded_share': 1 - self.real / self.computed,
      **peaks(self.args.device),
    }

  def embed(self, texts):
    batch = self.tokenizer(
      texts,
      padding=True,
      truncation=True,
      max_length=self.max_tokens,
      return_tensors='pt',
    ).to(self.args.device)
    mask = batch['attention_mask']
    self.computed += mask.numel()
    hidden = self.model(**batch).last_hidden_state
    total = (hidden * mask[..., None]).sum(dim=1)
    count = mask.sum(dim=1, keepdim=True)
    self.real += count.sum().item()
    return (total / count).cpu().numpy()


def peaks(device):
  """The most memory that the process held so far, in bytes."""
  host = 0
  with open('/proc/self/status', encoding='ascii') as file:
    for line in file:
      if line.startswith('VmHWM:'):
        host = int(line.split()[1]) * 1024
  on_device = torch.cuda.max_memory_allocated() if device == 'cuda' else 0
  return {'peak_bytes': host, 'device_peak_bytes': on_device}


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
  parser.add_argument('--attention', choices=['sdpa', 'eager'], default='sdpa')
  args = parser.parse_args()
  if args.device == 'cuda' and not torch.cuda.is_available():
    answer(missing='PyTorch sees no CUDA device')
    return
  loop = Loop(args)
  calls = {'load': loop.load, 'run': loop.run}
  for line in sys.stdin:
    request = json.loads(line)
    answer(**calls[request.pop('call')](**request))


if __name__ == '__main__':
  main()
