"""Documents in flight: many adapt at once, each on its own copy.

The pool has `slots` places on each shard of the mesh's `data` axis; a place
holds a document's state (what trains, and its moments) in arrays
[D, slots, ...]. A dispatch takes the states of R documents a shard, does one
training step or scores one window of each, and puts the states back where they
were, in the same memory. What does not train is there once, for all of them.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from tttnn import sharding
from tttnn.methods import schedule
from tttnn.methods import trainable
from tttnn.methods import ttt
from tttnn.scoring import rolling

_LARGE = 1 << 22  # Parameters.

_P = jax.sharding.PartitionSpec


@dataclasses.dataclass
class Usage:
  """What dispatches of one kind did.

  Attributes:
    dispatches: how many.
    rows: documents in them.
    tokens: of their windows.
    padded: tokens they computed, with the padding of windows and of rows.
  """

  dispatches: int = 0
  rows: int = 0
  tokens: int = 0
  padded: int = 0

  @property
  def padding(self) -> float:
    """The share of what was computed that is padding."""
    return 1 - self.tokens / self.padded if self.padded else 0.0


class Pool:
  """Runs documents through an adaptation.

  Attributes:
    state: of the documents, arrays [D, slots, ...]. In a pool of one place, and
      whenever `run` yields, it is what the document yielded left behind.
    slots: documents in flight, on all shards together.
    fine: whether lengths are padded little: where a lone document needs no
      other's length, see `pads_finely`.
    usage: by the kinds of `schedule.Group`.
  """

  def __init__(
    self,
    adaptation: ttt.Adaptation,
    frozen,
    trained,
    *,
    context: int,
    slots: int = 1,
    mesh: jax.sharding.Mesh | None = None,
    on_compile: Callable[[str], None] = lambda what: None,
  ):
    """Takes the memory of every place.

    Args:
      adaptation: what happens to a document.
      frozen: what does not train, on the device.
      trained: the base model's values of what trains, on the device.
      context: of the model, in tokens.
      slots: documents in flight, a multiple of the mesh's data axis.
      mesh: over which `frozen` and `trained` lie; None: one device.
      on_compile: is told what is compiled, before it is.

    Raises:
      ValueError: for several documents at once where each goes on from the one
        before, or a number of them that the data axis does not divide.
    """
    settings = adaptation.settings
    if settings.carries and slots > 1:
      raise ValueError(
        f'{slots} documents cannot adapt at once where each goes on from the '
        f'one before it, in order (ttt.optimizer_state='
        f'{settings.optimizer_state}, ttt.reset_weights='
        f'{settings.reset_weights}): that needs ttt.batch_documents=1'
      )
    self._shards = mesh.shape['data'] if mesh else 1
    if slots % self._shards:
      raise ValueError(
        f'{slots} documents at once do not divide over mesh.data={self._shards}'
      )
    self.slots = slots
    self.fine = slots == 1 and pads_finely((frozen, trained))
    self.usage = {'step': Usage(), 'again': Usage(), 'score': Usage()}
    self._adaptation = adaptation
    self._frozen, self._trained = frozen, trained
    self._context, self._mesh = context, mesh
    self._widths = schedule.widths(slots // self._shards)
    self._on_compile, self._compiled = on_compile, set()
    self._taken = set()  # Places that a document has been at.
    out = self._placements()
    # Arrays take the places of those they follow, even of such as are not read:
    # on CPU, fresh memory costs a page fault for each of its pages.
    in_place = functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
    self._enter = in_place(self._enter_row, static_argnums=3, out_shardings=out)
    # Apart from the gradient, which is a program for each length of windows.
    self._update = in_place(
      self._update_rows, out_shardings=out and (out, None)
    )
    self._gradient = in_place(
      self._gradient_rows, out_shardings=out and (out[0], None)
    )
    self._score = jax.jit(self._score_rows)
    self._used = self._take if slots == 1 else jax.jit(self._take)
    self.state = jax.jit(self._start_rows, out_shardings=out)(trained)
    self._keep = in_place(self._put, out_shardings=out and out[0])
    # Gradients that were used, of every place. Where there is one place the
    # next gradient takes this memory; else they are kept to be used again.
    self._spent = None
    if slots == 1 or settings.gradient_reuse > 1:
      self._spent = jax.tree.map(jnp.copy, self.state[0])

  def run(
    self, works: Iterable[schedule.Work]
  ) -> Iterator[tuple[schedule.Work, ttt.Outcome]]:
    """Yields each document with what happened to it, as they finish.

    The numbers do not depend on what else is in flight, but for rounding.
    """
    works = iter(works)
    free = collections.deque(
      np.ndindex(self.slots // self._shards, self._shards)
    )
    members, flights = [], collections.deque()
    clock = time.monotonic()
    while True:
      while free and (work := next(works, None)) is not None:
        slot, shard = free.popleft()
        self._admit(work, shard, slot)
        settings = self._adaptation.settings
        members.append(
          schedule.Member(work, shard, slot, settings, self._context, self.fine)
        )
      if not members:
        return
      ready = [member for member in members if member.actions]
      if ready:
        flights.append(self._dispatch(ready))
      # The host prepares a dispatch while the device does the one before.
      while len(flights) > (1 if ready else 0):
        clock = flights.popleft().land(clock)
      for member in [member for member in members if member.finished]:
        members.remove(member)
        free.append((member.slot, member.shard))
        yield member.work, member.outcome()

  def resume(self, state) -> None:
    """Sets the state that the next document goes on from."""
    self.state = state
    self._taken.add((0, 0))

  def adapted(self):
    """The parameters that the last document left, in a pool of one place."""
    if self.slots > 1:
      raise ValueError(
        f'{self.slots} documents adapt at once: whose parameters?'
      )
    trained = jax.tree.map(lambda x: jnp.copy(x[0, 0]), self.state[0])
    return trainable.combine(self._frozen, trained)

  def memory(self, size: int) -> int:
    """Bytes of a step of the greatest width on windows of `size` tokens.

    Of its arguments, the pool among them, its results and what lies between.
    """
    group = schedule.Group('step', size)
    rows = self._rows(group, self._widths[-1], [[]] * self._shards)
    inputs = (self._spent, self.state, self._frozen, *rows)
    gradient = self._gradient.lower(*inputs)
    shapes = jax.eval_shape(self._gradient_rows, *inputs)
    update = self._update.lower(self.state, *shapes, rows[0])
    frozen = sum(x.nbytes for x in jax.tree.leaves(self._frozen))
    return max(_memory(gradient), _memory(update) + frozen)

  def _admit(self, work: schedule.Work, shard: int, slot: int) -> None:
    if (shard, slot) in self._taken:
      slots_Dx1 = np.full((self._shards, 1), self.slots, np.int32)
      slots_Dx1[shard] = slot
      self.state = self._enter(
        self.state, self._trained, slots_Dx1, work.afresh
      )
    self._taken.add((shard, slot))

  def _dispatch(self, ready: list[schedule.Member]) -> '_Flight':
    """Sends the next actions of some documents to the device."""
    group, width, shards = schedule.choose(ready, self._shards, self._widths)
    rows = self._rows(group, width, shards)
    what = f'{group.kind} of {width * self._shards} x {group.size} tokens'
    if what not in self._compiled:
      self._on_compile(what)
      self._compiled.add(what)
    begin = time.monotonic()
    if group.kind == 'score':
      values = self._score(self.state, self._frozen, *rows)
    else:
      values = self._step(group, rows)
    taken = [
      (member, member.actions.popleft(), (shard, row))
      for shard, members in enumerate(shards)
      for row, member in enumerate(members)
    ]
    usage = self.usage[group.kind]
    usage.dispatches += 1
    usage.rows += len(taken)
    if group.size:
      usage.tokens += sum(action.tokens for _, action, _ in taken)
    usage.padded += self._shards * width * group.size
    return _Flight(taken, values, begin)

  def _step(self, group: schedule.Group, rows) -> jax.Array:
    """Takes a step of some documents; its losses [D, R], if it makes any."""
    slots_DxR = rows[0]
    if group.kind == 'again':
      gradient = self._used(self._spent, slots_DxR)
      losses_DxR = np.zeros(slots_DxR.shape, np.float32)
    else:
      # What is kept of several places is not there to be written over.
      spent = self._spent if self.slots == 1 else None
      gradient, losses_DxR = self._gradient(
        spent, self.state, self._frozen, *rows
      )
    # The losses pass through, so as to be there when the step is done.
    self.state, losses_DxR = self._update(
      self.state, gradient, losses_DxR, slots_DxR
    )
    if self.slots == 1:
      self._spent = gradient
    elif self._spent is not None and group.kind == 'step':
      self._spent = self._keep(self._spent, slots_DxR, gradient)
    return losses_DxR

  def _rows(
    self,
    group: schedule.Group,
    width: int,
    shards: list[list[schedule.Member]],
  ) -> tuple[jax.Array | np.ndarray, ...]:
    """The arrays [D, R, ...] of a dispatch; empty rows have no place."""
    shape = (self._shards, width)
    slots_DxR = np.full(shape, self.slots, np.int32)
    tokens_DxRxT = np.zeros((*shape, group.size), np.int32)
    if group.kind == 'step':
      length_DxR = np.ones(shape, np.int32)
      number_DxRx2 = np.zeros((*shape, 2), np.uint32)
      arrays = [slots_DxR, tokens_DxRxT, length_DxR, number_DxRx2]
    elif group.kind == 'score':
      targets_DxRxT = np.zeros((*shape, group.size), np.int32)
      arrays = [slots_DxR, tokens_DxRxT, targets_DxRxT]
    else:
      arrays = [slots_DxR]
    for shard, members in enumerate(shards):
      for row, member in enumerate(members):
        at, action = (shard, row), member.actions[0]
        slots_DxR[at] = member.slot
        if group.kind == 'step':
          tokens_DxRxT[at][: action.tokens] = action.window
          length_DxR[at] = action.tokens
          number_DxRx2[at] = member.work.number, action.number
        elif group.kind == 'score':
          padded = rolling.pad(action.window, group.size)
          tokens_DxRxT[at], targets_DxRxT[at] = padded
    if self._mesh is None:
      return tuple(arrays)
    over_data = jax.sharding.NamedSharding(self._mesh, _P('data'))
    return tuple(jax.device_put(array, over_data) for array in arrays)

  def _start_rows(self, trained):
    state = self._adaptation.start(trained)
    shape = (self._shards, self.slots // self._shards)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, shape + x.shape), state)

  def _enter_row(self, state, trained, slots_Dx1, afresh: bool):
    def begin(trained, state):
      if afresh:
        return self._adaptation.start(trained)
      return self._adaptation.renew(trained, state)

    rows = self._take(state, slots_Dx1)
    return self._put(state, slots_Dx1, self._each(begin, 1)(trained, rows))

  def _gradient_rows(
    self,
    spent,
    state,
    frozen,
    slots_DxR,
    tokens_DxRxT,
    length_DxR,
    number_DxRx2,
  ):
    del spent  # Its memory is what is used.
    return self._each(self._adaptation.gradient, 1)(
      frozen,
      self._take(state, slots_DxR),
      tokens_DxRxT,
      length_DxR,
      number_DxRx2,
    )

  def _update_rows(self, state, gradient, losses_DxR, slots_DxR):
    rows = self._take(state, slots_DxR)
    rows = self._each(self._adaptation.update, 0)(rows, gradient)
    return self._put(state, slots_DxR, rows), losses_DxR

  def _score_rows(self, state, frozen, slots_DxR, tokens_DxRxT, targets_DxRxT):
    return self._each(self._adaptation.score, 1)(
      frozen, self._take(state, slots_DxR), tokens_DxRxT, targets_DxRxT
    )

  def _each(self, function: Callable, shared: int) -> Callable:
    """The function of one document, for [D, R] of them.

    Here, and nowhere else, documents are batched. The first `shared` arguments
    are the same for all.
    """

    def batched(*args):
      if self.slots == 1:  # As it is, which XLA compiles to faster code.
        one = jax.tree.map(lambda x: x[0, 0], args[shared:])
        result = function(*args[:shared], *one)
        return jax.tree.map(lambda x: x[None, None], result)
      axes = [None if n < shared else 0 for n in range(len(args))]
      return jax.vmap(jax.vmap(function, axes), axes)(*args)

    return batched

  def _take(self, state, slots_DxR):
    """The states [D, R, ...] at some places."""
    if self.slots == 1:
      return state
    take = jax.vmap(lambda x, slots: jnp.take(x, slots, axis=0, mode='clip'))
    return jax.tree.map(lambda x: take(x, slots_DxR), state)

  def _put(self, state, slots_DxR, rows):
    """`state` with `rows` at their places; rows without a place are dropped."""
    if self.slots == 1:
      return rows
    put = jax.vmap(lambda x, slots, new: x.at[slots].set(new, mode='drop'))
    return jax.tree.map(lambda x, new: put(x, slots_DxR, new), state, rows)

  def _placements(self):
    """Where the state lies: documents over data, weights as they lie."""
    if self._mesh is None:
      return None
    specs = jax.tree.map(lambda x: x.sharding.spec, self._trained)
    moments = sharding.optimizer_specs(
      self._adaptation.optimizer, self._trained, specs
    )
    return jax.tree.map(
      lambda spec: jax.sharding.NamedSharding(
        self._mesh, _P('data', None, *spec)
      ),
      (specs, moments),
      is_leaf=lambda x: isinstance(x, _P),
    )


def pads_finely(arrays) -> bool:
  """Whether texts are padded little, at the price of more programs.

  On CPU, where one compiles in a second or two, for models of so many numbers
  that this soon pays.
  """
  numbers = sum(x.size for x in jax.tree.leaves(arrays))
  return numbers > _LARGE and jax.default_backend() == 'cpu'


def _memory(lowered) -> int:
  """Bytes that a program has at a time."""
  about = lowered.compile().memory_analysis()
  return (
    about.argument_size_in_bytes
    + about.output_size_in_bytes
    + about.temp_size_in_bytes
    - about.alias_size_in_bytes
  )


@dataclasses.dataclass(frozen=True)
class _Flight:
  """A dispatch that is on its way; `values` are [D, R, ...]."""

  taken: list[tuple[schedule.Member, schedule.Action, tuple[int, int]]]
  values: jax.Array
  begin: float

  def land(self, clock: float) -> float:
    """Waits for it; tells its members. `clock` is when the last one landed."""
    values = np.asarray(self.values)
    now = time.monotonic()
    seconds = (now - max(clock, self.begin)) / len(self.taken)
    for member, action, at in self.taken:
      member.settle(action, values[at], seconds)
    return now
