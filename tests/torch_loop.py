"""The reference's loop of test-time training, in PyTorch."""

import numpy as np
import torch

from tests import tiny


def optimizer(reference, settings):
  return torch.optim.AdamW(
    reference.parameters(),
    lr=settings.learning_rate,
    eps=settings.adam_epsilon,
    weight_decay=settings.weight_decay,
  )


def run(reference, document, neighbors, settings, start, adamw=None):
  """One AdamW step a window, scored before and after every neighbour.

  Args:
    reference: a Hugging Face model, which is changed.
    document: token ids.
    neighbors: token ids of each.
    settings: ttt.Settings with lengths that are not 0.
    start: the id before the document.
    adamw: the optimizer of the document before.

  Returns:
    (log-likelihoods in nats, mean loss of each neighbour).
  """
  adamw = adamw or optimizer(reference, settings)
  context = reference.config.max_position_embeddings

  def score():
    return tiny.rolling_log_likelihood(reference, document, context, start)

  scores, losses = [score()], []
  for tokens in neighbors:
    values = []
    for begin in range(0, len(tokens), settings.stride):
      window = tokens[begin : begin + settings.max_length]
      if len(window) < 2 and settings.short_windows == 'skip':
        continue
      adamw.zero_grad()
      ids = torch.tensor([window])
      if len(window) > 1:
        logits = reference(ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        loss.backward()
        values.append(loss.item())
      else:
        for parameter in reference.parameters():
          parameter.grad = torch.zeros_like(parameter)
        values.append(float('nan'))
      torch.nn.utils.clip_grad_norm_(reference.parameters(), settings.clip_norm)
      adamw.step()
    losses.append(np.mean(values) if values else 0.0)
    scores.append(score())
  return scores, losses
