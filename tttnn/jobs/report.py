"""The report job: results.jsonl -> tables, figures and one HTML page."""

from collections.abc import Mapping
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re

from tttnn import files
from tttnn.jobs import live
from tttnn.reporting import compared
from tttnn.reporting import page
from tttnn.reporting import sections
from tttnn.reporting import tables
from tttnn.scoring import faithful as faithful_lib
from tttnn.scoring import metrics
from tttnn.scoring import paired
from tttnn.scoring import results
from tttnn.scoring import token_scores

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


@dataclasses.dataclass(frozen=True)
class _Input:
  """A run to show.

  Attributes:
    name: of its section.
    directories: of the runs of `evaluate` that it consists of; the last one is
      shown. One, but in a comparison whose counts are runs of their own.
  """

  name: str
  directories: list[pathlib.Path]


def run(config, workdir: str | os.PathLike) -> None:
  """Writes the report of runs: a page, tables and figures; prints the tables.

  Into workdir/report: index.html; tables.md, all tables; tables/, each as CSV
  and LaTeX, and scores.csv, what they round; the figures as PNG and PDF. An
  unfinished run is reported as far as it got. Several runs are compared over
  the documents that all have. A file whose content would stay the same is left
  alone; those of runs that an earlier report had and this one has not go.

  Args:
    config: `report.inputs`, the comma-separated work directories of `evaluate`
      or `compare` to show, '' for `workdir`; `report.title`, '' for the names
      of the runs; `report.aggregation`; `report.published`, with which no run
      need be there.
    workdir: where the report goes.

  Raises:
    ValueError: if a run has no results or its rows are malformed; of several,
      if their protocols differ or no document is in all; for a wrong setting.
  """
  workdir = pathlib.Path(workdir)
  if config.report.aggregation not in ('all', 'faithful'):
    raise ValueError(
      f'report.aggregation={config.report.aggregation!r} is not all or faithful'
    )
  faithful = config.report.aggregation == 'faithful'
  inputs = _inputs(config, workdir)
  runs = [
    load(one.directories[-1], name=one.name, faithful=faithful)
    for one in inputs
  ]
  paired.check_protocols(
    [
      (
        os.fspath(one.directories[-1]),
        _protocol(one.directories[-1], shown),
      )
      for one, shown in zip(inputs, runs, strict=True)
    ]
  )
  compared_tables, figures = _compare(config, inputs, runs)
  runs = [
    sections.drawn(shown, number, as_published=faithful)
    for number, shown in enumerate(runs, 1)
  ]
  title = config.report.title or _title(config, runs)
  contents = _contents(config, title, runs, compared_tables, figures)
  (workdir / 'report' / 'tables').mkdir(parents=True, exist_ok=True)
  for name, content in contents.items():
    files.write_if_changed(os.fspath(workdir / 'report' / name), content)
  _drop_stale(workdir / 'report', contents)

  for _, caption, cells in compared_tables:
    print(f'{caption}\n\n{tables.render_text(cells)}')
  for shown in runs:
    print(f'{shown.name}: {shown.progress or "finished."}\n')
    print(tables.text(shown.table, shown.unit))
  print(f'Report: {(workdir / "report" / "index.html").resolve()}')


def _contents(
  config,
  title: str,
  runs: list[page.Run],
  compared_tables: compared.Tables,
  figures: list[page.Figure],
) -> dict[str, bytes]:
  """File name in the report -> content; the last two are of several runs."""
  contents = {
    'index.html': page.render(title, runs, compared_tables, figures).encode(),
    'tables.md': _markdown(title, runs, compared_tables).encode(),
  }
  for figure in itertools.chain(figures, *map(_figures, runs)):
    contents |= figure.files
  for name, caption, cells in itertools.chain(
    compared_tables, *(_tables(*one) for one in enumerate(runs, 1))
  ):
    contents[f'tables/{name}.csv'] = tables.render_csv(cells).encode()
    latex = tables.render_latex(cells, caption)
    contents[f'tables/{name}.tex'] = latex.encode()
  scores = _scores(runs)
  if config.report.published:
    scores += compared.published_scores(config.report.published)
  contents['tables/scores.csv'] = tables.render_csv(scores).encode()
  return contents


def _drop_stale(directory: pathlib.Path, contents: Mapping) -> None:
  """Deletes figures and tables of runs with numbers that there are no more."""
  for path in sorted(directory.rglob('*_*.*')):
    name = path.relative_to(directory).as_posix()
    numbered = re.fullmatch(r'[a-z_/]+_\d+\.(csv|pdf|png|tex)', name)
    if numbered and name not in contents:
      path.unlink()


def load(
  workdir: pathlib.Path, *, name: str = '', faithful: bool = False
) -> page.Run:
  """The run of a work directory, without figures.

  Besides the rows it reads progress.json, how many documents the run has, and
  summary.json, where those exist: for the page all of it but the scores, which
  come from the rows.

  Raises:
    ValueError: as `run`.
  """
  rows = read_rows(workdir)
  path = workdir / 'summary.json'
  summary = json.loads(path.read_text('utf-8')) if path.exists() else {}
  progress = _progress(len(rows), summary, live.expected(os.fspath(workdir)))
  if faithful:
    everything = len(rows)
    rows = faithful_lib.kept(rows)
    table = faithful_lib.aggregate(rows)
    progress += (
      f' By the rules of the original: {everything - len(rows):,} of '
      f'{everything:,} documents are left out, which were not scored as often '
      'as the median of their domain.'
    )
  else:
    table = metrics.aggregate(rows)
  return page.Run(
    name=name or workdir.resolve().name,
    progress=progress.strip(),
    rows=rows,
    table=table,
    before_after=None,
    curves=None,
    origin={k: v for k, v in summary.items() if k not in _SCORES},
    scores=token_scores.Reader(os.fspath(workdir)),
  )


def _inputs(config, workdir: pathlib.Path) -> list[_Input]:
  named = [i.strip() for i in config.report.inputs.split(',') if i.strip()]
  directories = [pathlib.Path(i) for i in named] or [workdir]
  found = []
  for directory in directories:
    about = directory / 'compare.json'
    if about.exists():
      several = len(directories) > 1
      found += _comparison(directory, json.loads(about.read_text()), several)
    elif begun := _begun(directory):
      found += begun
    else:
      found.append(_Input(directory.resolve().name, [directory]))
  there = results.paths(os.fspath(workdir))
  if config.report.published and not named and not there:
    return [one for one in found if one.directories != [workdir]]
  names = [one.name for one in found]
  return [
    one
    if names.count(one.name) == 1
    else _Input(os.fspath(one.directories[-1]), one.directories)
    for one in found
  ]


def _begun(directory: pathlib.Path) -> list[_Input]:
  """The runs with rows of a `compare` that is still going."""
  paths = sorted(directory.glob('runs/*/results.jsonl'))
  return [
    _Input(path.parent.name, [path.parent])
    for path in paths
    if results.read(os.fspath(path))[0]
  ]


def _comparison(directory: pathlib.Path, made: dict, several: bool):
  """The runs of a work directory of `compare`, in its order."""
  labels = list(dict.fromkeys(point['label'] for point in made['points']))
  for label in labels:
    counts = [p['count'] for p in made['points'] if p['label'] == label]
    whole = directory / 'runs' / label
    parts = [directory / 'runs' / f'{label}-{count}' for count in counts]
    name = f'{directory.resolve().name}: {label}' if several else label
    yield _Input(name, [whole] if whole.exists() else parts)


def _compare(config, inputs: list[_Input], runs: list[page.Run]):
  """(tables, figures) of several runs, and of published ones."""
  found, figures = [], []
  if len(runs) > 1:
    parts = {}
    for one, shown in zip(inputs, runs, strict=True):
      first = [read_rows(d) for d in one.directories[:-1]]
      parts[shown.name] = [*first, shown.rows]
    found, figures = compared.of_runs(runs, parts)
  if config.report.published:
    theirs = compared.with_published(config.report.published, runs)
    found, figures = found + theirs[0], figures + theirs[1]
  return found, figures


def _title(config, runs: list[page.Run]) -> str:
  names = [shown.name for shown in runs]
  return ', '.join(names + [config.report.published] * (not names))


def _figures(shown: page.Run) -> list[page.Figure]:
  first = [shown.before_after, shown.curves]
  return [figure for figure in (*first, *shown.more_figures) if figure]


def _tables(number: int, shown: page.Run):
  """(file name, title, cells) of a run's tables."""
  table, unit, known = shown.table, shown.unit, shown.known
  found = [
    (
      'before_after',
      tables.before_after_title(table, unit, known=bool(known)),
      tables.before_after(table, unit, known),
    )
  ]
  if len(table.all.by_count) > 1:
    title = tables.by_count_title(table, unit)
    found.append(('by_count', title, tables.by_count(table)))
  for name, title, cells in [*found, *shown.more_tables]:
    yield f'{name}_{number}', f'{shown.name}: {title}', cells


def _scores(runs: list[page.Run]) -> tables.Cells:
  """Every score of every run, unrounded, a line each."""
  cells = [['run', 'task', 'metric', 'count', 'documents', 'value']]
  for shown in runs:
    for task, curve in shown.table.lines():
      for count, score in curve.by_count.items():
        for name in ('bits_per_byte', 'byte_perplexity', 'word_perplexity'):
          value = getattr(score, name)
          text = repr(value) if math.isfinite(value) else ''
          line = [shown.name, task, name, str(count), str(score.documents)]
          cells.append([*line, text])
  return cells


def read_rows(workdir: pathlib.Path) -> list[dict]:
  """The rows of a work directory, but for a last line that is still written.

  Those of several processes that still run are in a file each.

  Raises:
    ValueError: if there is no file or no row, or, with file and line, for a
      row that is not JSON, lacks a key, has another number of log-likelihoods
      than of neighbour counts, or is of another method than the first.
  """
  paths = results.paths(os.fspath(workdir))
  if not paths:
    raise ValueError(
      f'{workdir / "results.jsonl"} does not exist: --config.job=evaluate '
      'writes it, with the same --workdir or one that report.inputs names'
    )
  found = {}
  for path in paths:
    rows, _ = results.read(path)
    for number, row in enumerate(rows, 1):
      first = next(iter(found.values()), row)
      _check(row, first, f'{path}:{number}')
      found[row['doc_id']] = row
  if not found:
    raise ValueError(f'{paths[0]}: no document is finished yet')
  return list(found.values())


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


def _progress(rows: int, summary: dict, expected: int | None) -> str:
  summed = summary.get('documents')
  # A summary may be of fewer documents, before the run was made longer.
  total = summed if expected is None else expected
  if total is None:
    return f'Unfinished: {rows:,} documents so far.'
  if rows < total:
    share = rows / total
    return f'Unfinished: {rows:,} of {total:,} documents, {share:.0%}.'
  return '' if summed == total else 'Unfinished: no summary.json yet.'


def _markdown(
  title: str, runs: list[page.Run], compared_tables: compared.Tables
) -> str:
  parts = [f'# {tables.escape(title)}\n']
  for _, caption, cells in compared_tables:
    parts.append(f'{caption}\n\n{tables.render_markdown(cells)}')
  for number, shown in enumerate(runs, 1):
    if len(runs) + len(compared_tables) > 1:
      parts.append(f'## {tables.escape(shown.name)}\n')
    if shown.progress:
      parts.append(shown.progress + '\n')
    for _, caption, cells in _tables(number, shown):
      caption = caption.removeprefix(f'{shown.name}: ')
      parts.append(f'{caption}\n\n{tables.render_markdown(cells)}')
  return '\n'.join(parts)
