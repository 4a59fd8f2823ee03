"""Measures speed and memory, beside another program where there is one.

Leaves `benchmark.json`, `benchmark.md` and `benchmark.png` in the work
directory, and what both sides were given.
"""

import json
import os

from tttnn import estimate
from tttnn import files
from tttnn import summary
from tttnn.benchmarks import embed
from tttnn.benchmarks import embed_report
from tttnn.benchmarks import knn_lm
from tttnn.benchmarks import knn_lm_report
from tttnn.benchmarks import search
from tttnn.benchmarks import search_report
from tttnn.benchmarks import select
from tttnn.benchmarks import select_report
from tttnn.benchmarks import train
from tttnn.benchmarks import train_report
from tttnn.benchmarks import ttt
from tttnn.benchmarks import ttt_report
from tttnn.reporting import plots
from tttnn.reporting import tables

# What measures, or tells what that would take, and what tells of the result.
BENCHMARKS = {
  'embed': (embed, embed_report),
  'knn_lm': (knn_lm, knn_lm_report),
  'search': (search, search_report),
  'select': (select, select_report),
  'train': (train, train_report),
  'ttt': (ttt, ttt_report),
}


def run(config, workdir: str) -> None:
  """The job.

  Raises:
    ValueError: for a wrong setting, a side that fails, or sides that come to
      different numbers.
  """
  name = config.benchmark.name
  if name not in BENCHMARKS:
    raise ValueError(
      f'benchmark.name={name!r} is not one of {", ".join(BENCHMARKS)}'
    )
  benchmark, report = BENCHMARKS[name]
  if config.dry_run:
    estimate.show(f'benchmark ({name})', **benchmark.cost(config))
    return
  result = {
    'benchmark': name,
    **benchmark.measure(config, workdir),
    'config': config.to_dict(),
    'versions': summary.versions(),
    'git_revision': summary.git_revision(),
  }
  found, said = report.tables_of(result), report.sentences(result)
  for file, content in (
    ('benchmark.json', json.dumps(result, indent=2) + '\n'),
    ('benchmark.md', _markdown(name, found, said, report.FIGURE)),
    ('benchmark.png', plots.png(report.draw(result))),
  ):
    files.write_if_changed(os.path.join(workdir, file), content)
  for title, cells in found:
    print(f'\n{title}\n\n{tables.render_text(cells)}')
  print('\n'.join(said))
  print(f'Written to {os.path.join(workdir, "benchmark.{json,md,png}")}')


def _markdown(name: str, found, said, figure: str) -> str:
  parts = [f'# Benchmark: {name}']
  for title, cells in found:
    parts += [title, tables.render_markdown(cells).strip()]
  parts += [f'- {tables.escape(line)}' for line in said]
  parts += [f'![{figure}](benchmark.png)']
  return '\n\n'.join(parts) + '\n'
