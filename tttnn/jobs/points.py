"""The points of a sweep: a grid over configuration keys, a directory each."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import hashlib
import itertools
import re

from absl import flags
import ml_collections

from tttnn import settings
from tttnn.jobs import neighbors
from tttnn.jobs import works

# What a command line reads numbers by.
_PARSERS = {
  bool: flags.BooleanParser(),
  int: flags.IntegerParser(),
  float: flags.FloatParser(),
  str: flags.ArgumentParser(),
}
_FIXED = ('job', 'dry_run', 'retrieval.save')  # The same for all points.
_LONGEST, _LONGEST_VALUE = 160, 32  # Characters of a directory's name.


@dataclasses.dataclass(frozen=True)
class Point:
  """One choice of values.

  Attributes:
    name: of its directory; the same whenever the values are.
    values: of the keys that are swept.
    config: with these values.
  """

  name: str
  values: dict[str, object]
  config: ml_collections.ConfigDict


def parse(
  spec: str, config: ml_collections.ConfigDict
) -> dict[str, tuple[object, ...]]:
  """Reads 'a.b=1,2;c.d=x,"y,z"': the values of each key.

  What stands in quotes may hold commas and semicolons.

  Raises:
    ValueError: for a key that the config does not have (naming the nearest) or
      that cannot be swept, a value of another type, or one that comes twice.
  """
  known, axes = settings.flatten(config), {}
  for part in _split(spec, ';'):
    if not part.strip():
      continue
    key, equals, texts = (piece.strip() for piece in part.partition('='))
    if not equals:
      raise ValueError(f'{part.strip()!r} of the sweep is not KEY=VALUE,VALUE')
    settings.check_known(key, known)
    if key in _FIXED:
      raise ValueError(f'{key} is the same for all points of a sweep')
    if key in axes:
      raise ValueError(f'{key} is swept twice')
    values = [_value(key, text, known[key]) for text in _split(texts, ',')]
    twice = [value for value in values if values.count(value) > 1]
    if twice:
      raise ValueError(f'{key}={text_of(twice[0])} is swept twice')
    axes[key] = tuple(values)
  if not axes:
    raise ValueError(
      f'nothing is swept: {spec!r} is not KEY=VALUE,VALUE;KEY=..'
    )
  return axes


def expand(
  config: ml_collections.ConfigDict, axes: Mapping[str, Sequence[object]]
) -> list[Point]:
  """All combinations; the values of the last key change fastest.

  Raises:
    ValueError: naming a combination that `evaluate` would refuse, or if two of
      them have one name.
  """
  points = []
  for combination in itertools.product(*axes.values()):
    values = dict(zip(axes, combination, strict=True))
    own = config.copy_and_resolve_references()
    for key, value in values.items():
      settings.override(own, key, value)
    point = Point(_name(values), values, own)
    if own.job == 'evaluate':
      try:
        _check(own)
      except ValueError as error:
        raise ValueError(f'{point.name}: {error}') from error
    points.append(point)
  names = [point.name for point in points]
  if len(set(names)) < len(names):
    raise ValueError(f'{axes} would share directories: take other values')
  return points


def text_of(value: object) -> str:
  """The value as a command line takes it."""
  return str(value).lower() if isinstance(value, bool) else str(value)


def digest(text: str) -> str:
  """A few characters that stand for the text."""
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _split(text: str, separator: str) -> list[str]:
  """Parts between separators that do not stand in quotes, quotes kept."""
  parts, quote = [''], ''
  for character in text:
    if quote:
      quote = '' if character == quote else quote
    elif character in '"\'':
      quote = character
    elif character == separator:
      parts.append('')
      continue
    parts[-1] += character
  if quote:
    raise ValueError(f'{text!r} of the sweep has a {quote} without its other')
  return parts


def _value(key: str, text: str, default: object) -> object:
  """The text as the type of the key's default."""
  text = text.strip()
  if len(text) > 1 and text[0] == text[-1] and text[0] in '"\'':
    text = text[1:-1]
  if type(default) not in _PARSERS:
    raise ValueError(f'{key} is a list of steps or runs, which cannot be swept')
  try:
    return _PARSERS[type(default)].parse(text)
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'{key}={text!r} of the sweep is not of type {type(default).__name__}'
    ) from error


def _check(config) -> None:
  works.counts(config)
  save = config.retrieval.save
  if save and '{workdir}' not in save:
    raise ValueError(
      f'retrieval.save={save!r} would be written by every point: put '
      '{workdir} into it'
    )
  if config.method not in neighbors.WITHOUT:
    neighbors.candidates(config)


def _name(values: Mapping[str, object]) -> str:
  """'learning_rate-1e-05_neighbors-5'.

  Keys by their last part where that says which; values that file systems might
  not like are told apart by a digest.
  """
  leaves = [key.rpartition('.')[2] for key in values]
  parts = [
    f'{leaf if leaves.count(leaf) == 1 else key}-{_safe(text_of(value))}'
    for leaf, (key, value) in zip(leaves, values.items(), strict=True)
  ]
  name = '_'.join(parts)
  if len(name) > _LONGEST:
    name = f'{name[: _LONGEST - 9]}-{digest(name)}'
  return name


def _safe(text: str) -> str:
  kept = re.sub(r'[^A-Za-z0-9_.+-]+', '-', text)
  if kept == text and len(text) <= _LONGEST_VALUE:
    return text
  return f'{kept[-_LONGEST_VALUE:]}-{digest(text)}'.lstrip('-')
