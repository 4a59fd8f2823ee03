"""State that runs through the documents of a run, and survives its death.

With a carried optimizer or weights that are not reset, a document's row depends
on all documents before it. So the state is checkpointed together with the rows
it has seen, and a rerun goes on from there: later rows are written again.
"""

import jax

from tttnn import checkpoint


class Carry:
  """Checkpoints of what a document leaves to the next one.

  Attributes:
    task: of the last document.
  """

  def __init__(self, directory: str, every: int):
    """Checkpoints to `directory`, each `every` documents."""
    self._checkpoints = checkpoint.Checkpoints(directory, every=1, keep=1)
    self._every = every
    self.task = ''

  def restore(self, example) -> tuple[object | None, list[str | int]]:
    """Takes up the newest checkpoint.

    Args:
      example: a state, for its shapes and places.

    Returns:
      The state, None where there is no checkpoint, and the ids of the documents
      that it has seen, in order.
    """
    found = self._checkpoints.restore(checkpoint.abstract(example))
    if found is None:
      return None, []
    _, state, record = found
    self.task = record['task']
    return state, record['doc_ids']

  def end(self, state, task: str, doc_ids: list[str | int]) -> None:
    """Takes note of the state after the document that is last of `doc_ids`."""
    self.task = task
    if len(doc_ids) % self._every == 0:
      self._save(state, doc_ids)

  def close(self, state, doc_ids: list[str | int]) -> None:
    """Saves the last state, and waits until it is written."""
    self._save(state, doc_ids)
    self._checkpoints.close()

  def _save(self, state, doc_ids: list[str | int]) -> None:
    record = {'task': self.task, 'doc_ids': doc_ids}
    jax.block_until_ready(state)
    self._checkpoints.save(len(doc_ids), state, record, force=True)
