import json
import os
import zlib

import numpy as np
import pytest

from tttnn.corpus import jsonl

TEXTS = ['plain', '', 'ä€😀', 'line\nbreak', '\u2028 \x85', ' ']


def write(path, texts, end='\n', ascii_only=False):
  lines = (json.dumps({'text': t}, ensure_ascii=ascii_only) for t in texts)
  path.write_bytes(end.join(lines).encode())
  return str(path)


@pytest.mark.parametrize('end', ['\n', '\r\n', '  \n'])
@pytest.mark.parametrize('last', [b'', b'\n'])
@pytest.mark.parametrize('ascii_only', [False, True])
def test_texts_come_back_by_id(tmp_path, end, last, ascii_only):
  path = write(tmp_path / 'a.jsonl', TEXTS, end, ascii_only)
  with open(path, 'ab') as f:
    f.write(last)
  other = write(tmp_path / 'b.jsonl', ['z'])
  corpus = jsonl.read([path, other])
  assert len(corpus) == len(TEXTS) + 1
  assert [corpus.text(i) for i in range(len(corpus))] == [*TEXTS, 'z']
  assert list(corpus.iter_texts(5, 7)) == [' ', 'z']
  assert list(corpus.iter_texts()) == [*TEXTS, 'z']


def test_offsets_equal_a_plain_count(tmp_path, monkeypatch):
  path = tmp_path / 'a.jsonl'
  data = bytes(np.random.default_rng(0).choice([10, 65, 66], 1000))
  for size in (0, 1, 9, 10, 11, 1000):
    path.write_bytes(data[:size])
    lines = data[:size].split(b'\n')
    expected = np.cumsum([0] + [len(line) + 1 for line in lines])
    expected[-1] -= 1  # The last piece has no newline.
    if len(expected) > 1 and expected[-1] == expected[-2]:
      expected = expected[:-1]
    for block in (1, 10, 1 << 20):
      monkeypatch.setattr(jsonl, '_SCAN_BYTES', block)
      found = jsonl.scan(str(path))
      assert found.dtype == np.int64
      assert found.tolist() == expected.tolist()


def test_checksums_are_those_of_the_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  for data in (b'', b'a\n\nbc', b'a\nbc\n'):
    path.write_bytes(data)
    found = jsonl.checksums(str(path), jsonl.scan(str(path)))
    assert found.dtype == np.uint32
    expected = [zlib.crc32(line) for line in data.splitlines(keepends=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize(
  'line, why',
  [
    (b'{"text": "a"', 'malformed JSON'),
    (b'', 'empty line'),
    (b' \r', 'empty line'),
    (b'["text"]', 'object is needed, not list'),
    (b'{"content": "a"}', r"no \"text\" among the keys \['content'\]"),
    (b'{"text": null}', 'must be a string, not NoneType'),
    (b'{"text": 1}', 'must be a string, not int'),
    (b'{"text": "\xff"}', 'invalid UTF-8'),
    (b'\xef\xbb\xbf{"text": "a"}', 'malformed JSON: Unexpected UTF-8 BOM'),
    (b'{"text": "\\ud800"}', 'half of a surrogate pair'),
    (b'{"text": "a", "n": ' + b'1' * 5000 + b'}', 'limit .4300 digits'),
    (b'[' * 100_000, 'recursion'),
  ],
)
def test_broken_lines_are_named(tmp_path, line, why):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'{"text": "fine"}\n' + line + b'\n{"text": "fine"}\n')
  corpus = jsonl.read([str(path)])
  assert corpus.text(0) == corpus.text(2) == 'fine'
  with pytest.raises(ValueError, match=rf'a\.jsonl:2: .*{why}'):
    corpus.text(1)


def test_record_keeps_what_else_is_in_the_line(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "a", "meta": {"n": 1}, "doc_id": "x"}')
  record = jsonl.read([str(path)]).record(0)
  assert record == {'text': 'a', 'meta': {'n': 1}, 'doc_id': 'x'}


def test_empty_files(tmp_path):
  empty = write(tmp_path / 'empty.jsonl', [])
  full = write(tmp_path / 'full.jsonl', ['a', 'b'])
  assert [*jsonl.read([empty, full, empty]).iter_texts()] == ['a', 'b']
  with pytest.raises(ValueError, match=r'corpus is empty: .*empty\.jsonl'):
    jsonl.read([empty])


@pytest.mark.parametrize('id_', [-1, 2])
def test_ids_out_of_range(tmp_path, id_):
  corpus = jsonl.read([write(tmp_path / 'a.jsonl', ['a', 'b'])])
  with pytest.raises(ValueError, match=f'document {id_} .* 2 documents'):
    corpus.text(id_)


def test_a_file_that_changed_is_noticed(tmp_path):
  path = write(tmp_path / 'a.jsonl', ['a', 'b'])
  offsets = jsonl.scan(path)
  with open(path, 'ab') as f:
    f.write(b'!')
  sizes = f'{offsets[-1] + 1} bytes but had {offsets[-1]}'
  with pytest.raises(ValueError, match=sizes):
    jsonl.Shard(path, offsets)


def test_expand(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('b1.jsonl', 'b0.jsonl', 'a.jsonl', 'odd[1].jsonl'):
    write(tmp_path / name, ['a'])
  os.mkdir('b2.jsonl')
  assert jsonl.expand('b*.jsonl, a.jsonl') == [
    'b0.jsonl',
    'b1.jsonl',
    'a.jsonl',
  ]
  assert jsonl.expand('odd[1].jsonl') == ['odd[1].jsonl']
  with pytest.raises(ValueError, match=r"no such file: 'c\*\.jsonl'"):
    jsonl.expand('a.jsonl,c*.jsonl')
  with pytest.raises(ValueError, match='no such file'):
    jsonl.expand('')
  with pytest.raises(ValueError, match=r'a\.jsonl is named twice'):
    jsonl.expand('a.jsonl,*.jsonl')


def test_memory_is_not_the_corpus(tmp_path):
  path = write(tmp_path / 'a.jsonl', ['x' * 1_000_000] * 40)

  def anonymous() -> int:
    with open('/proc/self/status') as f:
      return next(int(x.split()[1]) for x in f if x.startswith('RssAnon'))

  corpus = jsonl.read([path])
  assert corpus.text(0)
  before = anonymous()
  assert sum(len(text) for text in corpus.iter_texts()) == 40_000_000
  assert anonymous() - before < 10_000  # kB
