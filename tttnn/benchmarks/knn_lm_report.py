"""What the `knn_lm` benchmark found: tables, words around them, a figure."""

from collections.abc import Mapping

from matplotlib import figure
import numpy as np

from tttnn import estimate
from tttnn.benchmarks import knn_build
from tttnn.benchmarks import knn_speed
from tttnn.benchmarks import report
from tttnn.reporting import plots
from tttnn.reporting import tables

FIGURE = 'Speed over recall, perplexity over saved searches'
# What is aimed at.
MOST_OF_FORWARD = 1.5
LEAST_CACHED = 0.9
LEAST_SEARCHED, LEAST_RECALL = 0.5, 0.8


def tables_of(result: Mapping) -> list[tuple[str, tables.Cells]]:
  """(title, cells) of each table, one a part that was measured."""
  makers = {'build': _build, 'speed': _speed, 'retomaton': _retomaton}
  return [
    makers[name](found, result['shape'])
    for name, found in result['parts'].items()
  ]


def _build(found: Mapping, shape: Mapping) -> tuple[str, tables.Cells]:
  labels = {
    knn_build.FORWARD: 'the forward pass alone',
    knn_build.STORE: 'tokenizing, keys, writing',
    knn_build.WHOLE: 'with Flat index and self-check',
  }
  ratios = of_forward(found)
  cells = [['side', 'seconds', 'tokens/s', 'times the forward pass']]
  for side, label in labels.items():
    seconds = float(np.median(found['seconds'][side]))
    cells.append(
      [
        label,
        f'{seconds:.2f}',
        f'{found["tokens"] / seconds:,.0f}',
        f'{ratios[side]:.2f}',
      ]
    )
  return f'A store of {found["tokens"]:,} tokens.', cells


def _speed(found: Mapping, shape: Mapping) -> tuple[str, tables.Cells]:
  k = shape['neighbors']
  cells = [['side', 'tokens/s', 'of the model alone', f'recall@{k}']]
  shares = of_model(found)
  for side, seconds in found['seconds'].items():
    recall = found['searches'].get(side, {}).get('recall')
    cells.append(
      [
        side,
        f'{found["tokens"] / np.median(seconds):,.0f}',
        f'{shares[side]:.0%}',
        '' if recall is None else f'{recall:.3f}',
      ]
    )
  return f'Evaluating with a store of {shape["entries"]:,} tokens.', cells


def _retomaton(found: Mapping, shape: Mapping) -> tuple[str, tables.Cells]:
  cells = [
    ['states', 'min_knns', 'searches saved', 'perplexity', 'ms a token'],
  ]
  for point in found['points']:
    cells.append(
      [
        f'{point["clusters"]:,}' if point['clusters'] else 'entries',
        point['min_knns'],
        f'{point["saved"]:.1%}',
        f'{point["perplexity"]:,.2f}',
        f'{1e3 * point["seconds_a_token"]:.2f}',
      ]
    )
  return f'RetoMaton over {found["search"]}.', cells


def of_forward(found: Mapping) -> dict[str, float]:
  """Median seconds of each side of `build`, of those of the forward pass."""
  medians = {k: float(np.median(v)) for k, v in found['seconds'].items()}
  alone = medians[knn_build.FORWARD]
  return {side: seconds / alone for side, seconds in medians.items()}


def of_model(found: Mapping) -> dict[str, float]:
  """Tokens a second of each side of `speed`, of those of the model alone."""
  medians = {k: float(np.median(v)) for k, v in found['seconds'].items()}
  alone = medians[knn_speed.MODEL]
  return {side: alone / seconds for side, seconds in medians.items()}


def best_search(found: Mapping) -> str:
  """The fastest index of enough recall."""
  shares = of_model(found)
  enough = [
    name
    for name, search in found['searches'].items()
    if search['recall'] >= LEAST_RECALL
  ]
  return max(enough, key=shares.get)


def sentences(result: Mapping) -> list[str]:
  """What one must know to read the tables, and what was aimed at."""
  shape, parts = result['shape'], result['parts']
  said = [
    f'{report.where(result)} GPT-2 of {shape["layers"]} layers of width '
    f'{shape["width"]}, context {shape["context"]}: {result["model"]}.'
  ]
  if result['made']:
    made = ', '.join(
      f'{spec} {estimate.duration(seconds)}'
      for spec, seconds in result['made'].items()
    )
    said.append(
      f'The whole store with its keys and each index, in order: {made}.'
    )
  if 'build' in parts:
    times = of_forward(parts['build'])[knn_build.STORE]
    said.append(
      f'A store takes {times:.2f} times the forward pass alone; at most '
      f'{MOST_OF_FORWARD} was aimed at. Padding: '
      f'{parts["build"]["forward_padding"]:.1%} there, '
      f'{parts["build"]["padding"]:.1%} in the store.'
    )
  if 'speed' in parts:
    found = parts['speed']
    shares, best = of_model(found), best_search(found)
    said += [
      f'{found["documents"]} documents of {found["tokens"]:,} tokens, each by '
      'itself. With cached neighbours the model runs; the cache alone needs '
      'no model.',
      f'With cached neighbours {shares[knn_speed.CACHED]:.0%} of the speed of '
      f'the model alone; at least {LEAST_CACHED:.0%} was aimed at.',
      f'With searches {shares[best]:.0%} at recall '
      f'{found["searches"][best]["recall"]:.3f} '
      f'({best}); at least {LEAST_SEARCHED:.0%} at {LEAST_RECALL} was aimed '
      'at.',
    ]
  if 'retomaton' in parts:
    found = parts['retomaton']
    said.append(
      f'{found["tokens"]:,} tokens; lambda {found["lambda"]:g} and temperature '
      f'{found["temperature"]:g} are chosen on other documents. The model '
      f'alone has perplexity {found["model_perplexity"]:,.2f}, '
      f'exact kNN-LM {found["exact_perplexity"]:,.2f}.'
    )
  return said


def draw(result: Mapping) -> figure.Figure:
  """A panel for each curve that was measured."""
  parts, shown = result['parts'], []
  if 'speed' in parts:
    shown.append(_speed_panel(parts['speed'], result['shape']['neighbors']))
  if 'retomaton' in parts:
    shown.append(_saved_panel(parts['retomaton']))
  if shown:
    return plots.panels(shown)
  ratios = of_forward(parts['build'])
  return plots.bars({'Making a store': ratios}, 'times the forward pass')


def _speed_panel(found: Mapping, k: int) -> plots.Panel:
  shares, lines = of_model(found), {}
  for name, search in found['searches'].items():
    index = search['index']
    # Indexes without lists make one line, as settings of one with lists do.
    lists = index if index.startswith(('IVF', 'Flat')) else 'without lists'
    x, y = lines.setdefault(lists, ([], []))
    x.append(search['recall'])
    y.append(100 * shares[name])
  return plots.Panel(
    f'recall@{k}',
    'tokens/s, % of the model alone',
    lines,
    {
      'neighbours cached': 100 * shares[knn_speed.CACHED],
      'aimed at': 100 * LEAST_SEARCHED,
    },
  )


def _saved_panel(found: Mapping) -> plots.Panel:
  lines = {}
  for point in found['points']:
    states = f'{point["clusters"]:,} states' if point['clusters'] else 'entries'
    x, y = lines.setdefault(states, ([], []))
    x.append(100 * point['saved'])
    y.append(point['perplexity'])
  return plots.Panel(
    'searches saved, %',
    'perplexity',
    lines,
    {'exact kNN-LM': found['exact_perplexity']},
  )
