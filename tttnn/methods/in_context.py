"""Neighbours in the context: in front of the document, without training.

The in-context baseline of Hardt & Sun (ICLR 2024): the neighbours' texts, one
after another, as much of them as the context holds beside the document. A
document of more than one window has no room for any, and is scored as it is.
"""

from collections.abc import Sequence
import dataclasses
import itertools

from tttnn.scoring import rolling

VARIANTS = ('fixed', 'as_described', 'as_coded')
ORDERS = ('nearest_first', 'nearest_last')


@dataclasses.dataclass(frozen=True)
class Settings:
  """What stands in front; fields as `in_context` of `configs/base.py`."""

  variant: str = 'fixed'
  order: str = 'nearest_first'

  def __post_init__(self):
    if self.variant not in VARIANTS:
      raise ValueError(
        f'in_context.variant={self.variant!r} is not one of '
        f'{", ".join(VARIANTS)}'
      )
    if self.order not in ORDERS:
      raise ValueError(
        f'in_context.order={self.order!r} is not one of {", ".join(ORDERS)}'
      )
    if self.variant != 'fixed' and self.order != ORDERS[0]:
      raise ValueError(
        f'in_context.variant={self.variant} has the order {ORDERS[0]}, not '
        f'{self.order}'
      )


def prefix(
  neighbors: Sequence[Sequence[int]],
  tokens: int,
  context: int,
  start: int,
  settings: Settings,
) -> list[int]:
  """What stands in front of a document of one window; [] if nothing can.

  fixed: the end-of-text token, then of the neighbours, nearest first, as much
  as fits; where the nearest come last, of the same tokens each text's in turn.
  as_described (section 4.3 of the paper): the same without end-of-text, hence
  one token more. as_coded: the code means to do that, but cuts from the wrong
  side, so that the end of the farthest neighbour is what remains (Q31).

  Args:
    neighbors: token ids of each, nearest first.
    tokens: of the document.
    context: of the model, in tokens.
    start: the end-of-text id.
    settings: which variant.
  """
  room = context + 1 - tokens - (settings.variant == 'fixed')
  joined = list(itertools.chain.from_iterable(neighbors))
  if room <= 0 or not joined:
    return []
  if settings.variant == 'as_coded':
    return joined[-room:]
  if settings.variant == 'as_described':
    return joined[:room]
  if settings.order == 'nearest_last':
    joined = _nearest_last(neighbors, room)
  return [start, *joined[:room]]


def windows(
  document: Sequence[int],
  neighbors: Sequence[Sequence[int]],
  context: int,
  start: int,
  settings: Settings,
) -> list[rolling.Window]:
  """The windows in which a document is scored behind its neighbours.

  Args as of `prefix`, `document` being token ids. Without room for a neighbour
  they are those of `rolling.windows`.
  """
  front = []
  if 0 < len(document) <= context:
    front = prefix(neighbors, len(document), context, start, settings)
  if not front:
    return rolling.windows(document, context, start)
  document = list(document)
  return [rolling.Window([*front, *document[:-1]], document)]


def _nearest_last(neighbors: Sequence[Sequence[int]], room: int) -> list[int]:
  kept = []
  for tokens in neighbors:
    kept.append(tokens[:room])
    room -= len(kept[-1])
  return list(itertools.chain.from_iterable(reversed(kept)))
