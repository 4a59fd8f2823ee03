"""Training in plain PyTorch, to measure with.

The loop that one writes first: a model of transformers, its logits for all
tokens, cross entropy over those that are predicted, clipping, AdamW. Beside
torch and transformers it imports `torch_side` alone.

  python train_torch.py [--device cpu|cuda] [--attention sdpa|eager]
    [--dtype float32|bf16] [--fused]

It answers JSON lines on stdin with JSON lines on stdout. The first request is
{"call": "load", "model": DIRECTORY, "batches": FILE, "objective": "causal" or
"masked", "settings": {"learning_rate", "weight_decay", "clip_norm"}}, the next
ones are {"call": "run", "steps": HOW_MANY}, which begin with the model as it
lies in DIRECTORY. FILE is an .npz of `tokens` [steps, rows, T], and `targets`
alike, -100 where nothing is predicted. The end of stdin ends it.
"""

import argparse
import contextlib
import copy
import time

import torch_side
from torch_side import np
from torch_side import torch
from torch_side import transformers

MODELS = {
  'causal': transformers.GPT2LMHeadModel,
  'masked': transformers.RobertaForMaskedLM,
}


class Loop:
  """The loop over one model and its batches."""

  def __init__(self, args):
    self.args = args

  def load(self, model, batches, objective, settings):
    self.settings = settings
    with np.load(batches, allow_pickle=False) as arrays:
      self.batches = [
        torch.from_numpy(arrays[name].astype(np.int64)).to(self.args.device)
        for name in ('tokens', 'targets')
      ]
    self.first = MODELS[objective].from_pretrained(
      model, attn_implementation=self.args.attention
    )
    # Without dropout, as the other side is.
    self.first.to(self.args.device, torch.float32).eval()
    return torch_side.about(self.args.device)

  def run(self, steps):
    """Trains for some steps; the time is that of the steps alone."""
    model = copy.deepcopy(self.first)
    optimizer = torch.optim.AdamW(
      model.parameters(),
      lr=self.settings['learning_rate'],
      weight_decay=self.settings['weight_decay'],
      fused=True if self.args.fused else None,
    )
    tokens, targets = self.batches
    losses = []
    self.wait()
    begin = time.perf_counter()
    for step in range(steps):
      with self.precision():
        logits = model(input_ids=tokens[step], use_cache=False).logits
      loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets[step].flatten()
      )
      optimizer.zero_grad()
      loss.backward()
      torch.nn.utils.clip_grad_norm_(
        model.parameters(), self.settings['clip_norm']
      )
      optimizer.step()
      losses.append(loss.detach())
    self.wait()
    seconds = time.perf_counter() - begin
    return {
      'seconds': seconds,
      'losses': torch.stack(losses).tolist(),
      **torch_side.peaks(self.args.device),
    }

  def precision(self):
    if self.args.dtype == 'bf16':
      return torch.autocast(self.args.device, torch.bfloat16)
    return contextlib.nullcontext()

  def wait(self):
    if self.args.device == 'cuda':
      torch.cuda.synchronize()


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
  parser.add_argument('--attention', choices=['sdpa', 'eager'], default='sdpa')
  parser.add_argument('--dtype', choices=['float32', 'bf16'], default='float32')
  parser.add_argument('--fused', action='store_true')
  torch_side.serve(Loop, parser.parse_args())


if __name__ == '__main__':
  main()
