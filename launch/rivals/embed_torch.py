"""Text embeddings in plain PyTorch, to measure with.

The way of the original code (Hardt & Sun, ICLR 2024): a Hugging Face RoBERTa,
texts in the order of the file, 16 at a time, padded to the longest of them, and
the mean of the last hidden states over the tokens. Beside torch and
transformers it imports `torch_side` alone.

  python embed_torch.py [--device cpu|cuda] [--attention sdpa|eager]

It answers JSON lines on stdin with JSON lines on stdout. The first request is
{"call": "load", "model": DIRECTORY, "texts": FILE, "max_tokens": HOW_MANY}, the
next ones are {"call": "run", "texts": HOW_MANY, "output": FILE}. The first FILE
is a JSON list of texts, the second becomes an .npy of the first texts'
embeddings. The end of stdin ends it.
"""

import argparse
import json
import time

import torch_side
from torch_side import np
from torch_side import torch
from torch_side import transformers

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
    return torch_side.about(self.args.device)

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
      **torch_side.peaks(self.args.device),
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


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
  parser.add_argument('--attention', choices=['sdpa', 'eager'], default='sdpa')
  torch_side.serve(Loop, parser.parse_args())


if __name__ == '__main__':
  main()
