"""Validation of a run in training, which keeps the best parameters."""

import math
import os

from tttnn import checkpoint
from tttnn import distributed
from tttnn import settings
from tttnn import training
from tttnn.jobs import learner as learner_lib


class Validation:
  """Mean loss of the validation texts; with `train.eval_every`, keeps the best.

  Attributes:
    directory: of the best parameters, a model.path.
    best: {'step', 'loss'} of them, None where none are kept yet, or at all.
  """

  def __init__(
    self,
    config,
    workdir: str,
    learner: learner_lib.Learner,
    record: dict,
    mesh,
  ):
    """Goes on with the best parameters that are there.

    Args:
      config: of the run.
      workdir: of the run.
      learner: what is trained.
      record: {'identity', 'digest'} of the run.
      mesh: where its parameters lie, or None.

    Raises:
      ValueError: what is there was chosen by other validations.
    """
    self.directory = os.path.join(workdir, 'best')
    self.best = None
    self._train, self._seed = config.train, config.seed
    self._learner, self._mesh = learner, mesh
    self._fsdp = config.mesh.fsdp
    self._texts = learner.texts['validation']
    self._checkpoints = None
    if not config.train.eval_every:
      return
    # All that a comparison of losses depends on, and the order of the steps
    # that are compared.
    self._chosen_by = {
      **record['identity'],
      'texts': record['digest'],
      'validation': self._texts.digest,
      'train.eval_every': config.train.eval_every,
      'train.eval_batches': config.train.eval_batches,
    }
    self._checkpoints = checkpoint.Checkpoints(self.directory, every=1, keep=1)
    if saved := self._checkpoints.record():
      differ = settings.difference(saved['chosen_by'], self._chosen_by)
      if differ:
        raise ValueError(
          f'{self.directory} was chosen by other validations ({differ}): take '
          'another --workdir, or delete it'
        )
      self.best = saved['best']
    if distributed.is_main():
      checkpoint.describe(self.directory, learner.model, learner.tokenizer)

  def loss(self, step: int, params) -> float:
    """The loss after `step` steps; the parameters are kept if it is the best.

    A step that is validated again, after a run was interrupted, has the same.
    """
    found = training.validate(
      self._learner.task,
      self._texts,
      params,
      batches=self._train.eval_batches,
      seed=self._seed,
      mesh=self._mesh,
      fsdp=self._fsdp,
    )
    best = math.inf if self.best is None else self.best['loss']
    if self._checkpoints is not None and found < best:
      self.best = {'step': step, 'loss': found}
      record = {'best': self.best, 'chosen_by': self._chosen_by}
      self._checkpoints.save(step, {'params': params}, record, force=True)
    return found

  def close(self) -> None:
    """Waits for what is being written."""
    if self._checkpoints is not None:
      self._checkpoints.close()
