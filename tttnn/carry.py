"""State that runs through the documents of a run, and survives its death.

With a carried optimizer or weights that are not reset, a document's row depends
on all documents before it. So the state is checkpointed together with the rows
it has seen, and a rerun goes on from there: later rows are written again.
"""

import jax

from tttnn import checkpoint


class Carry:
  """What a document leaves to the next one.

  Attributes:
    state: for the next document; None where it begins afresh.
  """

  def __init__(self, directory: str, every: int):
    """Checkpoints to `directory`, each `every` documents."""
    self._checkpoints = checkpoint.Checkpoints(directory, every=1, keep=1)
    self._every = every
    self._task = None
    self.state = None

  def restore(self, example) -> list[str | int]:
    """Takes up the newest checkpoint.

    Args:
      example: a state, for its shapes and places.

    Returns:
      The ids of the documents that the state has seen, in order.
    """
    found = self._checkpoints.restore(checkpoint.abstract(example))
    if found is None:
      return []
    _, self.state, record = found
    self._task = record['task']
    return record['doc_ids']

  def begin(self, task: str) -> None:
    """Begins afresh where `task` is another one than before."""
    if task != self._task:
      self._task, self.state = task, None

  def end(self, state, doc_ids: list[str | int]) -> None:
    """Takes the state after the document that is last of `doc_ids`."""
    self.state = state
    if len(doc_ids) % self._every == 0:
      self._save(doc_ids)

  def close(self, doc_ids: list[str | int]) -> None:
    """Saves the last state, and waits until it is written."""
    self._save(doc_ids)
    self._checkpoints.close()

  def _save(self, doc_ids: list[str | int]) -> None:
    if self.state is not None:
      record = {'task': self._task, 'doc_ids': doc_ids}
      jax.block_until_ready(self.state)
      self._checkpoints.save(len(doc_ids), self.state, record, force=True)
