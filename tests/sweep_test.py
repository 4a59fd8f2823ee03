"""Sweeps: the grid, who shares a search, and real ones on tiny models."""

import csv
import itertools
import json
import math
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

import pytest

from configs import evaluate
from tests import world as world_lib
from tttnn import jobs
from tttnn import processes
from tttnn.jobs import points as points_lib
from tttnn.jobs import shared
from tttnn.reporting import sweeps

ROOT = pathlib.Path(__file__).parents[1]


def points_of(spec, config=None):
  config = config or evaluate.get_config('ttt')
  return points_lib.expand(config, points_lib.parse(spec, config))


def sweep(config, workdir, spec, *arguments):
  """The command, with what tiny models need of the config."""
  flags = [
    f'--config.{key}={config[section][leaf]}'
    for section, leaf in (
      ('model', 'path'),
      ('embedder', 'path'),
      ('store', 'path'),
      ('eval', 'documents'),
      ('eval', 'limit'),
      ('retrieval', 'neighbors'),
      ('retrieval', 'max_distance'),
      ('retrieval', 'exclude_self'),
      ('selection', 'pool'),
      ('ttt', 'learning_rate'),
    )
    if (key := f'{section}.{leaf}') not in spec
  ]
  return [
    sys.executable,
    str(ROOT / 'launch' / 'sweep.py'),
    f'--config={ROOT}/configs/evaluate.py:{config.method}',
    f'--workdir={workdir}',
    f'--sweep={spec}',
    *arguments,
    '--',
    *flags,
  ]


def run(*arguments):
  return subprocess.run(
    sweep(*arguments), capture_output=True, text=True, check=False
  )


def test_the_grid_is_the_product():
  spec = (
    'ttt.learning_rate=1e-5,2e-05;ttt.dropout=true,0;'
    'retrieval.neighbors=5, 20 ;eval.at="0,5",\'0\';selection.lambda=0.1;'
  )
  found = points_of(spec)
  keys = ['ttt.learning_rate', 'ttt.dropout', 'retrieval.neighbors', 'eval.at']
  expected = list(
    itertools.product([1e-5, 2e-5], [True, False], [5, 20], ['0,5', '0'])
  )
  assert len(found) == 16
  for point, values in zip(found, expected, strict=True):
    wanted = dict(zip(keys, values, strict=True)) | {'selection.lambda': 0.1}
    assert point.values == wanted
    assert [type(v) for v in point.values.values()] == [
      type(v) for v in wanted.values()
    ]
    assert point.config.ttt.learning_rate == values[0]
    assert point.config.eval.at == values[3]
    assert point.config.selection['lambda'] == 0.1
  assert len({point.name for point in found}) == 16


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('ttt.learning_rat=1', 'nearest known one is ttt.learning_rate'),
    ('ttt=1', 'unknown key ttt;'),
    ('retrieval.neighbors=5,6.5', "neighbors='6.5' .* not of type int"),
    ('ttt.learning_rate=small', 'not of type float'),
    ('ttt.dropout=perhaps', 'not of type bool'),
    ('ttt.learning_rate=1e-5,0.00001', '1e-05 is swept twice'),
    ('seed=1;seed=2', 'seed is swept twice'),
    ('seed', "'seed' of the sweep is not KEY=VALUE"),
    ('', 'nothing is swept'),
    ('eval.at="0,1', 'without its other'),
    ('pipeline.steps=1', 'cannot be swept'),
    ('job=train', 'same for all'),
    ('eval.at="0,20";retrieval.neighbors=20,5', 'neighbors-5: .*asks for 20'),
    ('selection.name=knn,nearest', 'name-nearest: .*is not one of'),
  ],
)
def test_wrong_sweeps_are_refused_before_anything_runs(spec, message):
  with pytest.raises(ValueError, match=message):
    points_of(spec)


def test_names_are_safe_and_depend_on_the_values_alone():
  paths = ['/a/b', '/a-b', '../a', 'ü', 'x' * 300, '', 'a b', '*', 'last:2']
  texts = ','.join(paths)
  named = {
    p.values['model.path']: p.name for p in points_of(f'model.path={texts}')
  }
  assert len(set(named.values())) == len(paths)
  for name in named.values():
    assert re.fullmatch(r'path-[A-Za-z0-9_.+-]{0,200}', name)
  again = points_of('model.path=new,' + ','.join(reversed(paths)))
  assert {p.values['model.path']: p.name for p in again}.items() > named.items()
  (point,) = points_of('model.path=a;embedder.path=b')
  assert point.name == 'model.path-a_embedder.path-b'
  (point,) = points_of('ttt.learning_rate=0.00001;seed=3')
  assert point.name == 'learning_rate-1e-05_seed-3'
  long = ';'.join(f'{s}.path={"y" * 32}' for s in ('model', 'embedder'))
  long += f';eval.documents={"y" * 32};corpus.train={"y" * 32};store.path=z'
  (point,) = points_of(long)
  assert len(point.name) < 200


@pytest.mark.parametrize(
  ('spec', 'expected'),
  [
    # (neighbours, points) of each search.
    ('ttt.learning_rate=1,2;retrieval.neighbors=5,20', [(20, 4)]),
    ('selection.name=knn,sift;retrieval.neighbors=5,20', [(200, 4)]),
    ('selection.pool=30,60;selection.name=sift', [(60, 2)]),
    ('retrieval.max_distance=0,1;retrieval.min_distance=0,1', [(50, 4)]),
    ('retrieval.max_overlap=0,.5;seed=0,1', [(50, 4)]),
    ('eval.stride=16,32', [(50, 2)]),
    ('method=ttt,in_context,base', [(50, 2)]),
    ('method=interpolation,ttt,in_context;interpolation.alpha=.1', [(50, 3)]),
    ('method=interpolation,ttt,in_context', [(50, 2)]),
    ('method=interpolation,ttt', []),
    ('eval.protocol=whole,split', []),
    ('eval.protocol=whole,split;seed=0,1', [(50, 2)] * 2),
    ('eval.split_prefix=8,16', []),
    ('eval.documents=a,b', []),
    ('eval.limit=5,6', []),
    ('eval.tasks=a,b', []),
    ('retrieval.exclude_self=true,false', []),
    ('embedder.path=a,b', []),
    ('embedder.max_length=8,9', []),
    ('store.path=a,b', []),
    ('store.index=Flat,"IVF4;nprobe=2"', []),
    ('store.search=faiss,device', []),
    ('model.path=a,b', []),  # Of which the split depends.
    ('eval.protocol=whole;model.path=a,b', [(50, 2)]),
    ('store.path="{workdir}/store";seed=0,1', []),  # Two stores.
    ('store.search=cluster;seed=0,1', [(50, 2)]),
    ('store.search=cluster;selection.name=sift;seed=0,1', []),
    ('retrieval.replay=a;seed=0,1', []),
    ('method=base,dynamic_eval', []),
    ('seed=1', []),
  ],
)
def test_points_share_a_search_where_they_ask_the_same(
  tmp_path, spec, expected
):
  found = points_of(spec)
  searches = shared.searches(found, str(tmp_path))
  by_search = {}
  for name, search in searches.items():
    by_search.setdefault(search.name, []).append((search.most, name))
  sizes = sorted((rows[0][0], len(rows)) for rows in by_search.values())
  assert sizes == expected
  about = shared.describe(found, searches)
  for text, wanted in (
    ('looked up once', len(expected) == 1),
    ('looked up 2 times', len(expected) == 2),
  ):
    assert (text in about) == wanted
  if not expected and ('a,b' in spec or 'protocol' in spec):
    assert f'themselves, as {spec.split("=")[0]} differs' in about


def begin(workdir, point, path):
  directory = workdir / point.name
  directory.mkdir()
  config = json.dumps({'retrieval': {'replay': path}})
  (directory / 'config.json').write_text(config)


def test_a_point_goes_on_with_the_neighbours_it_began_with(tmp_path):
  workdir = str(tmp_path)

  def searches(spec):
    return {
      n: s.name for n, s in shared.searches(points_of(spec), workdir).items()
    }

  first = searches('retrieval.neighbors=5,20')
  (name,) = set(first.values())
  five, twenty, fifty = points_of('retrieval.neighbors=5,20,50')
  # A search that was not finished is asked again by its name.
  (tmp_path / 'neighbors' / name).mkdir(parents=True)
  assert searches('retrieval.neighbors=5,20') == first
  (tmp_path / 'neighbors' / name / 'summary.json').touch()
  begin(tmp_path, five, f'{workdir}/neighbors/{name}/neighbors.jsonl')
  begin(tmp_path, twenty, '')  # By itself.
  found = searches('retrieval.neighbors=5,20,50,10')
  assert found[five.name] == name
  assert twenty.name not in found
  assert found['neighbors-10'] == found[fifty.name] != name
  # Of what is there, the smallest that has enough.
  larger = found[fifty.name]
  (tmp_path / 'neighbors' / larger).mkdir()
  (tmp_path / 'neighbors' / larger / 'summary.json').touch()
  assert searches('retrieval.neighbors=8') == {'neighbors-8': name}
  assert searches('retrieval.neighbors=30') == {'neighbors-30': larger}
  # Neighbours of another question are none.
  begin(tmp_path, fifty, f'{workdir}/neighbors/other-90/neighbors.jsonl')
  assert searches('retrieval.neighbors=50,10')[fifty.name] == larger


def lines_of(*bits):
  return [
    sweeps.Line(f'p{i}', {'seed': str(i)}, {'bits_per_byte': b} if b else {})
    for i, b in enumerate(bits)
  ]


def test_the_table_has_the_best_first_and_what_failed_last():
  lines = lines_of(2.5, None, 1.25, math.nan, 3.0)
  cells = sweeps.table(lines, 'bits_per_byte')
  assert [row[0] for row in cells] == ['seed', '2', '0', '4', '1', '3']
  assert [row[1] for row in cells[1:]] == ['1.2500', '2.5000', '3.0000', *'--']
  rows = list(csv.DictReader(sweeps.as_csv(lines, 'bits_per_byte').split('\n')))
  assert [row['point'] for row in rows] == ['p2', 'p0', 'p4', 'p1', 'p3']
  assert rows[0]['bits_per_byte'] == '1.25' and rows[3]['bits_per_byte'] == ''


def test_figures_are_those_of_the_summaries(tmp_path):
  assert sweeps.read(str(tmp_path)) == {}
  path = tmp_path / 'summary.json'
  path.write_text(
    json.dumps({'identity': {}, 'steps': 3, 'validation_loss': 1.5})
  )
  assert sweeps.read(str(tmp_path)) == {'steps': 3, 'validation_loss': 1.5}


def test_processes_run_some_at_a_time_whichever_fail(tmp_path):
  code = (
    'import os, sys, time\n'
    'print("device", os.environ["CUDA_VISIBLE_DEVICES"])\n'
    'begin = time.time(); time.sleep(.3)\n'
    'print("10 %\\r20 %", begin, time.time())\n'
    'sys.exit(int(sys.argv[1]))\n'
  )
  statuses = [0, 3, 0, 5, 0]
  tasks = [
    processes.Task(str(tmp_path / str(i)), [sys.executable, '-c', code, str(s)])
    for i, s in enumerate(statuses)
  ]
  with processes.alone(str(tmp_path)) as lock:
    failed = processes.execute(
      tasks, 'test', at_once=2, gpus=['4', '7'], lock=lock
    )
  assert sorted(s for _, s in failed) == [3, 5]
  assert all(int(task.command[-1]) == status for task, status in failed)
  spans = []
  for task in tasks:
    first, last = task.tail(2)[0], task.tail(1)[0]
    assert first == '10 %' and last.startswith('20 % ')
    assert task.tail(9)[0] in ('device 4', 'device 7')
    spans.append(tuple(map(float, last.split()[2:])))
  overlaps = [sum(b <= begin < e for b, e in spans) for begin, _ in spans]
  assert max(overlaps) == 2
  assert {task.tail(9)[0] for task in tasks} == {'device 4', 'device 7'}


STOPPED = """
import sys
from tttnn import processes
task = processes.Task(sys.argv[1] + '/a', [
  sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True);'
  'time.sleep(600)'])
with processes.alone(sys.argv[1]) as lock:
  processes.execute([task], 'test', lock=lock)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_what_runs_is_stopped_or_keeps_others_out(tmp_path, number):
  process = subprocess.Popen(
    [sys.executable, '-c', STOPPED, str(tmp_path)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stderr=subprocess.DEVNULL,
  )
  log = tmp_path / 'a' / 'log.txt'
  while not (log.exists() and log.read_text().endswith('\n')):
    assert process.poll() is None
    time.sleep(0.02)
  child = int(log.read_text())
  process.send_signal(number)
  process.wait(timeout=30)
  if number == signal.SIGTERM:
    assert process.returncode == 128 + number
  else:  # Killed, it could not stop its own.
    with (
      pytest.raises(BlockingIOError, match='lock is held'),
      processes.alone(str(tmp_path)),
    ):
      pass
    os.kill(child, signal.SIGKILL)
  end = time.monotonic() + 10
  while True:
    try:
      with processes.alone(str(tmp_path)):
        return
    except BlockingIOError:
      assert time.monotonic() < end
      time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--sweep=train.steps=1,2'], 'there is no validation_loss'),
    (
      ['--sweep=seed=1', '--metric=bits_per_byte'],
      'not one of validation_loss',
    ),
    (['--sweep=seed=1', '--config.seed=2'], 'seed is given, and swept'),
    (['--sweep=seed=1', '--config.dry_run=true'], 'dry_run'),
    (['--sweep=seed=1', '--config=configs/build.py'], "job='build'"),
    (['--sweep=seed=1', '--config=configs/none.py'], 'configs/none.py'),
    (['--sweep=seed=1', 'extra'], "'extra'"),
  ],
)
def test_wrong_commands_give_one_line(tmp_path, arguments, message):
  done = subprocess.run(
    [sys.executable, 'launch/sweep.py', '--config=configs/train_lm.py']
    + [f'--workdir={tmp_path}/w', *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )
  assert done.returncode == os.EX_CONFIG
  assert message in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not (tmp_path / 'w').exists()


SBATCH = """#!/usr/bin/env bash
echo "sbatch $*" >>"$RECORD"
last=$(sed -n 's/^#SBATCH --array=0-//p' "${@: -2:1}")
for i in $(seq 0 "$last"); do
  [[ "$*" != *--array=0-0* || $i == 0 ]] || continue
  SLURM_ARRAY_TASK_ID=$i bash "${@: -2}"
done >&2
echo '77;cluster'
"""


@pytest.mark.slow
def test_the_commands_and_the_array_are_the_runs(world, tmp_path):
  spec = 'retrieval.neighbors=2,3;selection.lambda=0.5'
  printed = run(world, f'{tmp_path}/w', spec, '--print=commands')
  assert printed.returncode == 0, printed.stderr
  assert 'looked up once for 2 points' in printed.stderr
  search, *two = printed.stdout.splitlines()
  assert '--config.job=retrieve' in search
  assert [
    f'--config.retrieval.neighbors={n} ' in c
    for n, c in zip((2, 3), two, strict=True)
  ] == [True, True]
  assert all('--config.selection.lambda=0.5' in c for c in two)
  for name, text in (
    ('sbatch', SBATCH),
    ('python', '#!/usr/bin/env bash\necho "python $*" >>"$RECORD"\n'),
  ):
    path = tmp_path / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
  script = run(world, f'{tmp_path}/w', spec, '--print=slurm').stdout
  assert not (tmp_path / 'w').exists()
  job = tmp_path / 'sweep.slurm'
  job.write_text(script.replace(sys.executable, f'{tmp_path}/python'))
  record = tmp_path / 'record'
  environment = os.environ | {
    'PATH': f'{tmp_path}:/usr/bin:/bin',
    'RECORD': str(record),
  }
  subprocess.run(['bash', job, '-p', 'x'], env=environment, check=True)
  ran = [c.replace(sys.executable, 'python') for c in (search, *two)]
  assert record.read_text().splitlines() == [
    f'sbatch --parsable --array=0-0 -p x {job} searches',
    ran[0],
    f'sbatch -p x --dependency=afterok:77 {job} points',
    *ran[1:],
  ]


@pytest.mark.slow
def test_points_give_the_rows_they_would_give_alone(world, tmp_path):
  some = world_lib.changed(
    world,
    method='in_context',
    eval__limit=5,
    retrieval__neighbors=3,
    retrieval__max_distance=30.0,
    retrieval__exclude_self=True,
    selection__pool=20,
  )
  done = run(some, f'{tmp_path}/w', 'selection.name=knn,sift', '--jobs=2')
  assert done.returncode == 0, done.stdout
  assert '2 points; neighbours are looked up once for 2 points' in done.stdout
  (search,) = (tmp_path / 'w' / 'neighbors').iterdir()
  with open(search / 'neighbors.jsonl') as file:
    saved = [json.loads(line) for line in file]
  assert [len(row['neighbors']) for row in saved] == [20] * 5
  bits = {}
  for name in ('knn', 'sift'):
    alone = world_lib.changed(some, selection__name=name)
    jobs.run(alone, str(tmp_path / name))
    rows = world_lib.rows_of(tmp_path / 'w' / f'name-{name}')
    expected = world_lib.rows_of(tmp_path / name)
    assert world_lib.timeless(rows) == world_lib.timeless(expected)
    summary = json.loads((tmp_path / name / 'summary.json').read_text())
    bits[name] = summary['all']['last']['bits_per_byte']
  with open(tmp_path / 'w' / 'sweep.csv') as file:
    rows = list(csv.DictReader(file))
  assert [row['selection.name'] for row in rows] == sorted(bits, key=bits.get)
  assert [float(r['bits_per_byte']) for r in rows] == sorted(bits.values())
  markdown = (tmp_path / 'w' / 'sweep.md').read_text()
  assert markdown in done.stdout
  assert f'{min(bits.values()):.4f}' in markdown.splitlines()[4]


@pytest.mark.slow
def test_killed_it_goes_on_and_what_failed_is_said(world, tmp_path):
  config = world_lib.changed(world, method='base', eval__limit=2)
  spec = 'eval.tasks=prose,numbers,none'
  first, last, absent = (
    tmp_path / 'w' / point.name for point in points_of(spec)
  )
  process = subprocess.Popen(
    sweep(config, tmp_path / 'w', spec),
    start_new_session=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  while not (first / 'summary.json').exists():
    assert process.poll() is None
    time.sleep(0.01)
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()
  assert not (last / 'summary.json').exists()
  before = (first / 'log.txt').stat().st_mtime_ns
  done = run(config, tmp_path / 'w', spec, '--jobs=2')
  assert done.returncode == 1
  assert 'sweep: 1 points are done' in done.stdout
  assert (first / 'log.txt').stat().st_mtime_ns == before
  assert (last / 'summary.json').exists()
  assert '2 of 3 points' in done.stdout
  assert f'== status 78: {absent / "log.txt"}\nerror: none' in done.stdout
  assert 'sweep: 1 runs failed' in done.stdout
  with open(tmp_path / 'w' / 'sweep.csv') as file:
    figures = [row['bits_per_byte'] for row in csv.DictReader(file)]
  assert all(figures[:2]) and figures[2:] == ['']


def test_a_summary_of_other_settings_or_inputs_is_not_done(world, tmp_path):
  path = tmp_path / 'test.jsonl'
  path.write_bytes(pathlib.Path(world.eval.documents).read_bytes())
  config = world_lib.changed(
    world, method='base', eval__limit=1, eval__documents=str(path)
  )
  workdir = str(tmp_path / 'w')
  assert not jobs.is_done(config, workdir)
  jobs.run(config, workdir)
  assert jobs.is_done(config, workdir)
  assert not jobs.is_done(world_lib.changed(config, eval__limit=2), workdir)
  with open(path, 'a') as file:
    file.write('{"text": "more"}\n')
  assert not jobs.is_done(config, workdir)
