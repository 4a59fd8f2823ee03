"""Runs a list of methods on the same documents and the same candidates.

Neighbours are looked up once; those of tokens by each run that wants them. What
a method leaves open, as its learning rate or its alpha, is chosen on validation
documents. Leaves `compare.md`,
`compare.json` and figures; each run is a directory of `evaluate` under `runs`,
those of the choice under `validation`.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fnmatch
import json
import os

from tttnn import files
from tttnn import jobs
from tttnn import settings
from tttnn import summary
from tttnn.corpus import choice
from tttnn.corpus import documents as documents_lib
from tttnn.jobs import knn
from tttnn.jobs import knn_choice
from tttnn.jobs import neighbors
from tttnn.jobs import retrieve
from tttnn.jobs import works
from tttnn.methods import interpolation
from tttnn.methods import knn_tuning
from tttnn.methods import select
from tttnn.methods import ttt
from tttnn.reporting import frontier
from tttnn.reporting import frontier_plots
from tttnn.reporting import plots
from tttnn.reporting import tables
from tttnn.scoring import metrics
from tttnn.scoring import results as results_lib


@dataclasses.dataclass(frozen=True)
class Run:
  """A method of the comparison.

  Attributes:
    name: of its line and its directory.
    config: of `evaluate`.
    parts: the counts that are runs of their own, since each needs another
      selection or context; () where one run is scored at all counts.
  """

  name: str
  config: object
  parts: tuple[int, ...]

  @property
  def open(self) -> str:
    """What is chosen on validation documents: a key; of kNN-LM a section."""
    if self.config.method in ttt.METHODS:
      return 'ttt.learning_rate'
    if self.config.method == 'interpolation':
      return 'interpolation.alpha'
    return 'knn' if self.config.method in knn.METHODS else ''


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting, or what the runs raise.
  """
  runs = _runs(config, config.compare.names)
  if config.dry_run:
    for one in runs:
      print(f'== {one.name}')
      jobs.run(_step(one.config, dry_run=True), '')
    return
  validation = _choices(config, runs)
  # Enough for every run there is, so that others may join later.
  most = _candidates(runs) and _candidates(_runs(config, '*'))
  _look_up(config, most, workdir, 'test')
  if validation:
    _look_up(_on_validation(config), most, workdir, 'validation')
  chosen, rows = {}, {}
  for one in runs:
    chosen[one.name] = _choose(one, validation.get(one.name, ()), workdir)
    rows[one.name] = [
      _evaluated(part, workdir, os.path.join('runs', name))
      for name, part in _parts(one, chosen[one.name])
    ]
  _report(config, workdir, chosen, rows)


def _runs(config, names: str) -> list[Run]:
  """Those of `compare.runs` with names that fit one of the globs."""
  patterns = [pattern.strip() for pattern in names.split(',')]
  found = []
  for name, overrides in config.compare.runs:
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
      continue
    own = config.copy_and_resolve_references()
    own.job = 'evaluate'
    own.compare.runs = ()
    for key, value in overrides.items():
      settings.override(own, key, value)
    parts = ()
    if own.method in ('in_context', 'interpolation') or (
      own.method == 'ttt' and own.selection.name == 'frank_wolfe'
    ):
      parts = tuple(sorted(works.counts(_step(own, method='ttt')) - {0}))
    works.counts(own)  # Refuses wrong counts before anything is run.
    own.knn.cache = ''  # Or the seconds would not be those of a search.
    found.append(Run(name, own, parts))
  if not found:
    there = ', '.join(name for name, _ in config.compare.runs)
    raise ValueError(f'compare.names={names!r} fits none of the runs: {there}')
  return found


def _step(config, **changes):
  """A copy with other values: `section__key`, or `key` outside of sections."""
  step = config.copy_and_resolve_references()
  for key, value in changes.items():
    settings.override(step, key.replace('__', '.'), value)
  return step


def _choices(config, runs: Sequence[Run]) -> dict[str, object]:
  """What each run may choose from, of those with something to choose."""
  rates = tuple(
    float(rate) for rate in config.compare.learning_rates.split(',') if rate
  )
  found = {}
  for one in runs:
    if one.open == 'interpolation.alpha':
      if one.config.interpolation.alpha == 'validation':
        found[one.name] = interpolation.ALPHAS
    elif one.open == 'knn':
      knn.identity(one.config)  # Refuses stores before anything is run.
      if knn_choice.is_open(one.config):
        found[one.name] = knn_tuning.Grid.create(one.config.knn)
    elif one.open and rates:
      found[one.name] = rates
  if found and not config.eval.validation:
    raise ValueError(
      f'{", ".join(found)} have something to choose on documents of '
      'eval.validation, which is empty; give compare.learning_rates=, a number '
      'as interpolation.alpha, and no knn.lambdas, .temperatures and .ks, for '
      'nothing to be chosen'
    )
  return found


def _candidates(runs: Sequence[Run]) -> int:
  """How many each document needs, for the run that needs most."""
  return max(
    (
      select.Settings.create(one.config.selection).candidates(
        one.config.retrieval.neighbors
      )
      for one in runs
      if one.config.method not in neighbors.WITHOUT
    ),
    default=0,
  )


def _look_up(config, most: int, workdir: str, name: str) -> None:
  """Writes so many candidates of all documents of the config."""
  if most:
    retrieve.look_up(config, most, os.path.join(workdir, 'neighbors'), name)


def _on_validation(config):
  """The same on all validation documents of the tasks, by one process."""
  return _step(
    config,
    eval__documents=config.eval.validation,
    eval__limit=config.compare.validation_limit,
    eval__portion=1.0,
    eval__rank=0,
    eval__world_size=1,
    eval__missing_tasks='allow',
    eval__save_tokens=False,
  )


def _parts(one: Run, value) -> Iterator[tuple[str, object]]:
  """(name, config) of the runs of `evaluate` that a run consists of."""
  config = one.config
  if isinstance(value, knn_choice.Chosen):
    config = value.settled(config)
  elif value is not None:
    config = _step(config)
    as_text = one.open == 'interpolation.alpha'
    settings.override(config, one.open, str(value) if as_text else value)
  if not one.parts:
    yield one.name, config
  for count in one.parts:
    part = _step(config, retrieval__neighbors=count)
    part.eval.at = f'0,{count}'
    yield f'{one.name}-{count}', part


def _choose(one: Run, values, workdir: str):
  """The value with the fewest bits per byte on validation documents.

  At the count where it has the fewest; None if there is nothing to choose.
  """
  if not values:
    return None
  config = _on_validation(one.config)
  if one.open == 'knn':
    return _choose_knn(one.name, config, workdir)
  if one.open == 'interpolation.alpha':
    # All alphas are scored in one pass, whichever is asked for.
    config.interpolation.alpha = '0.0'
    name = os.path.join('validation', one.name)
    rows = _evaluated(config, workdir, name, 'validation')
    best = interpolation.best(rows)
  else:
    bits = {}
    for value in values:
      name = os.path.join('validation', f'{one.name}-{value:g}')
      step = _step(config, ttt__learning_rate=value)
      table = metrics.aggregate(_evaluated(step, workdir, name, 'validation'))
      bits[value] = min(
        score.bits_per_byte for score in table.all.by_count.values()
      )
    best = min(bits, key=bits.get)
    if len(bits) > 1 and best in (min(bits), max(bits)):
      print(
        f'compare: {best:g} is at the end of compare.learning_rates='
        f'{config.compare.learning_rates!r}: {one.name} may want one beyond'
      )
  print(f'compare: {one.name}: {one.open} is {best:g}', flush=True)
  return best


def _choose_knn(name: str, config, workdir: str) -> knn_choice.Chosen:
  """Runs that search alike, such as RetoMaton's, share what is found."""
  print(f'\n== {os.path.join("validation", name)}', flush=True)
  documents = documents_lib.read(
    config.eval.documents, choice.Choice.create(config.eval)
  )
  directory = os.path.join(workdir, 'validation')
  chosen = knn_choice.choose(config, documents, directory)
  chosen.write(os.path.join(directory, name))
  print(f'compare: {name}: {chosen.text}', flush=True)
  return chosen


def _evaluated(
  config, workdir: str, name: str, documents: str = 'test'
) -> list[dict]:
  """The rows of a run of `evaluate`, in the documents' order."""
  step = _step(config)
  if config.method not in neighbors.WITHOUT:
    step.retrieval.replay = os.path.join(
      workdir, 'neighbors', f'{documents}.jsonl'
    )
    step.retrieval.exclude_self = False  # Done when they were looked up.
  directory = os.path.join(workdir, name)
  print(f'\n== {name}', flush=True)
  jobs.run(step, directory)
  rows, _ = results_lib.read(os.path.join(directory, 'results.jsonl'))
  # An earlier run may have had more documents.
  by_id = {row['doc_id']: row for row in rows}
  wanted = documents_lib.read(
    step.eval.documents, choice.Choice.create(step.eval)
  )
  return [by_id[document.doc_id] for document in wanted]


def _report(
  config,
  workdir: str,
  chosen: Mapping[str, object],
  rows: Mapping[str, Sequence[Sequence[dict]]],
) -> None:
  """Writes the tables and figures, and prints the tables."""
  last = {name: parts[-1] for name, parts in rows.items()}
  frontier.check(last)
  points = [
    point
    for name, parts in rows.items()
    for part in parts
    for point in frontier.points(name, part)
  ]
  found = [(frontier.title(points), frontier.table(points))]
  if config.compare.reference in last and len(last) > 1:
    differences = frontier.against(config.compare.reference, last)
    title = frontier.differences_title(differences)
    found.append((title, frontier.differences_table(differences)))
  opened = {name: value for name, value in chosen.items() if value is not None}
  if opened:
    cells = [['run', 'chosen on validation']]
    cells += [[name, _text(value)] for name, value in opened.items()]
    title = 'Learning rates, alpha of interpolation, settings of kNN-LM.'
    found.append((title, cells))
  result = {
    'points': [dataclasses.asdict(point) for point in points],
    'chosen': {
      name: value.to_json() if isinstance(value, knn_choice.Chosen) else value
      for name, value in opened.items()
    },
    'config': config.to_dict(),
    'versions': summary.versions(),
    'git_revision': summary.git_revision(),
  }
  figures = {
    'frontier.png': frontier_plots.over_seconds(points),
    'counts.png': frontier_plots.over_counts(points),
    'seconds.png': frontier_plots.seconds(points),
  }
  markdown = [f'{title}\n\n{tables.render_markdown(c)}' for title, c in found]
  markdown += [f'![{name}]({name})\n' for name in figures]
  contents = {
    'compare.json': json.dumps(results_lib.without_nan(result), indent=2),
    'compare.md': '\n'.join(markdown),
  }
  for name, figure in figures.items():
    stem, _ = os.path.splitext(name)
    contents |= {name: plots.png(figure), f'{stem}.pdf': plots.pdf(figure)}
  for name, content in contents.items():
    files.write_if_changed(os.path.join(workdir, name), content)
  for title, cells in found:
    print(f'\n{title}\n\n{tables.render_text(cells)}')
  print(f'Written to {os.path.join(workdir, "compare.{json,md}")} and figures')


def _text(value: float | knn_choice.Chosen) -> str:
  return value.text if isinstance(value, knn_choice.Chosen) else f'{value:g}'
