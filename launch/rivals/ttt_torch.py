"""Test-time training on nearest neighbours in plain PyTorch, to measure with.

The loop of the original code (Hardt & Sun, ICLR 2024): one document at a time;
one AdamW step on each window of each neighbour; the document scored before and
after every neighbour; then the saved weights are loaded again. Beside torch
and transformers it imports `torch_side` alone.

  python ttt_torch.py [--device cpu|cuda] [--dtype float32|bf16|tf32] [--fused]

It answers JSON lines on stdin with JSON lines on stdout. The first request is
{"call": "load", "model": DIRECTORY, "documents": FILE, "settings": {...}}, the
next ones are {"call": "run", "documents": [NUMBERS], "neighbors": HOW_MANY}.
FILE is a JSON list of {"tokens": [...], "neighbors": [[...], ...]}. The end of
stdin ends it.
"""

import argparse
import copy
import json
import time

import torch_side
from torch_side import torch
from torch_side import transformers


class Loop:
  """The reference's loop over one model and its documents."""

  def __init__(self, args):
    self.args = args
    if args.dtype == 'tf32':
      torch.set_float32_matmul_precision('high')

  def load(self, model, documents, settings):
    self.settings = settings
    with open(documents, encoding='utf-8') as file:
      self.documents = json.load(file)
    self.model = transformers.AutoModelForCausalLM.from_pretrained(model)
    # Dropout off, in training too.
    self.model.to(self.args.device, torch.float32).eval()
    self.saved = copy.deepcopy(self.model.state_dict())
    return torch_side.about(self.args.device)

  def run(self, documents, neighbors):
    """Adapts to the first `neighbors` neighbours of each document."""
    begin = time.perf_counter()
    self.seconds = {'rest': 0.0, 'adapt': 0.0, 'score': 0.0}
    log_likelihood, train_loss = [], []
    for number in documents:
      document = self.documents[number]
      scores, losses = self.document(
        document['tokens'], document['neighbors'][:neighbors]
      )
      log_likelihood.append(scores)
      train_loss.append(losses)
    return {
      'seconds': time.perf_counter() - begin,
      'parts': self.seconds,
      'log_likelihood': log_likelihood,
      'train_loss': train_loss,
      **torch_side.peaks(self.args.device),
    }

  def document(self, tokens, neighbors):
    clock = time.perf_counter()

    def charge(part):
      nonlocal clock
      if self.args.device == 'cuda':
        torch.cuda.synchronize()
      now = time.perf_counter()
      self.seconds[part] += now - clock
      clock = now

    self.model.load_state_dict(self.saved)
    optimizer = torch.optim.AdamW(
      self.model.parameters(),
      lr=self.settings['learning_rate'],
      eps=self.settings['adam_epsilon'],
      weight_decay=self.settings['weight_decay'],
      fused=self.args.fused or None,
    )
    charge('rest')
    scores, train_loss = [self.score(tokens)], []
    charge('score')
    for neighbor in neighbors:
      losses = []
      for begin in range(0, len(neighbor), self.settings['stride']):
        window = neighbor[begin : begin + self.settings['max_length']]
        if len(window) > 1:  # Else there is nothing to predict.
          losses.append(self.step(optimizer, window))
      losses = [loss.item() for loss in losses]
      train_loss.append(sum(losses) / len(losses) if losses else 0.0)
      charge('adapt')
      scores.append(self.score(tokens))
      charge('score')
    return scores, train_loss

  def logits(self, ids):
    with torch.autocast(
      self.args.device, torch.bfloat16, enabled=self.args.dtype == 'bf16'
    ):
      return self.model(ids, use_cache=False).logits[0]

  def step(self, optimizer, window):
    optimizer.zero_grad()
    ids = torch.tensor([window], device=self.args.device)
    logits = self.logits(ids)
    loss = torch.nn.functional.cross_entropy(logits[:-1].float(), ids[0, 1:])
    loss.backward()
    if self.settings['clip_norm']:
      torch.nn.utils.clip_grad_norm_(
        self.model.parameters(), self.settings['clip_norm']
      )
    optimizer.step()
    return loss.detach()

  @torch.no_grad()
  def score(self, tokens):
    """The rolling log-likelihood, each token scored once."""
    context = self.model.config.n_positions
    total, done = 0.0, 0
    while done < len(tokens):
      end = min(done + context, len(tokens))
      if done:
        inputs = tokens[end - 1 - context : end - 1]
      else:
        inputs = [self.settings['start'], *tokens[: end - 1]]
      targets = tokens[done:end]
      logits = self.logits(torch.tensor([inputs], device=self.args.device))
      total -= torch.nn.functional.cross_entropy(
        logits[-len(targets) :].float(),
        torch.tensor(targets, device=self.args.device),
        reduction='sum',
      ).item()
      done = end
    return total


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu')
  parser.add_argument(
    '--dtype', choices=['float32', 'bf16', 'tf32'], default='float32'
  )
  parser.add_argument('--fused', action='store_true')
  torch_side.serve(Loop, parser.parse_args())


if __name__ == '__main__':
  main()
