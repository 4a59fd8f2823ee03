"""The built-in corpus: the text that every Python installation carries.

Library source, docstrings, the language reference, encoding tables, the
descriptions of installed packages and, where present, the test suite and the C
headers: real text of several domains without a download.
"""

import ast
import collections
from collections.abc import Iterator
from importlib import metadata
import itertools
import json
import os
import pathlib
import re
import runpy
import shutil
import sysconfig
import textwrap
import tokenize

from tttnn.corpus import splits

# Characters of a document: cut near _USUAL, between _LEAST and _MOST.
_LEAST, _USUAL, _MOST = 400, 2000, 4000
# Where to cut, best first: after a blank line that an unindented one follows,
# after any blank line, after any line.
_BREAKS = tuple(map(re.compile, (r'\n\s*\n(?=\S)', r'\n\s*\n', r'\n')))

_INDEX = 'corpus.json'

_SKIPPED = {'__pycache__', 'site-packages', 'dist-packages', 'pydoc_data'}
_TESTS = {'test', 'tests', 'idle_test'}
_TABLES = ('encodings/', 'html/entities.py', 'stringprep.py')
_AFFIXES = re.compile(r'^(?:_py|_|test_?(?=.))+|_?test(?:s|er)?$')

_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_DOCUMENTED = ast.Module | ast.ClassDef | _FUNCTION

_Text = tuple[str, str, str, str]  # Domain, source, unit, text.


def write(
  directory: str, *, max_bytes: int = 0, shards: int = 2, seed: int = 0
) -> dict[str, dict]:
  """Writes the built-in corpus as JSONL, once.

  The directory holds train/00.jsonl and so on, validation.jsonl and test.jsonl
  of lines {"text", "meta": {"pile_set_name": domain, "source"}}, and
  corpus.json with what they hold. It appears complete or not at all, and is
  left as it is if it is there. The same installation gives the same bytes.

  Args:
    directory: where to write.
    max_bytes: at most so much UTF-8 text in train, of whole units and in about
      equal parts from the domains; validation and test shrink alike, but keep
      12 documents a domain. 0 = everything.
    shards: files of train.
    seed: which units go to which split.

  Returns:
    {'train': {domain: {'documents': .., 'bytes': ..}}, 'validation': ..,
    'test': .., 'left_out': {reason: count}}.

  Raises:
    ValueError: the directory holds something else, or a corpus of other
      arguments; no train shard; max_bytes is too small for a domain.
  """
  if shards < 1:
    raise ValueError(f'shards is {shards}, train needs at least 1')
  arguments = {'max_bytes': max_bytes, 'shards': shards, 'seed': seed}
  root = pathlib.Path(directory).resolve()
  if root.exists() and any(root.iterdir()):
    return _written(root, arguments)

  left_out = collections.Counter()
  documents = splits.drop_small_domains(read(left_out), left_out)
  sides = splits.assign(documents, seed)
  parts = splits.separate(documents, sides, left_out)
  parts = splits.limit(parts, max_bytes, seed)
  summary = {side: _summary(parts[side]) for side in splits.SPLITS}
  summary['left_out'] = dict(sorted(left_out.items()))

  whole = root.with_name(root.name + '.tmp')
  if whole.exists():  # What a killed run left.
    shutil.rmtree(whole)
  for shard in range(shards):
    _write(whole / f'train/{shard:02d}.jsonl', parts['train'][shard::shards])
  for side in splits.SPLITS[1:]:
    _write(whole / f'{side}.jsonl', parts[side])
  record = {'arguments': arguments, 'summary': summary}
  (whole / _INDEX).write_text(json.dumps(record, indent=2) + '\n')
  whole.replace(root)
  return summary


def _written(root: pathlib.Path, arguments: dict[str, int]) -> dict[str, dict]:
  """The summary of a corpus that is there already."""
  index = root / _INDEX
  if not index.exists():
    raise ValueError(f'{root} is not empty and holds no {_INDEX}')
  found = json.loads(index.read_text(encoding='utf-8'))
  if found['arguments'] != arguments:
    raise ValueError(
      f'{root} holds a corpus of {found["arguments"]}, not of {arguments}: '
      'remove it or choose another directory'
    )
  return found['summary']


def read(
  left_out: collections.Counter, stdlib: str = '', include: str = ''
) -> Iterator[splits.Document]:
  """Yields all documents of the installation, in a fixed order.

  Args:
    left_out: counts the files that cannot be decoded or are too short.
    stdlib: the library's directory; '' = the running interpreter's.
    include: the C headers' directory; '' = the running interpreter's.
  """
  library = pathlib.Path(stdlib or sysconfig.get_path('stdlib'))
  headers = pathlib.Path(include or sysconfig.get_path('include'))
  texts = itertools.chain(
    _read_library(library, left_out),
    _read_topics(library / 'pydoc_data' / 'topics.py'),
    _read_headers(headers, left_out),
    _read_packages(),
  )
  for domain, source, unit, text in texts:
    pieces = cut(text)
    left_out['too short'] += bool(text) and not pieces
    for number, piece in enumerate(pieces, 1):
      part = f'{source}: part {number} of {len(pieces)}'
      yield splits.Document(piece, domain, part, unit)


def cut(text: str) -> list[str]:
  """Cuts a text between definitions or paragraphs, or else between lines.

  Returns:
    Pieces of 400 to 4000 characters without outer blank lines; none of a text
    that is too short for one.
  """
  begin, pieces = 0, []
  while begin < len(text):
    end = _end(text, begin)
    piece = text[begin:end].rstrip().lstrip('\n')
    if len(piece) >= _LEAST:
      pieces.append(piece)
    begin = end
  return pieces


def _end(text: str, begin: int) -> int:
  if len(text) - begin <= _USUAL:
    return len(text)
  last = min(begin + _MOST, len(text) - _LEAST)
  for pattern in _BREAKS:
    matches = pattern.finditer(text, begin + _LEAST, last)
    ends = [match.end() for match in matches]
    if ends:
      usual = [end for end in ends if end - begin <= _USUAL]
      return usual[-1] if usual else ends[0]
  return last


def _files(root: pathlib.Path, suffix: str) -> list[pathlib.Path]:
  found = []
  for directory, inner, names in os.walk(root):
    inner[:] = set(inner) - _SKIPPED
    found += [pathlib.Path(directory, n) for n in names if n.endswith(suffix)]
  return sorted(found)


def _read_library(
  root: pathlib.Path, left_out: collections.Counter
) -> Iterator[_Text]:
  for path in _files(root, '.py'):
    name = path.relative_to(root).as_posix()
    try:
      with tokenize.open(path) as file:  # Decodes as the source says.
        text = file.read()
    except (SyntaxError, UnicodeDecodeError):
      left_out['not decoded'] += 1
      continue
    unit = module_unit(name)
    if not _TESTS.isdisjoint(name.split('/')):
      yield 'Test suite', name, unit, text
    elif name.startswith(_TABLES):
      yield 'Encoding tables', name, unit, text
    else:
      code, docstrings = _take_apart(text, name)
      yield 'Python source', name, unit, code
      yield 'Docstrings', name, unit, docstrings


def module_unit(name: str) -> str:
  """The unit of a library file: a module, its other versions and its tests.

  asyncio/events.py, test/test_asyncio/test_events.py -> asyncio.events
  datetime.py, _pydatetime.py, test/datetimetester.py -> datetime
  """
  parts = name.removesuffix('.py').split('/')
  parts = [part for part in parts if part not in _TESTS | {'__init__'}]
  return '.'.join(_AFFIXES.sub('', part) or part for part in parts)


def _take_apart(text: str, name: str) -> tuple[str, str]:
  """A module's code and its docstrings, so that no text is in both.

  Docstrings read as in pydoc: a line with the object's name and arguments, then
  the text, indented.
  """
  try:
    tree = ast.parse(text)
  except (SyntaxError, ValueError):  # ValueError: null bytes, before 3.12.
    return text, ''
  module = name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')
  lines, entries = text.split('\n'), []
  for title, node in _documented(tree, module):
    literal = node.body[0]
    size = literal.end_lineno - literal.lineno + 1
    lines[literal.lineno - 1 : literal.end_lineno] = [None] * size
    docstring = textwrap.indent(ast.get_docstring(node), '    ')
    # An escape can stand for half a surrogate pair, which UTF-8 cannot hold.
    docstring = docstring.encode(errors='replace').decode()
    entries.append(f'{title}\n{docstring}\n')
  code = '\n'.join(line for line in lines if line is not None)
  return code, '\n'.join(entries)


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
  """(title, node) of what has a docstring on lines of its own.

  Definitions under `if` and `try` count, those inside functions do not.
  """
  if (
    isinstance(node, _DOCUMENTED)
    and ast.get_docstring(node, clean=False)
    and node.body[0].lineno > getattr(node, 'lineno', 0)
  ):
    yield _title(node, name), node
  if isinstance(node, _FUNCTION):
    return
  for child in ast.iter_child_nodes(node):
    if isinstance(child, _DOCUMENTED):
      yield from _documented(child, f'{name}.{child.name}')
    elif isinstance(child, ast.stmt | ast.excepthandler):
      yield from _documented(child, name)


def _title(node: ast.AST, name: str) -> str:
  if isinstance(node, ast.Module):
    return f'module {name}'
  if isinstance(node, ast.ClassDef):
    return f'class {name}({", ".join(map(ast.unparse, node.bases))})'
  return f'{name}({ast.unparse(node.args)})'


def _read_topics(path: pathlib.Path) -> Iterator[_Text]:
  """The language reference by topic, as help() shows it."""
  if path.exists():  # Some distributions ship pydoc apart.
    for name, text in sorted(runpy.run_path(str(path))['topics'].items()):
      yield 'Language reference', f'topic {name}', f'topic {name}', text


def _read_headers(
  root: pathlib.Path, left_out: collections.Counter
) -> Iterator[_Text]:
  for path in _files(root, '.h'):
    try:
      text = path.read_text(encoding='utf-8')
    except UnicodeDecodeError:
      left_out['not decoded'] += 1
      continue
    unit = f'header {path.stem.removeprefix("pycore_")}'
    yield 'C headers', path.relative_to(root).as_posix(), unit, text


def _read_packages() -> Iterator[_Text]:
  """What installed packages say of themselves: their READMEs, mostly."""
  found = {}
  for package in metadata.distributions():
    name = package.metadata['Name'] or ''  # None after a broken uninstall.
    found.setdefault(re.sub('[-_.]+', '-', name).lower(), package)
  for name in sorted(found.keys() - {'', 'tttnn'}):  # Ours would keep changing.
    text = found[name].metadata.get_payload()
    yield 'Package descriptions', name, f'package {name}', text


def _summary(documents: list[splits.Document]) -> dict[str, dict[str, int]]:
  counts = {}
  for document in sorted(documents, key=lambda document: document.domain):
    count = counts.setdefault(document.domain, {'documents': 0, 'bytes': 0})
    count['documents'] += 1
    count['bytes'] += document.num_bytes
  return counts


def _write(path: pathlib.Path, documents: list[splits.Document]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('w', encoding='utf-8', newline='\n') as file:
    for document in documents:
      meta = {'pile_set_name': document.domain, 'source': document.source}
      row = {'text': document.text, 'meta': meta}
      file.write(json.dumps(row, ensure_ascii=False) + '\n')
