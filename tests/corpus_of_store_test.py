"""A store's corpus: compressed, malformed in places, changed, in parts."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from configs import base
from tests import build_test
from tests import tiny
from tttnn import jobs
from tttnn.corpus import jsonl
from tttnn.datastore import begun
from tttnn.datastore import engine as engine_lib
from tttnn.datastore import store as store_lib

DIM = build_test.DIM
ROOT = pathlib.Path(__file__).parents[1]
embed, run = build_test.embed, build_test.run
contents, write_corpus = build_test.contents, build_test.write_corpus


def write_lines(path, lines):
  path.write_bytes(b''.join(line + b'\n' for line in lines))
  return str(path)


def fail(texts):
  raise AssertionError(f'embeds {texts}')


def test_a_compressed_corpus_gives_the_same_store(tmp_path):
  sides = {}
  for name in ('plain', 'a', 'b'):
    (tmp_path / name / 'corpus').mkdir(parents=True)
    paths = write_corpus(tmp_path / name / 'corpus')
    if name != 'plain':
      paths[1] = build_test.compress(paths[1])
    before = contents(tmp_path / name / 'corpus')
    store = run(tmp_path / name / 's', paths)
    assert contents(tmp_path / name / 'corpus') == before
    assert store.corpus.text(16) == 'shard 1 row 6'
    assert store.corpus.record(16) == {'text': 'shard 1 row 6'}
    sides[name] = contents(tmp_path / name / 's')
  assert sides['a'] == sides['b']
  manifest = json.loads(sides['a'].pop('manifest.json'))
  sides['plain'].pop('manifest.json')
  text = manifest['shards'][1]['text']
  assert manifest['shards'][0]['text'] == ''
  assert text.startswith('text/1.jsonl.gz-')
  plain = sides['a'].pop(text)
  assert sides['a'] == sides['plain']
  assert plain == (tmp_path / 'plain/corpus/1.jsonl').read_bytes()


def test_stores_share_a_cache_which_can_be_made_again(tmp_path):
  paths = [build_test.compress(path) for path in write_corpus(tmp_path)]
  cache = tmp_path / 'cache'
  run(tmp_path / 's', paths, cache=str(cache))
  kept = contents(cache)
  stamps = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
  other = run(tmp_path / 't', paths, cache=str(cache), index='SQfp16')
  assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == stamps
  assert len(kept) == 2 and not (tmp_path / 't' / 'text').exists()
  assert other.corpus.text(0) == 'shard 0 row 0'
  for path in cache.iterdir():
    path.unlink()
  with pytest.raises(
    ValueError, match=r'cache/0\.jsonl\.gz-.* is missing: `bu'
  ):
    store_lib.open(tmp_path / 's')
  # A finished store keeps the place that it was built with.
  again = run(tmp_path / 's', paths, fail)
  assert again.corpus.text(0) == 'shard 0 row 0'
  assert contents(cache) == kept


def test_a_compressed_file_must_be_as_it_was_or_gone(tmp_path):
  paths = write_corpus(tmp_path)
  paths[1] = build_test.compress(paths[1])
  run(tmp_path / 's', paths)
  pathlib.Path(paths[1]).rename(tmp_path / 'away')
  assert store_lib.open(tmp_path / 's').corpus.text(16) == 'shard 1 row 6'
  data = bytearray((tmp_path / 'away').read_bytes())
  data[-1] ^= 1
  pathlib.Path(paths[1]).write_bytes(data)
  with pytest.raises(ValueError, match=r'1\.jsonl\.gz has .* has changed'):
    store_lib.open(tmp_path / 's')
  with pytest.raises(ValueError, match=r'shards\[1\]\.digest is .* there'):
    run(tmp_path / 's', paths, fail)


@pytest.mark.parametrize('compressed', [False, True])
def test_malformed_lines_are_never_found_and_keep_ids(tmp_path, compressed):
  # Whole blocks of 4 without a text, the first and last line, and a vector
  # that is not finite, which is another matter.
  bad = {0, 4, 5, 6, 7, 9, 17}
  lines = [b'{"text": "row %d"}' % row for row in range(18)]
  for row in bad:
    lines[row] = (b'', b'{"txt": 1}', b'{"text": "\xff"}')[row % 3]
  path = write_lines(tmp_path / 'a.jsonl', lines)
  if compressed:
    path = build_test.compress(path)
  paths = [path, *write_corpus(tmp_path, (3,))]
  seen = []

  def spoil(texts):
    seen.extend(texts)
    vectors = embed(texts)
    vectors[[text == 'row 10' for text in texts]] = np.nan
    return vectors

  name = os.path.basename(path)
  with pytest.raises(jsonl.MalformedLine, match=rf'{name}:1: empty line'):
    run(tmp_path / 's', paths, spoil)
  store = run(tmp_path / 's', paths, spoil, on_error='skip')
  good = [f'row {row}' for row in range(18) if row not in bad]
  assert seen == good + [f'shard 0 row {row}' for row in range(3)]
  manifest = store.manifest
  assert manifest.shards[0].left_out == tuple(sorted(bad | {10}))
  assert [shard.malformed for shard in manifest.shards] == [7, 0]
  assert (manifest.rows, manifest.searchable) == (21, 13)
  engine = engine_lib.Engine(store, threads=1)
  for text, id_ in (('row 1', 1), ('row 16', 16), ('shard 0 row 2', 20)):
    distances_1xk, ids_1xk = engine.search(embed([text]), 13)
    assert ids_1xk[0, 0] == id_ and distances_1xk[0, 0] == 0
    assert sorted(ids_1xk[0]) == sorted({*range(21)} - bad - {10})
    assert store.corpus.text(id_) == text
  with pytest.raises(jsonl.MalformedLine, match=rf'{name}:18: '):
    store.corpus.text(17)
  assert run(tmp_path / 's', paths, fail, on_error='skip').manifest == manifest
  with pytest.raises(ValueError, match='7 malformed lines were left out'):
    run(tmp_path / 's', paths, fail)


def test_a_build_begun_with_skip_is_not_finished_with_error(tmp_path):
  path = write_lines(tmp_path / 'a.jsonl', [b'{"text": "a"}', b'[]'] * 3)
  run(tmp_path / 's', [path], part=begun.Part(shard=0), on_error='skip')
  with pytest.raises(jsonl.MalformedLine, match=r'a\.jsonl:2: a JSON object'):
    run(tmp_path / 's', [path], fail)
  store = run(tmp_path / 's', [path], fail, on_error='skip')
  assert store.manifest.malformed == 3


def test_a_line_that_changes_in_place_is_noticed_when_read(tmp_path):
  text = 'shard {} row {}' + 'x' * 1000
  paths = write_corpus(tmp_path, (2000,), text=text)
  store = run(tmp_path / 's', paths, block=512)
  data = bytearray(pathlib.Path(paths[0]).read_bytes())
  assert data[1_000_000] == ord('x')  # Between what a stamp looks at.
  data[1_000_000] = ord('y')
  pathlib.Path(paths[0]).write_bytes(data)
  row = data[:1_000_000].count(b'\n')
  message = rf'0\.jsonl:{row + 1}: CRC-32 .* the corpus has changed'
  for opened in (store, store_lib.open(tmp_path / 's')):
    with pytest.raises(ValueError, match=message):
      opened.corpus.text(row)
    assert opened.corpus.text(row - 1).startswith(f'shard 0 row {row - 1}x')
    assert opened.corpus.text(row + 1).startswith(f'shard 0 row {row + 1}x')


def test_a_file_that_is_cut_off_while_open_is_noticed(tmp_path):
  paths = write_corpus(tmp_path, (1000,))
  store = run(tmp_path / 's', paths, block=512)
  assert store.corpus.text(999) == 'shard 0 row 999'
  os.truncate(paths[0], 100)
  with pytest.raises(ValueError, match=r'0\.jsonl has 100 bytes but had'):
    store.corpus.text(999)


def test_a_file_that_changes_while_it_is_embedded_is_noticed(tmp_path):
  paths = write_corpus(tmp_path)

  def change(texts):
    pathlib.Path(paths[0]).write_text(
      pathlib.Path(paths[0]).read_text().replace('row 5', 'row x')
    )
    return embed(texts)

  with pytest.raises(ValueError, match=r'0\.jsonl:6: CRC-32'):
    run(tmp_path / 's', paths, change)


SIZES = (10, 0, 7, 9)
# As many ways to share the work of 26 documents in blocks of 4.
SHARES = {
  'files': [begun.Part(shard=i) for i in (3, 0, 2)],
  'slices': [begun.Part(begin=b, end=b + 5) for b in (20, 0, 25, 10, 5, 15)],
  'both': [
    begun.Part(shard=0, begin=0, end=3),
    begun.Part(shard=0, begin=3),
    begun.Part(begin=10, end=999),
  ],
}


@pytest.mark.parametrize('share', SHARES)
def test_parts_make_the_same_store(tmp_path, share):
  spec = 'IVF2,Flat;nprobe=2'
  paths = write_corpus(tmp_path, SIZES)
  paths[2] = build_test.compress(paths[2])
  whole = run(tmp_path / 'whole', paths, index=spec).directory
  calls = []

  def spy(texts):
    calls.append(texts[0])
    return embed(texts)

  for part in SHARES[share]:
    assert run(tmp_path / 's', paths, spy, index=spec, part=part) is None
    assert not (tmp_path / 's' / 'manifest.json').exists()
  assert len(calls) == len(set(calls)) == 3 + 2 + 3
  run(tmp_path / 's', paths, fail, index=spec)
  assert contents(tmp_path / 's') == contents(whole)
  # A part of what is finished has nothing to do.
  assert run(tmp_path / 's', paths, fail, index=spec, part=SHARES[share][0])
  assert contents(tmp_path / 's') == contents(whole)


def test_a_part_looks_at_its_own_files_and_build_fills_in_the_rest(tmp_path):
  paths = write_corpus(tmp_path, SIZES)
  whole = run(tmp_path / 'whole', paths).directory
  seen = []
  progress = {'progress': lambda done, total: seen.append((done, total))}
  run(tmp_path / 's', paths, part=begun.Part(shard=2, end=6), **progress)
  assert os.listdir(tmp_path / 's' / 'offsets') == ['02.npy']
  assert seen == [(4, 6), (6, 6)]
  run(tmp_path / 's', paths, part=begun.Part(begin=1, end=5))
  assert sorted(os.listdir(tmp_path / 's' / 'offsets')) == ['00.npy', '02.npy']
  run(tmp_path / 's', paths)
  assert contents(tmp_path / 's') == contents(whole)


@pytest.mark.parametrize(
  'part, message',
  [
    (begun.Part(shard=4), 'shard=4.* the corpus has 4 files'),
    (begun.Part(begin=5, end=5), 'ends before it begins'),
    (begun.Part(begin=-1, end=5), 'ends before it begins'),
    (begun.Part(begin=26), 'begins after the last of 26 documents'),
    (begun.Part(shard=2, begin=7), 'begins after the last of 7 documents'),
    (begun.Part(shard=1), 'begins after the last of 0 documents'),
  ],
)
def test_parts_without_documents_are_refused(tmp_path, part, message):
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 's', write_corpus(tmp_path, SIZES), fail, part=part)


def test_parts_keep_out_of_each_other(tmp_path):
  paths = write_corpus(tmp_path, SIZES)
  part = begun.Part(shard=0, begin=0, end=8)
  inside = {
    begun.Part(shard=0, begin=7): 'is building',
    begun.Part(begin=7, end=20): 'is building',
    None: 'is building',
    begun.Part(shard=0, begin=8): '',
    begun.Part(shard=3): '',
  }

  def meanwhile(texts):
    while inside:
      other, message = inside.popitem()
      if message:
        with pytest.raises(ValueError, match=f'another process {message}'):
          run(tmp_path / 's', paths, fail, part=other)
      else:
        run(tmp_path / 's', paths, part=other)
    return embed(texts)

  run(tmp_path / 's', paths, meanwhile, part=part)
  assert not inside

  def part_inside_whole(texts):
    run(tmp_path / 's', paths, fail, part=part)

  with pytest.raises(ValueError, match='another process is building'):
    run(tmp_path / 's', paths, part_inside_whole)


def test_a_part_of_another_build_is_refused(tmp_path):
  paths = write_corpus(tmp_path)
  run(tmp_path / 's', paths, part=begun.Part(shard=0))
  with pytest.raises(ValueError, match="embedder is 'me' there, 'you' now"):
    run(tmp_path / 's', paths, part=begun.Part(shard=1), fingerprint='you')


PART = """
import sys
sys.path.insert(0, {root!r})
import os, signal
import numpy as np
from tests import build_test
from tttnn.datastore import begun

directory, kill, first, *paths = sys.argv[1:]

def embed(texts):
  if kill == 'kill' and texts[0].endswith('row 4'):
    os.kill(os.getpid(), signal.SIGKILL)
  return build_test.embed(texts)

part = begun.Part(begin=int(first), end=int(first) + 8)
build_test.run(directory, paths, embed, part=part)
"""


def test_many_processes_build_one_store_though_some_are_killed(tmp_path):
  paths = write_corpus(tmp_path, SIZES)
  paths = [build_test.compress(path) for path in paths]
  whole = run(tmp_path / 'whole', paths).directory
  script = PART.format(root=str(ROOT))

  def start(first, kill):
    command = [sys.executable, '-c', script, str(tmp_path / 's'), kill]
    return subprocess.Popen([*command, str(first), *paths])

  def end(processes):
    return [process.wait(60) for process in processes]

  kills = [start(first, 'kill') for first in (0, 8, 16, 24)]
  # The parts that begin at 0, 8 and 16 hold a block that begins with a row 4.
  assert end(kills) == [-signal.SIGKILL] * 3 + [0]
  assert end([start(first, '') for first in (0, 8, 16, 24)]) == [0] * 4
  run(tmp_path / 's', paths, fail)
  assert contents(tmp_path / 's') == contents(whole)


def test_the_job_builds_in_parts_and_skips(tmp_path, capsys):
  _, embedder = tiny.write_models(str(tmp_path / 'models'))
  texts = tiny.documents(30)
  tiny.write_jsonl(tmp_path / 'a.jsonl', texts[:20])
  with open(tmp_path / 'a.jsonl', 'a') as file:
    file.write('{"text"\n')
  tiny.write_jsonl(tmp_path / 'b.jsonl', texts[20:])
  build_test.compress(str(tmp_path / 'b.jsonl'))
  config = base.get_config()
  config.job = 'build'
  config.embedder.path = embedder
  config.corpus.train = f'{tmp_path}/a.jsonl,{tmp_path}/b.jsonl.gz'
  config.corpus.on_error = 'skip'
  config.corpus.cache = str(tmp_path / 'cache')
  config.store.path = str(tmp_path / 's')
  config.build.block = 8
  for shard, begin, end in ((0, 0, 8), (0, 8, 0), (1, 0, 0), (-1, 0, 0)):
    assert not (tmp_path / 's' / 'manifest.json').exists()
    config.build.shard, config.build.begin = shard, begin
    config.build.end = end
    jobs.run(config, str(tmp_path / 'w'))
  said = capsys.readouterr().out
  assert 'Part(shard=0, begin=8, end=0) is embedded' in said
  assert '31 documents' in said and '1 malformed lines were left' in said
  store = store_lib.open(tmp_path / 's')
  assert store.corpus.text(21) == texts[20]
  assert len(os.listdir(tmp_path / 'cache')) == 1
  config.dry_run = True
  jobs.run(config, str(tmp_path / 'w'))
  assert '31' in capsys.readouterr().out
