"""This engine's side of the `ttt` benchmark, a process of its own.

`python -m tttnn.benchmarks.engine` answers JSON lines on stdin with JSON lines
on stdout (see `process`): requests are {"call": METHOD OF Engine, ARGUMENTS}.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import sys
import time

import jax
import jax.numpy as jnp

from tttnn import checkpoint
from tttnn import device
from tttnn import language_model
from tttnn.benchmarks import peak
from tttnn.benchmarks import workload
from tttnn.methods import pool
from tttnn.methods import schedule
from tttnn.methods import trainable
from tttnn.methods import ttt
from tttnn.scoring import rolling


@dataclasses.dataclass(frozen=True)
class _Ids:
  """Stands for a tokenizer where there are token ids already."""

  size: int
  eos_token_id: int

  def __len__(self):
    return self.size


class Side:
  """What every benchmark asks of this program's side."""

  def device(self) -> dict:
    """What it computes on."""
    kind = jax.devices()[0].device_kind
    return {
      'backend': jax.default_backend(),
      'kind': _processor() if kind == 'cpu' else kind,
      'cores': len(os.sched_getaffinity(0)),
    }

  def peak(self) -> dict:
    """Of products, in operations a second."""
    return {'matmul': peak.matmul()}


class Engine(Side):
  """One model and its documents."""

  def write(self, directory: str, shape: str, seed: int) -> dict:
    """Writes the model of a shape."""
    workload.write_model(directory, workload.SHAPES[shape], seed)
    return {}

  def load(
    self,
    model: str,
    documents: str,
    settings: dict,
    dtype: str,
    batch_documents: str,
  ) -> dict:
    """Makes ready what `run` runs; nothing is compiled yet."""
    device.keep_compiled_programs()
    with open(documents, encoding='utf-8') as file:
      self._documents = json.load(file)
    loaded, params = checkpoint.load_model(model, dtype=dtype)
    self._model = language_model.create(
      loaded,
      params,
      _Ids(loaded.vocab_size, settings.pop('start')),
      ttt.Settings(**settings),
      trainable=trainable.Trainable(),
    )
    slots = self._model.documents_at_once(batch_documents)
    self._pool = self._model.pool(min(slots, len(self._documents)))
    return {'slots': self._pool.slots}

  def run(self, documents: Sequence[int], neighbors: int) -> dict:
    """Adapts to the first `neighbors` neighbours of each document.

    Scored before and after every neighbour. The time is that of everything
    between token ids and log-likelihoods on the host.
    """
    self._pool.usage = {kind: pool.Usage() for kind in self._pool.usage}
    begin = time.perf_counter()
    outcomes = {
      work.key: outcome
      for work, outcome in self._pool.run(
        self._work(number, neighbors) for number in documents
      )
    }
    seconds = time.perf_counter() - begin
    ordered = [outcomes[number] for number in documents]
    adapt = sum(sum(outcome.adapt_seconds) for outcome in ordered)
    score = sum(sum(outcome.score_seconds) for outcome in ordered)
    return {
      'seconds': seconds,
      # What is left is admitting documents and waiting for the host.
      'parts': {
        'rest': seconds - adapt - score,
        'adapt': adapt,
        'score': score,
      },
      'log_likelihood': [outcome.log_likelihood for outcome in ordered],
      'train_loss': [outcome.train_loss for outcome in ordered],
      'usage': {
        kind: {
          'dispatches': usage.dispatches,
          'documents_a_dispatch': usage.rows / max(1, usage.dispatches),
          'padded_share': usage.padding,
        }
        for kind, usage in self._pool.usage.items()
      },
      **peaks(),
    }

  def phases(self, rows: int, size: int) -> dict:
    """What gradient and optimizer of a dispatch take, each by itself.

    Args:
      rows: documents, each on its own copy.
      size: tokens of a window.
    """
    self._pool = None  # Its memory is needed.
    adaptation = self._model.adaptation
    optimizer = adaptation.optimizer

    def loss(params, tokens_T):
      return ttt.loss(adaptation.cross_entropy, params, tokens_T, size)

    def move(params, moments, gradient):
      updates, moments = optimizer.update(gradient, moments, params)
      return jax.tree.map(jnp.add, params, updates), moments

    gradient = jax.jit(jax.vmap(jax.grad(loss)))
    update = jax.jit(jax.vmap(move), donate_argnums=(0, 1))
    copies = jax.tree.map(
      lambda x: jnp.repeat(x[None], rows, axis=0), self._model.params
    )
    tokens_RxT = jax.random.randint(
      jax.random.key(0), (rows, size), 0, self._model.model.vocab_size
    )
    gradient_seconds = peak.seconds(lambda: gradient(copies, tokens_RxT))
    gradients = gradient(copies, tokens_RxT)
    state = copies, jax.vmap(optimizer.init)(copies)

    def step():
      nonlocal state
      state = update(*state, gradients)
      return state

    return {
      'gradient_seconds': gradient_seconds,
      'optimizer_seconds': peak.seconds(step),
      'bandwidth': peak.bandwidth(),
      'matmul': peak.matmul(),
    }

  def _work(self, number: int, neighbors: int) -> schedule.Work:
    document = self._documents[number]
    settings = self._model.adaptation.settings
    windows = rolling.windows(
      document['tokens'], self._model.context, self._model.start
    )
    return schedule.Work(
      number,
      dict.fromkeys(range(neighbors + 1), windows),
      [
        ttt.windows(tokens, settings)
        for tokens in document['neighbors'][:neighbors]
      ],
    )


def _processor() -> str:
  with open('/proc/cpuinfo', encoding='utf-8') as file:
    fields = [line.partition(':') for line in file]
  names = [value.strip() for key, _, value in fields if 'model name' in key]
  return names[0] if names else 'cpu'


def peaks() -> dict:
  """The most memory held so far, in bytes."""
  with open('/proc/self/status', encoding='ascii') as file:
    fields = dict(line.split(':', 1) for line in file)
  statistics = jax.local_devices()[0].memory_stats() or {}
  return {
    'peak_bytes': int(fields['VmHWM'].split()[0]) * 1024,
    'device_peak_bytes': statistics.get('peak_bytes_in_use', 0),
  }


def serve(side: Side) -> None:
  """Answers the requests on stdin until it ends."""
  # The answers have stdout to themselves: what is printed joins the errors.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  for line in sys.stdin:
    request = json.loads(line)
    answer = getattr(side, request.pop('call'))(**request)
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  serve(Engine())
