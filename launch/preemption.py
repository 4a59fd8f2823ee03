"""Kills a training run at random moments, and compares what it ends with.

  python launch/preemption.py [--kills 20] [--seed 0] [--workdir DIR]

Trains a tiny model twice: once undisturbed, and once with `kill -9` at random
moments, each up to some 30 steps after the last one, every fourth while the
run begins, and each followed by the same command. The losses of all steps and
the bytes of the last parameters must be those of the undisturbed run. Ends with
status 1 where they are not.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from tttnn.corpus import tokenizer as tokenizer_lib

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_WORDS = ('the', 'of', 'and', 'to', 'in', 'is', 'it', 'that', 'was', 'for')
_STEPS = 30  # Between two kills, which take about a second.
_DEADLINE = 600  # Seconds that a process may take.


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workdir', default='')
  args = parser.parse_args()
  workdir = args.workdir or tempfile.mkdtemp(prefix='tttnn-preemption-')
  root = pathlib.Path(workdir)
  rng = random.Random(args.seed)
  steps = _STEPS * (args.kills + 1)
  flags = _world(root, rng, steps)

  undisturbed = root / 'undisturbed'
  begin = time.monotonic()
  process = _start(undisturbed, flags)
  while process.poll() is None and not _step(undisturbed):
    time.sleep(0.01)
  starting = time.monotonic() - begin
  _wait(process)
  seconds = time.monotonic() - begin
  print(
    f'undisturbed: {steps} steps in {seconds:.1f} s, {starting:.1f} s of them '
    'before the first one',
    flush=True,
  )

  disturbed, hits = root / 'disturbed', 0
  for kill in range(args.kills):
    process, moment = _run_to_a_moment(disturbed, flags, rng, kill, starting)
    ended = process.poll() is not None
    if ended and process.returncode:
      _fail(process, f'it failed before kill {kill + 1}')
    process.kill()
    process.wait()
    hits += not ended
    print(
      f'kill {kill + 1}: {moment}{", but it had ended" if ended else ""}; at '
      f'step {_step(disturbed)}, checkpoints {_checkpoints(disturbed)}',
      flush=True,
    )
  _wait(_start(disturbed, flags))

  differ = [
    name
    for name, read in (
      ('the losses', _losses),
      ('the parameters', _parameters),
      ('the validations', _validations),
    )
    if read(disturbed) != read(undisturbed)
  ]
  if differ:
    sys.exit(f'error: {", ".join(differ)} differ, see {workdir}')
  print(f'same losses and parameters, bit for bit, after {hits} kills')


def _run_to_a_moment(
  workdir: pathlib.Path,
  flags: list[str],
  rng: random.Random,
  kill: int,
  starting: float,
) -> tuple[subprocess.Popen, str]:
  """Starts the run, and waits until it is to be killed; also says when that is.

  `starting`: seconds that it takes to begin.
  """
  # From what it had reached: an earlier kill may have come late.
  reached = _step(workdir)
  process = _start(workdir, flags)
  if kill % 4 == 3:
    delay = rng.uniform(0, starting)
    moment = f'{delay:.3f} s after it began, or {_STEPS} steps'
    end = time.monotonic() + delay
    while (
      process.poll() is None
      and time.monotonic() < end
      and _step(workdir) < reached + _STEPS
    ):
      time.sleep(0.01)
  else:
    target = reached + rng.randint(1, _STEPS)
    delay = rng.uniform(0, 0.1)
    moment = f'{delay:.3f} s after step {target}'
    while process.poll() is None and _step(workdir) < target:
      time.sleep(0.01)
    _let_run(process, delay)
  return process, moment


def _world(root: pathlib.Path, rng: random.Random, steps: int) -> list[str]:
  """Makes a corpus and a tokenizer; returns the flags of the run."""
  texts = [
    ' '.join(rng.choices(_WORDS, k=rng.randint(3, 60))) for _ in range(240)
  ]
  root.mkdir(parents=True, exist_ok=True)
  for number in range(4):
    lines = [json.dumps({'text': text}) for text in texts[number::4]]
    (root / f'{number}.jsonl').write_text('\n'.join(lines) + '\n')
  tokenizer_lib.train(
    texts, str(root / 'tokenizer'), vocab_size=280, kind='gpt2'
  )
  settings = {
    'corpus.train': f'{root}/[012].jsonl',
    'corpus.validation': f'{root}/3.jsonl',
    'train.tokenizer': f'{root}/tokenizer',
    'train.layers': 1,
    'train.width': 16,
    'train.heads': 2,
    'train.context': 32,
    'train.batch_size': 4,
    'train.steps': steps,
    'train.warmup_steps': 5,
    'train.dropout': 'true',
    'train.window': 2,
    'train.log_every': 1,
    'train.eval_every': 7,
    'train.eval_batches': 1,
    'train.checkpoint_every': 3,
  }
  return [f'--config.{key}={value}' for key, value in settings.items()]


def _start(workdir: pathlib.Path, flags: list[str]) -> subprocess.Popen:
  workdir.mkdir(exist_ok=True)
  with open(f'{workdir}.log', 'a') as log:
    return subprocess.Popen(
      [sys.executable, '-m', 'tttnn.main', '--config=configs/train_lm.py']
      + [f'--workdir={workdir}', *flags],
      cwd=_ROOT,
      stdout=log,
      stderr=log,
    )


def _wait(process: subprocess.Popen) -> None:
  if process.wait(_DEADLINE):
    _fail(process, 'it failed')


def _let_run(process: subprocess.Popen, seconds: float) -> None:
  try:
    process.wait(seconds)
  except subprocess.TimeoutExpired:
    return


def _fail(process: subprocess.Popen, why: str) -> None:
  directory = next(a for a in process.args if a.startswith('--workdir='))
  log = pathlib.Path(f'{directory.removeprefix("--workdir=")}.log')
  sys.exit(f'error: {why}, with status {process.returncode}; see {log}')


def _records(workdir: pathlib.Path) -> list[dict]:
  path = workdir / 'history.jsonl'
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


def _step(workdir: pathlib.Path) -> int:
  return max((record['step'] for record in _records(workdir)), default=0)


def _checkpoints(workdir: pathlib.Path) -> list[int]:
  path = workdir / 'checkpoints'
  names = os.listdir(path) if path.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def _losses(workdir: pathlib.Path) -> list[tuple[int, float]]:
  records = _records(workdir)
  return [(r['step'], r['loss']) for r in records if 'loss' in r]


def _validations(workdir: pathlib.Path) -> dict:
  summary = json.loads((workdir / 'summary.json').read_text())
  wanted = ('validation_loss', 'best_step', 'best_loss')
  return {key: summary[key] for key in wanted}


def _parameters(workdir: pathlib.Path) -> bytes:
  return (workdir / 'export' / 'model.safetensors').read_bytes()


if __name__ == '__main__':
  main()
