"""The built-in corpus, of this interpreter and of a library made here."""

import collections
from importlib import metadata
import inspect
import itertools
import json
import os
import pathlib
import re
import textwrap
import tokenize

import pytest

from tttnn.corpus import builtin

_MAX_BYTES = 400_000


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  directory = tmp_path_factory.mktemp('builtin') / 'corpus'
  left = directory.with_name('corpus.tmp') / 'train'  # Of a killed run.
  left.mkdir(parents=True)
  (left / '09.jsonl').touch()
  return directory, builtin.write(str(directory), max_bytes=_MAX_BYTES, seed=1)


@pytest.fixture(scope='module')
def rows(written):
  directory, _ = written
  found = {}
  for name in ('train/00', 'train/01', 'validation', 'test'):
    lines = (directory / f'{name}.jsonl').read_text('utf-8').split('\n')
    assert lines.pop() == ''
    found.setdefault(name.split('/')[0], []).extend(map(json.loads, lines))
  return found


def _domain(row):
  return row['meta']['pile_set_name']


def test_summary_counts_the_files(written, rows):
  _, summary = written
  assert summary.keys() == {'train', 'validation', 'test', 'left_out'}
  for side, held in rows.items():
    counts = collections.defaultdict(lambda: {'documents': 0, 'bytes': 0})
    for row in held:
      counts[_domain(row)]['documents'] += 1
      counts[_domain(row)]['bytes'] += len(row['text'].encode())
    assert counts == summary[side]


def test_domains_are_balanced(rows):
  """At least the four domains that every installation has."""
  sizes = collections.Counter()
  for row in rows['train']:
    sizes[_domain(row)] += len(row['text'].encode())
  assert sizes.keys() >= {
    'Python source',
    'Docstrings',
    'Language reference',
    'Encoding tables',
  }
  assert 0.95 * _MAX_BYTES < sizes.total() <= _MAX_BYTES
  assert max(sizes.values()) < 1.1 * min(sizes.values())
  for side in ('validation', 'test'):
    documents = collections.Counter(map(_domain, rows[side]))
    assert documents.keys() == sizes.keys()
    assert min(documents.values()) >= 12


def test_documents_are_neither_short_nor_long(rows):
  for row in itertools.chain(*rows.values()):
    assert 400 <= len(row['text']) <= 4000
    assert row['text'].strip() and row['meta']['source']


def test_no_test_text_is_in_train(rows):
  def runs(row):
    words = re.findall(r'\w+', row['text'])
    return {' '.join(words[at : at + 40]) for at in range(len(words) - 39)}

  train = set().union(*map(runs, rows['train']))
  assert len(train) > 10_000
  for row in rows['test'] + rows['validation']:
    assert train.isdisjoint(runs(row)), row['meta']


def test_nothing_else_is_written(written):
  directory, _ = written
  assert os.listdir(directory.parent) == ['corpus']
  files = {path.relative_to(directory) for path in directory.rglob('*.*')}
  assert {str(file) for file in files} == {
    'corpus.json',
    'test.jsonl',
    'train/00.jsonl',
    'train/01.jsonl',
    'validation.jsonl',
  }


def test_writing_again_changes_nothing(written):
  directory, summary = written
  before = {path: path.stat().st_mtime_ns for path in directory.rglob('*')}
  again = builtin.write(str(directory), max_bytes=_MAX_BYTES, seed=1)
  assert again == summary
  after = {path: path.stat().st_mtime_ns for path in directory.rglob('*')}
  assert after == before


def test_writing_refuses(written, tmp_path):
  directory, _ = written
  with pytest.raises(ValueError, match="'seed': 1}, not of .*'seed': 2}"):
    builtin.write(str(directory), max_bytes=_MAX_BYTES, seed=2)
  with pytest.raises(ValueError, match='shards is 0'):
    builtin.write(str(tmp_path), shards=0)
  (tmp_path / 'notes.txt').touch()
  with pytest.raises(ValueError, match='not empty'):
    builtin.write(str(tmp_path))


def test_units():
  for unit, names in {
    'abc': 'abc.py _py_abc.py test/test_abc.py',
    'asyncio.events': 'asyncio/events.py test/test_asyncio/test_events.py',
    'datetime': 'datetime.py _pydatetime.py test/datetimetester.py',
    'json': 'json/__init__.py test/test_json/__init__.py',
    'idlelib.help': 'idlelib/help.py idlelib/idle_test/test_help.py',
    'list': 'test/test_list.py test/list_tests.py',
    'py_compile': 'py_compile.py test/test_py_compile.py',
  }.items():
    assert {builtin.module_unit(name) for name in names.split()} == {unit}


def _definitions(name, number=40):
  return ''.join(
    f'def {name}_{index}(left, right):\n'
    f'  total = left + right + {index}\n\n'
    f'  return total * {index}\n\n\n'
    for index in range(number)
  )


def test_cut_loses_nothing_and_cuts_between_definitions():
  text = _definitions('add')
  pieces = builtin.cut(text)
  assert len(pieces) > 1
  assert ''.join(''.join(pieces).split()) == ''.join(text.split())
  for piece in pieces:
    assert piece.startswith('def ') and 'return' in piece.split('\n')[-1]
    assert 1000 < len(piece) <= 2000


def test_cut_of_what_has_no_paragraphs():
  lines = [f'  {number},' for number in range(3000)]
  for text in ('\n'.join(lines), ''.join(lines)):
    pieces = builtin.cut(text)
    assert ''.join(''.join(pieces).split()) == ''.join(text.split())
    assert all(400 <= len(piece) <= 4000 for piece in pieces)
  assert all(piece.endswith(',') for piece in builtin.cut('\n'.join(lines)))


def test_cut_keeps_a_long_definition_whole():
  body = ''.join(f'  step({number})\n' for number in range(200))
  text = f'{_definitions("a", 9)}def long():\n{body}\n\n{_definitions("b", 9)}'
  pieces = builtin.cut(text)
  assert f'def long():\n{body}'.strip() in pieces
  assert builtin.cut('x = 1\n' * 50) == []


@pytest.fixture
def library(tmp_path):
  """A small library, and headers, with something of everything."""
  source = _definitions('add')
  files = {
    'lib/add.py': source,
    'lib/_pyadd.py': source + '# Again, in Python.\n',
    'lib/latin.py': '# coding: latin-1\n# caf\xe9\n' + source,
    'lib/broken.py': '# coding: ascii\n# caf\xe9\n' + source,
    'lib/two.py': 'print "Python 2"\n' + source,
    'lib/__pycache__/add.py': source,
    'lib/site-packages/other.py': source,
    'lib/test/test_add.py': source,
    'lib/encodings/cp1.py': source,
    'lib/pydoc_data/topics.py': f'topics = {{"sums": {source!r}}}',
    'include/add.h': source,
    'include/internal/pycore_add.h': source,
    'include/broken.h': 'caf\xe9' + source,
  }
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text, encoding='latin-1')
  return tmp_path


def _read(library):
  left_out = collections.Counter()
  read = builtin.read(left_out, str(library / 'lib'), str(library / 'include'))
  found = collections.defaultdict(list)
  for document in read:
    found[document.domain].append(document)
  return found, left_out


def test_read_sorts_files_into_domains_and_units(library):
  found, left_out = _read(library)
  assert left_out['not decoded'] == 2
  units = {
    domain: {(doc.source.split(':')[0], doc.unit) for doc in documents}
    for domain, documents in found.items()
    if domain != 'Package descriptions'
  }
  assert units == {
    'Python source': {
      ('_pyadd.py', 'add'),
      ('add.py', 'add'),
      ('latin.py', 'latin'),
      ('two.py', 'two'),
    },
    'Test suite': {('test/test_add.py', 'add')},
    'Encoding tables': {('encodings/cp1.py', 'encodings.cp1')},
    'Language reference': {('topic sums', 'topic sums')},
    'C headers': {
      ('add.h', 'header add'),
      ('internal/pycore_add.h', 'header add'),
    },
  }
  latin = [doc for doc in found['Python source'] if doc.unit == 'latin']
  assert 'caf\xe9' in latin[0].text
  assert latin[0].source == f'latin.py: part 1 of {len(latin)}'


def test_read_is_deterministic(library):
  assert _read(library) == _read(library)


def test_packages_describe_themselves(library):
  found, _ = _read(library)
  texts = collections.defaultdict(list)
  for document in found['Package descriptions']:
    texts[document.unit].append(document.text)
  readme = metadata.metadata('numpy').get_payload()
  assert texts['package numpy']
  assert 'package tttnn' not in texts
  for piece in texts['package numpy']:
    assert piece in readme


def test_docstrings_are_parted_from_the_source(tmp_path):
  """What inspect finds in a module is in Docstrings, and only there."""
  path = pathlib.Path(textwrap.__file__)
  (tmp_path / path.name).write_bytes(path.read_bytes())
  documents = list(builtin.read(collections.Counter(), str(tmp_path), 'none'))
  texts = collections.defaultdict(str)
  for document in documents:
    texts[document.domain] += document.text + '\n'
  described = [textwrap, textwrap.TextWrapper, textwrap.TextWrapper.wrap]
  described += [textwrap.wrap, textwrap.dedent, textwrap.indent]
  for thing in described:
    docstring = inspect.getdoc(thing)
    assert textwrap.indent(docstring, '    ') in texts['Docstrings']
    assert docstring.split('\n')[0] not in texts['Python source']
  assert 'textwrap.dedent(text)\n' in texts['Docstrings']
  assert 'class textwrap.TextWrapper()\n' in texts['Docstrings']
  assert 'def dedent(text):' in texts['Python source']
  with tokenize.open(path) as file:
    lines = set(file.read().split('\n'))
  assert set(texts['Python source'].split('\n')) <= lines
