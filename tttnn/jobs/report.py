"""The report job: results.jsonl -> tables, figures and one HTML page."""

import json
import os
import pathlib

from tttnn import files
from tttnn.reporting import page
from tttnn.reporting import plots
from tttnn.reporting import tables
from tttnn.scoring import metrics
from tttnn.scoring import paired
from tttnn.scoring import results

_SCORES = ('all', 'pile_all', 'tasks')  # What metrics.to_json writes.
_KEYS = (
  'doc_id',
  'task',
  'method',
  'protocol',
  'num_bytes',
  'num_words',
  'at',
  'log_likelihood',
  'neighbors',
  'missing_neighbors',
  'seconds',
)


def run(config, workdir: str | os.PathLike) -> None:
  """Writes workdir/report/{index.html,tables.md,*.png}; prints the tables.

  An unfinished run is reported as far as it got. Several runs are compared over
  the documents that all have. A file whose content would stay the same is left
  alone.

  Args:
    config: `report.inputs`, the comma-separated work directories of the runs
      to show, '' for `workdir`; `report.title`, '' for the names of the runs.
    workdir: where the report goes.

  Raises:
    ValueError: if a run has no results or its rows are malformed; of several,
      if their protocols differ or no document is in all.
  """
  workdir = pathlib.Path(workdir)
  inputs = [i.strip() for i in config.report.inputs.split(',') if i.strip()]
  directories = [pathlib.Path(i) for i in inputs] or [workdir]
  runs = [load(path, number) for number, path in enumerate(directories, 1)]
  paired.check_protocols(
    [
      (os.fspath(path), _protocol(path, shown))
      for path, shown in zip(directories, runs, strict=True)
    ]
  )

  title = config.report.title or ', '.join(shown.name for shown in runs)
  contents = {
    'index.html': page.render(title, runs).encode(),
    'tables.md': _markdown(title, runs).encode(),
  }
  for shown in runs:
    for figure in filter(None, (shown.before_after, shown.curves)):
      contents[figure.name] = figure.png
  (workdir / 'report').mkdir(parents=True, exist_ok=True)
  for name, content in contents.items():
    files.write_if_changed(os.fspath(workdir / 'report' / name), content)

  for shown in runs:
    print(f'{shown.name}: {shown.progress or "finished."}\n')
    print(tables.text(shown.table, shown.unit))
  print(f'Report: {(workdir / "report" / "index.html").resolve()}')


def load(workdir: pathlib.Path, number: int = 1) -> page.Run:
  """The run of a work directory, drawn; `number` tells its figures apart.

  Besides results.jsonl it reads summary.json, where that exists: `documents`,
  how many the run has, and for the page all the rest but the scores, which
  come from the rows.

  Raises:
    ValueError: as `run`.
  """
  rows = read_rows(workdir / 'results.jsonl')
  path = workdir / 'summary.json'
  summary = json.loads(path.read_text('utf-8')) if path.exists() else {}
  table = metrics.aggregate(rows)
  unit = tables.count_unit(rows[0]['method'])
  curves = None
  if len(table.all.by_count) > 1:
    curves = page.Figure(
      f'curves_{number}.png',
      f'Bits per byte over {unit}, a panel a domain.',
      plots.png(plots.curves(table, unit)),
    )
  return page.Run(
    name=workdir.resolve().name,
    progress=_progress(len(rows), summary),
    rows=rows,
    table=table,
    before_after=page.Figure(
      f'before_after_{number}.png',
      'Bars of bits per byte by domain, the numbers of the table above.',
      plots.png(plots.before_after(table, unit)),
    ),
    curves=curves,
    origin={k: v for k, v in summary.items() if k not in _SCORES},
  )


def read_rows(path: pathlib.Path) -> list[dict]:
  """The rows of a results file, but for a last line that is still written.

  Raises:
    ValueError: if there is no file or no row, or, with file and line, for a
      row that is not JSON, lacks a key, has another number of log-likelihoods
      than of neighbour counts, or is of another method than the first.
  """
  if not path.exists():
    raise ValueError(
      f'{path} does not exist: --config.job=evaluate writes it, with the same '
      '--workdir or one that report.inputs names'
    )
  rows, _ = results.read(os.fspath(path))
  if not rows:
    raise ValueError(f'{path}: no document is finished yet')
  for number, row in enumerate(rows, 1):
    _check(row, rows[0], f'{path}:{number}')
  return rows


def _protocol(workdir: pathlib.Path, shown: page.Run) -> dict[str, object]:
  """What is known of what a run scored.

  Where queries end depends on eval.split_prefix, which rows don't have; 0, the
  model's context, is known to the model only, and tells by the scored bytes.
  """
  known = paired.protocol(shown.rows[0])
  path = workdir / 'results.config.json'
  if known['eval.protocol'] == 'split' and path.exists():
    prefix = json.loads(path.read_text('utf-8')).get('eval.split_prefix')
    if prefix:
      known['eval.split_prefix'] = prefix
  return known


def _check(row: dict, first: dict, place: str) -> None:
  if not isinstance(row, dict):
    raise ValueError(f'{place}: not an object but {type(row).__name__}')
  missing = [key for key in _KEYS if key not in row]
  if missing:
    raise ValueError(f'{place}: no {", ".join(missing)}')
  if not row['at'] or len(row['at']) != len(row['log_likelihood']):
    raise ValueError(
      f'{place}: {len(row["log_likelihood"])} log-likelihoods at '
      f'{len(row["at"])} neighbour counts'
    )
  of_row, of_first = (
    (r['method'], *paired.protocol(r).values()) for r in (row, first)
  )
  if of_row != of_first:
    raise ValueError(
      f'{place}: method, protocol, window and stride {of_row} in a file of '
      f'{of_first}'
    )


def _progress(rows: int, summary: dict) -> str:
  if not summary:
    return f'Unfinished: {rows:,} documents so far, no summary.json yet.'
  if rows != summary['documents']:
    return f'Unfinished: {rows:,} of {summary["documents"]:,} documents.'
  return ''


def _markdown(title: str, runs: list[page.Run]) -> str:
  parts = [f'# {tables.escape(title)}\n']
  if len(runs) > 1:
    parts.append(page.comparison_title(runs) + '\n')
    parts.append(tables.render_markdown(page.comparison(runs)))
  for shown in runs:
    if len(runs) > 1:
      parts.append(f'## {tables.escape(shown.name)}\n')
    if shown.progress:
      parts.append(shown.progress + '\n')
    parts.append(tables.markdown(shown.table, shown.unit))
  return '\n'.join(parts)
