"""Runs the points of a sweep and ranks them; `launch/sweep.py` is its command.

The grid is in `jobs/points.py`, which points share neighbours in
`jobs/shared.py`, the processes in `processes.py`, the table in
`reporting/sweeps.py`.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import os
import re
import shlex
import sys

from absl import flags
import ml_collections
from ml_collections import config_flags

from tttnn import files
from tttnn import jobs
from tttnn import main as main_lib  # Defines --config, --workdir and --debug.
from tttnn import processes
from tttnn.jobs import points as points_lib
from tttnn.jobs import shared
from tttnn.reporting import sweeps
from tttnn.reporting import tables

_SWEEP = flags.DEFINE_string('sweep', '', "'KEY=VALUE,VALUE;KEY=VALUE,VALUE'")
_JOBS = flags.DEFINE_integer('jobs', 1, 'Points at once.', lower_bound=1)
_GPUS = flags.DEFINE_list(
  'gpus', [], 'Of which each point that runs sees one: CUDA_VISIBLE_DEVICES.'
)
_PRINT = flags.DEFINE_enum(
  'print',
  '',
  ['', 'commands', 'slurm', 'table'],
  'Run nothing: print commands, a SLURM job array, or what there is so far.',
)
_METRIC = flags.DEFINE_string(
  'metric', '', 'Of summary.json: bits_per_byte, or validation_loss of train.'
)

_SLURM = """#!/usr/bin/env bash
#SBATCH --job-name=tttnn-sweep
#SBATCH --array=0-{last}
#SBATCH --output={output}
#SBATCH --requeue
# A sweep; {about}.
# Submit it by: bash THIS_FILE [SBATCH OPTION...]
set -euo pipefail

searches=(
{searches}
)
points=(
{points}
)
if [[ -z ${{SLURM_ARRAY_TASK_ID:-}} ]]; then
  mkdir -p {workdir}
  options=("$@")
  if [[ ${{#searches[@]}} -gt 0 ]]; then
    job=$(sbatch --parsable --array=0-{last_search} "$@" "$0" searches)
    options+=(--dependency="afterok:${{job%%;*}}")
  fi
  exec sbatch "${{options[@]}}" "$0" points
fi
cd {here}
case ${{1:-points}} in
  searches) command=${{searches[SLURM_ARRAY_TASK_ID]}} ;;
  points) command=${{points[SLURM_ARRAY_TASK_ID]}} ;;
esac
eval "exec $command"
"""
_TAIL = 5  # Lines of the log of a point that failed.


@dataclasses.dataclass(frozen=True)
class Run:
  """A point to run.

  Attributes:
    point: which.
    task: its own.
    search: what has to be looked up before, if anything.
    config: of the task.
  """

  point: points_lib.Point
  task: processes.Task
  search: processes.Task | None
  config: ml_collections.ConfigDict


def main(argv: list[str]) -> None:
  """Exits with 1 if a run failed, else as `main` does."""
  try:
    if argv[1:]:
      raise ValueError(f'unknown argument {argv[1]!r}: flags begin with --')
    sys.exit(_sweep())
  except (ValueError, OSError) as error:
    if flags.FLAGS.debug:
      raise
    main_lib.fail(error)
  except KeyboardInterrupt:
    print('interrupted; the same command goes on from here', file=sys.stderr)
    sys.exit(130)


def _sweep() -> int:
  config, workdir = flags.FLAGS.config, flags.FLAGS.workdir
  if config is None or not workdir:
    raise ValueError('--config=configs/NAME.py and --workdir=DIR are needed')
  workdir = os.path.abspath(workdir)
  points = _points(config)
  metric = _metric(config, points)
  found = shared.searches(points, workdir)
  about = shared.describe(points, found)
  runs = [_run(point, found.get(point.name), workdir) for point in points]
  if _PRINT.value == 'table':
    _report(workdir, runs, [run for run in runs if _has_ended(run)], metric)
    return 0
  if _PRINT.value:
    _print(workdir, runs, about)
    return 0
  print(f'sweep: {len(points)} points; {about}', flush=True)
  with processes.alone(workdir) as lock:
    ended, failed = _run_all(runs, lock)
    _report(workdir, runs, ended, metric)
  for task, status in failed:
    print(f'\n== status {status}: {task.log}')
    print('\n'.join(task.tail(_TAIL)))
  if failed:
    print(f'\nsweep: {len(failed)} runs failed; the same command tries again')
  return int(bool(failed))


def _metric(config, points: Sequence[points_lib.Point]) -> str:
  """What points are ranked by.

  Raises:
    ValueError: for a job without a figure, or one that it does not have.
  """
  if config.job not in sweeps.METRICS:
    raise ValueError(
      f'job={config.job!r} leaves no figure to rank points by; those of '
      f'{", ".join(sweeps.METRICS)} do'
    )
  if config.dry_run:
    raise ValueError('dry_run: --print=commands shows what a sweep would run')
  known = sweeps.METRICS[config.job]
  metric = _METRIC.value or known[0]
  if metric not in known:
    raise ValueError(f'--metric={metric} is not one of {", ".join(known)}')
  for point in points:
    validated = point.config.corpus.validation or point.config.pairs.validation
    if metric.startswith('validation') and not validated:
      raise ValueError(
        f'{point.name}: without corpus.validation (or pairs.validation) there '
        f'is no {metric}; --metric=train_loss is there'
      )
  return metric


def _overrides() -> dict[str, object]:
  """What the command line changes of the config, `a["lambda"]` as a.lambda."""
  values = config_flags.get_override_values(flags.FLAGS['config'])
  return {re.sub(r'\["(\w+)"\]', r'.\1', k): v for k, v in values.items()}


def _points(config) -> list[points_lib.Point]:
  axes = points_lib.parse(_SWEEP.value, config)
  for key in axes.keys() & _overrides().keys():
    raise ValueError(f'--config.{key} is given, and swept')
  return points_lib.expand(config, axes)


def _run(
  point: points_lib.Point, search: shared.Search | None, workdir: str
) -> Run:
  directory, first = os.path.join(workdir, point.name), None
  config, overrides = point.config.copy_and_resolve_references(), {}
  if search is not None:
    there = search.directory(workdir)
    first = processes.Task(
      there, _command(there, search.point, search.overrides())
    )
    config.retrieval.replay = search.path(workdir)
    overrides['retrieval.replay'] = config.retrieval.replay
  own = processes.Task(directory, _command(directory, point, overrides))
  return Run(point, own, first, config)


def _command(
  directory: str, point: points_lib.Point, overrides: Mapping[str, object]
) -> list[str]:
  """Of the point's settings, changed by overrides."""
  values = _overrides() | point.values | overrides
  return [
    sys.executable,
    '-m',
    'tttnn.main',
    f'--config={config_flags.get_config_filename(flags.FLAGS["config"])}',
    f'--workdir={directory}',
    *(f'--config.{k}={points_lib.text_of(v)}' for k, v in values.items()),
  ]


def _unique(searches: Iterable[processes.Task | None]) -> list[processes.Task]:
  found = {search.directory: search for search in searches if search}
  return list(found.values())


def _run_all(
  runs: Sequence[Run], lock: int
) -> tuple[list[Run], list[tuple[processes.Task, int]]]:
  """Runs what is not done; returns what is now, and what failed."""
  execute = functools.partial(
    processes.execute, at_once=_JOBS.value, gpus=_GPUS.value, lock=lock
  )
  done, todo = [], []
  for run in runs:
    (done if _is_done(run) else todo).append(run)
  if done:
    print(f'sweep: {len(done)} points are done', flush=True)
  failed = execute(_unique(run.search for run in todo), 'look up')
  lost = {task.directory for task, _ in failed}
  ready = [r for r in todo if not r.search or r.search.directory not in lost]
  failed += execute([run.task for run in ready], 'sweep')
  lost = {task.directory for task, _ in failed}
  done += [run for run in ready if run.task.directory not in lost]
  return done, failed


def _is_done(run: Run) -> bool:
  """Whether running it would change nothing."""
  try:
    return jobs.is_done(run.config, run.task.directory)
  except (ValueError, OSError):  # Which the run itself will say.
    return False


def _has_ended(run: Run) -> bool:
  """Whether what it would leave is there, as far as can be known."""
  if run.config.job == 'pipeline':  # Whose steps alone could tell.
    return bool(sweeps.read(run.task.directory))
  return _is_done(run)


def _report(
  workdir: str, runs: Sequence[Run], ended: Sequence[Run], metric: str
) -> None:
  """Writes and prints a line a point, with the figures of those that ended."""
  names = {run.point.name for run in ended}
  lines = [
    sweeps.Line(
      run.point.name,
      {k: points_lib.text_of(v) for k, v in run.point.values.items()},
      sweeps.read(run.task.directory) if run.point.name in names else {},
    )
    for run in runs
  ]
  title = f'{len(ended)} of {len(runs)} points, the smallest {metric} first.'
  cells = sweeps.table(lines, metric)
  markdown = f'{title}\n\n{tables.render_markdown(cells)}'
  os.makedirs(workdir, exist_ok=True)
  for name, text in (
    ('sweep.md', markdown),
    ('sweep.csv', sweeps.as_csv(lines, metric)),
  ):
    files.write_if_changed(os.path.join(workdir, name), text)
  print(f'\n{markdown}\nWritten to {os.path.join(workdir, "sweep.{md,csv}")}')


def _print(workdir: str, runs: Sequence[Run], about: str) -> None:
  """The commands, those of searches first, or a script for SLURM."""
  searches = [shlex.join(t.command) for t in _unique(r.search for r in runs)]
  points = [shlex.join(run.task.command) for run in runs]
  if _PRINT.value == 'slurm':
    print(_slurm(workdir, about, searches, points))
    return
  print(f'sweep: {about}', file=sys.stderr)
  print('\n'.join(searches + points))


def _slurm(
  workdir: str, about: str, searches: Sequence[str], points: Sequence[str]
) -> str:
  """A script that submits itself, as an array for each list of commands."""
  return _SLURM.format(
    about=about,
    last=len(points) - 1,
    last_search=len(searches) - 1,
    workdir=shlex.quote(workdir),
    output=os.path.join(workdir, 'slurm-%A_%a.txt'),
    here=shlex.quote(os.getcwd()),
    searches='\n'.join(f'  {shlex.quote(command)}' for command in searches),
    points='\n'.join(f'  {shlex.quote(command)}' for command in points),
  )


def parse_flags(argv: list[str]) -> list[str]:
  """As `main.parse_flags`; flags of the config may stand behind a `--`."""
  return main_lib.parse_flags([a for a in argv if a != '--'])
