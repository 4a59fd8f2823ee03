"""What kNN-LM is tuned by: lambda, temperature and k, on other documents.

One search of validation documents, which is kept, serves all settings.
RetoMaton takes what is best for kNN-LM.
"""

from collections.abc import Sequence
import dataclasses
import math
import os

import numpy as np
import tqdm

from tttnn import device
from tttnn import files
from tttnn import language_model
from tttnn.corpus import documents as documents_lib
from tttnn.jobs import knn
from tttnn.jobs import knn_cache
from tttnn.methods import knn_lm
from tttnn.methods import knn_tuning
from tttnn.reporting import knn_sweep
from tttnn.reporting import plots
from tttnn.reporting import tables
from tttnn.scoring import metrics
from tttnn.scoring import results as results_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Chosen:
  """What was chosen, and by what.

  Attributes:
    settings: the best of all.
    sweep: bits per byte of validation documents by all settings.
    documents: how many of them.
    bins: lambdas by distance at the temperature and k of `settings`; None: one
      for all.
    bins_bits_per_byte: with them; NaN without.
  """

  settings: knn_lm.Settings
  sweep: knn_sweep.Sweep
  documents: int
  bins: knn_tuning.Bins | None = None
  bins_bits_per_byte: float = math.nan

  @property
  def text(self) -> str:
    """The settings in a line."""
    lambda_ = f'lambda {self.settings.lambda_:g}'
    if self.bins:
      lambda_ = f'lambda by distance in {len(self.bins.lambdas)} bins'
    return (
      f'{lambda_}, temperature {self.settings.temperature:g}, '
      f'k {self.settings.neighbors}'
    )

  def settled(self, config):
    """A copy of the config with nothing left to choose."""
    config = config.copy_and_resolve_references()
    config.knn['lambda'] = self.settings.lambda_
    config.knn.temperature = self.settings.temperature
    config.knn.neighbors = self.settings.neighbors
    config.knn.lambda_by_distance = self.bins.text if self.bins else ''
    config.knn.update({'lambdas': '', 'temperatures': '', 'ks': '', 'bins': 0})
    return config

  def to_json(self) -> dict:
    """The settings as keys of `knn`, and the curve that they are best of."""
    grid = dataclasses.asdict(self.sweep.grid)
    return results_lib.without_nan(
      {
        'lambda': self.settings.lambda_,
        'temperature': self.settings.temperature,
        'neighbors': self.settings.neighbors,
        'lambda_by_distance': self.bins.text if self.bins else '',
        'validation': {
          'documents': self.documents,
          'base_bits_per_byte': self.sweep.base,
          'bits_per_byte': self.sweep.at(self.settings),
          'bins_bits_per_byte': self.bins_bits_per_byte,
          'curve': grid | {'bits_per_byte': self.sweep.bits_LxtxK.tolist()},
        },
      }
    )

  def tables(self) -> list[tuple[str, tables.Cells]]:
    """(title, cells) of what was chosen and of the curve."""
    found = knn_sweep.tables_of(self.sweep, self.settings)
    if self.bins:
      found.append(
        (
          'A lambda for each bin of the nearest neighbour\u2019s distance, at '
          'that temperature and k: '
          f'{tables.number(self.bins_bits_per_byte)}.',
          knn_sweep.bins_table(self.bins),
        )
      )
    noun = 'document' if self.documents == 1 else 'documents'
    (title, cells), *others = found
    title = f'Of {self.documents:,} validation {noun}. {title}'
    return [(title, cells), *others]

  def write(self, directory: str) -> None:
    """Leaves the curve as knn_sweep.csv and knn_sweep.png."""
    os.makedirs(directory, exist_ok=True)
    for name, content in (
      ('knn_sweep.csv', knn_sweep.csv(self.sweep)),
      ('knn_sweep.png', plots.png(knn_sweep.figure(self.sweep, self.settings))),
    ):
      files.write_if_changed(os.path.join(directory, name), content)


def is_open(config) -> bool:
  """Whether something is to be chosen.

  Raises:
    ValueError: for what does not go together, or cannot be tried.
  """
  section = config.knn
  grids = [key for key in ('lambdas', 'temperatures', 'ks') if section[key]]
  if section.bins < 0 or (section.bins and not section.lambdas):
    raise ValueError(
      f'knn.bins={section.bins} choose among knn.lambdas={section.lambdas!r}: '
      'none is negative, and without lambdas there is none'
    )
  if not grids:
    return False
  if section.lambda_by_distance:
    raise ValueError(
      f'knn.lambda_by_distance={section.lambda_by_distance!r} is chosen '
      f'already, knn.{grids[0]}={section[grids[0]]!r} is yet to be'
    )
  if section.ks and section.distances == 'exact':
    raise ValueError(
      f'knn.ks={section.ks!r}, but with knn.distances=exact the nearest of '
      'more entries are not those of fewer'
    )
  grid = knn_tuning.Grid.create(section)
  if grid.ks[-1] > section.neighbors:
    raise ValueError(
      f'knn.ks={section.ks!r}, but knn.neighbors={section.neighbors} are '
      'searched'
    )
  return True


def choose(
  config, documents: Sequence[documents_lib.Document], directory: str
) -> Chosen:
  """The settings that have the fewest bits per byte on these documents.

  Args:
    config: its eval.documents are where the documents are from.
    documents: to choose on.
    directory: where what a search finds is kept.

  Raises:
    ValueError: as `knn.rows`, and without documents.
  """
  if not documents:
    raise ValueError(f'no document to choose on: {config.eval.documents!r}')
  config = config.copy_and_resolve_references()
  config.method = 'knn_lm'
  about = knn.identity(config)
  config.knn.cache = os.path.join(
    directory, f'knn-{knn_cache.digest(config, about)}'
  )
  grid = knn_tuning.Grid.create(config.knn)
  device.keep_compiled_programs()
  model = language_model.load(config)
  nats, base, num_bytes = 0.0, 0.0, 0
  with tqdm.tqdm(
    total=len(documents), desc='choose knn', unit=' documents'
  ) as bar:
    for one, found, _ in knn.looked_up(config, model, documents):
      nats += knn_tuning.sweep(found, grid.lambdas, grid.temperatures, grid.ks)
      base += math.fsum(one.log_p_lm_T)
      num_bytes += one.case.num_bytes
      bar.update()

  def bits(value):
    return metrics.bits_per_byte(value, num_bytes)

  settings = grid.best(nats)
  bits_LxtxK = np.vectorize(bits, otypes=[float])(nats)
  sweep = knn_sweep.Sweep(grid, bits_LxtxK, bits(base))
  chosen = Chosen(settings, sweep, len(documents))
  if config.knn.bins:
    bins, value = _bins(config, model, documents, settings, grid.lambdas)
    chosen = dataclasses.replace(
      chosen, bins=bins, bins_bits_per_byte=bits(value)
    )
  _say_ends(config, chosen)
  return chosen


def _bins(
  config,
  model: language_model.LanguageModel,
  documents: Sequence[documents_lib.Document],
  settings: knn_lm.Settings,
  lambdas: Sequence[float],
) -> tuple[knn_tuning.Bins, float]:
  """Bins, and the documents' log-likelihood with them, of what is kept."""
  nearest, log_p_lm, log_p_knn = [], [], []
  for one, found, _ in knn.looked_up(config, model, documents):
    nearest.append(knn_tuning.nearest(found.distances_Txk, found.values_Txk))
    log_p_lm.append(one.log_p_lm_T)
    log_p_knn.append(knn.log_probability(found, settings))
  nearest_T, log_p_lm_T, log_p_knn_T = map(
    np.concatenate, (nearest, log_p_lm, log_p_knn)
  )
  bins = knn_tuning.fit_bins(
    nearest_T, log_p_lm_T, log_p_knn_T, bins=config.knn.bins, lambdas=lambdas
  )
  mixed_T = knn_lm.interpolate(
    log_p_lm_T, log_p_knn_T, bins.lambda_of(nearest_T)
  )
  return bins, math.fsum(mixed_T)


def _say_ends(config, chosen: Chosen) -> None:
  """What was chosen may not be the best where it is the last of its kind."""
  grid, settings = chosen.sweep.grid, chosen.settings
  for key, values, value in (
    ('lambdas', grid.lambdas, settings.lambda_),
    ('temperatures', grid.temperatures, settings.temperature),
    ('ks', grid.ks, settings.neighbors),
  ):
    nothing_beyond = key == 'lambdas' and value in (0, 1)
    at_end = len(values) > 1 and value in (values[0], values[-1])
    if at_end and not nothing_beyond:
      print(
        f'{config.job}: {value:g} is at the end of knn.{key}='
        f'{config.knn[key]!r}: one beyond may be better'
      )
