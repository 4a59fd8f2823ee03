"""`summary.json` and `summary.md`: the figures of a run, and what made them."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import importlib.metadata
import json
import os
import subprocess
import types
from typing import Any

import numpy as np

from tttnn import files
from tttnn.reporting import tables
from tttnn.scoring import metrics

_PACKAGES = ('jax', 'flax', 'optax', 'transformers', 'faiss-cpu', 'numpy')


def write(
  config,
  workdir: str,
  rows: list[dict],
  *,
  more: Mapping[str, Any] = types.MappingProxyType({}),
  more_tables: Sequence[tuple[str, tables.Cells]] = (),
) -> None:
  """Writes both files, unless they say the same already, and prints the table.

  Args:
    config: of the run.
    workdir: where they go.
    rows: of `results.jsonl`, in the documents' order.
    more: figures that `summary.json` has beside those of all runs.
    more_tables: (title, cells) of those, for `summary.md` and the terminal.
  """
  table = metrics.aggregate(rows)
  unit = tables.count_unit(config.method)
  markdown, text = tables.markdown(table, unit), tables.text(table, unit)
  more_tables = list(more_tables)
  distinct = _without_near_duplicates(config, rows)
  if distinct:
    title = (
      f'Without the {len(rows) - distinct.all.last.documents:,} documents that '
      'have a near-duplicate among their neighbours:'
    )
    more_tables.append((title, tables.before_after(distinct, unit)))
  for title, cells in more_tables:
    markdown += f'\n{title}\n\n{tables.render_markdown(cells)}'
    text += f'\n{title}\n\n{tables.render_text(cells)}'
  about = {
    'method': config.method,
    'protocol': config.eval.protocol,
    'documents': len(rows),
    'documents_with_missing_neighbors': sum(
      row['missing_neighbors'] > 0 for row in rows
    ),
    'documents_with_missing_shards': sum(
      'missing_shards' in row for row in rows
    ),
    'neighbors_removed': _total(row.get('removed', {}) for row in rows),
    'steps': sum(sum(row['steps']) for row in rows),
    'seconds_per_document': {
      part: float(np.mean([row['seconds'][part] for row in rows]))
      for part in rows[0]['seconds']
    },
    **metrics.to_json(table),
    **more,
    'without_near_duplicates': distinct and metrics.to_json(distinct),
    'config': config.to_dict(),
    'versions': versions(),
    'git_revision': git_revision(),
  }
  files.write_if_changed(
    os.path.join(workdir, 'summary.json'), json.dumps(about, indent=2) + '\n'
  )
  files.write_if_changed(os.path.join(workdir, 'summary.md'), markdown)
  print(text)


def _without_near_duplicates(config, rows: list[dict]) -> metrics.Table | None:
  """Of the rows without one; None where that is all of them, or none."""
  share = config.eval.near_duplicate
  if not share:
    return None
  distinct = [r for r in rows if not metrics.has_near_duplicate(r, share)]
  if len(distinct) == len(rows):
    return None
  if not distinct:
    print('all documents have a near-duplicate among their neighbours')
    return None
  return metrics.aggregate(distinct)


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
  total = collections.Counter()
  for some in counts:
    total.update(some)
  return dict(total)


def versions() -> dict[str, str]:
  """Of the packages that numbers depend on, as far as they are installed."""
  found = {}
  for package in ('tttnn', *_PACKAGES):
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def git_revision() -> str | None:
  """The commit of this code, '+' where files differ; None outside a clone."""
  here = os.path.dirname(os.path.abspath(__file__))

  def git(*args):
    return subprocess.run(
      ['git', '-C', here, *args], capture_output=True, text=True, check=False
    )

  try:
    commit = git('rev-parse', 'HEAD')
  except FileNotFoundError:  # No git here.
    return None
  if commit.returncode:
    return None
  changed = git('status', '--porcelain', '--untracked-files=no').stdout.strip()
  return commit.stdout.strip() + ('+' if changed else '')
