"""The configuration at the edge: checking, expanding, writing it."""

from collections.abc import Collection
import difflib
import json
import keyword
import os
import re

import ml_collections

from tttnn import files


def check_keys(argv: list[str]) -> None:
  """Refuses `--config.a.b` that `configs/base.py` does not have.

  Raises:
    ValueError: naming the key and the nearest known one.
  """
  from configs import base

  known = [f'config.{key}' for key in flatten(base.get_config())]
  for argument in argv[1:]:
    name = argument.lstrip('-')
    if not name.startswith('config.'):
      continue
    check_known(name.split('=')[0], known)


def check_known(key: str, known: Collection[str]) -> None:
  """Raises ValueError for a key that is not known, naming the nearest."""
  if key not in known:
    near = difflib.get_close_matches(key, known, 1, cutoff=0.0)[0]
    raise ValueError(f'unknown key {key}; the nearest known one is {near}')


def quoted(argv: list[str]) -> list[str]:
  """Arguments as ml_collections takes them.

  It reads a key as Python, to which `selection.lambda` is no name, though
  `selection["lambda"]` is one.
  """
  pattern = re.compile(r'(--?config[\w.]*)\.(\w+)(=.*)?', re.DOTALL)
  spelled = []
  for argument in argv:
    match = pattern.fullmatch(argument)
    if match and keyword.iskeyword(match[2]):
      argument = f'{match[1]}["{match[2]}"]{match[3] or ""}'
    spelled.append(argument)
  return spelled


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
  """{'a.b': value} of the nested config."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat |= {f'{key}.{inner}': v for inner, v in flatten(value).items()}
    else:
      flat[key] = value
  return flat


def expand(
  config: ml_collections.ConfigDict, workdir: str
) -> ml_collections.ConfigDict:
  """A copy with `{workdir}` in strings replaced by the directory."""
  config = config.copy_and_resolve_references()
  for key, value in flatten(config).items():
    if isinstance(value, str) and '{workdir}' in value:
      override(config, key, value.replace('{workdir}', workdir))
  return config


def override(config: ml_collections.ConfigDict, key: str, value) -> None:
  """Sets 'a.b' in place; the key must be known and the type fit."""
  *sections, leaf = key.split('.')
  for section in sections:
    config = config[section]
  config[leaf] = value


def override_parsed(config: ml_collections.ConfigDict, key: str, value) -> None:
  """`override` by what another program read off its command line.

  Raises:
    ValueError: for an unknown key, or a value that was taken for another type.
  """
  known = flatten(config)
  check_known(key, known)
  wanted, found = type(known[key]), type(value)
  if (wanted, found) in ((str, int), (float, int)):
    value = wanted(value)
  elif wanted != found:
    raise ValueError(
      f'{key}={value!r} was read as {found.__name__}, and is to be '
      f'{wanted.__name__} (a text may stand in quotes)'
    )
  override(config, key, value)


def difference(old: dict, new: dict) -> str:
  """'key: a there, b now; ...' of two flat dicts; '' if they agree."""
  return '; '.join(
    f'{key}: {old.get(key)!r} there, {new.get(key)!r} now'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key)
  )


def check_written(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Refuses a config that is not that of workdir/config.json, but for a rank.

  Raises:
    ValueError: it differs, or there is none.
  """
  path = os.path.join(workdir, 'config.json')
  if not os.path.exists(path):
    raise ValueError(
      f'{path} is not there, though the main process has written it: all '
      'processes need the same --workdir'
    )
  with open(path, encoding='utf-8') as file:
    written = json.load(file)
  both = [written, json.loads(json.dumps(config.to_dict()))]
  for one in both:
    del one['distributed']['process']
  differ = difference(*(flatten(ml_collections.ConfigDict(x)) for x in both))
  if differ:
    raise ValueError(f'processes differ in their config ({differ})')


def write(config: ml_collections.ConfigDict, workdir: str) -> None:
  """Writes workdir/config.json, unless it says the same already."""
  os.makedirs(workdir, exist_ok=True)
  text = json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'
  files.write_if_changed(os.path.join(workdir, 'config.json'), text)
