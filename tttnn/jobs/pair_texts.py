"""What a model writes for the inputs of pairs, without and with neighbours.

Greedily or by beam search, with a search of the store at every step (Khandelwal
et al. 2021, arXiv 2010.00710), or with RetoMaton's pointers.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import time

import jax

from tttnn import pair_model
from tttnn.corpus import pair_batches
from tttnn.corpus import pairs as pairs_lib
from tttnn.jobs import knn
from tttnn.jobs import knn_generate
from tttnn.methods import decode
from tttnn.reporting import tables
from tttnn.scoring import translation

_ROWS = 8, 64  # Inputs written for at once, on CPU and elsewhere.
_DRAWN = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0}


def check(config) -> None:
  """Raises `ValueError` for what does not go with eval.generate."""
  translation.check(config.eval.bleu_tokenize)
  _search(config)
  drawn = {key: config.generate[key] for key in _DRAWN}
  if drawn != _DRAWN:
    raise ValueError(
      f'eval.generate searches for the likeliest outputs, and draws none: '
      f'{drawn} of the section generate are to be {_DRAWN}'
    )
  if config.method != 'base' and config.knn.drop_self:
    raise ValueError(
      'knn.drop_self does not go with eval.generate: a text that is still to '
      'be written is in no store'
    )


def identity(config, of_rows: dict) -> dict:
  """What texts depend on, beside what rows do."""
  names = ('max_tokens', 'beams', 'length_penalty', 'early_stopping')
  return of_rows | {f'generate.{name}': config.generate[name] for name in names}


def _search(config) -> decode.Search:
  section = config.generate
  stops = {'true': True, 'false': False, 'never': 'never'}
  if section.early_stopping not in stops:
    raise ValueError(
      f'generate.early_stopping={section.early_stopping!r} is not one of '
      f'{", ".join(stops)}'
    )
  return decode.Search(
    max_tokens=section.max_tokens,
    beams=section.beams,
    length_penalty=section.length_penalty,
    early_stopping=stops[section.early_stopping],
  )


def rows(
  config,
  model: pair_model.PairModel,
  pairs: pairs_lib.Pairs,
  chosen: Sequence[int],
  wanted: Collection[str | int],
) -> Iterator[dict]:
  """A row of `outputs.jsonl` for each pair whose id is wanted.

  The inputs of a batch are always the same, see `pairs.Reader`.

  Args:
    config: of the run.
    model: that writes.
    pairs: of the run.
    chosen: numbers of those that are evaluated.
    wanted: ids.

  Raises:
    ValueError: for a wrong setting or store, or where the model's probabilities
      are not a number.
  """
  search = _search(config)
  longest = model.longest(pairs, search.max_tokens)
  tokens = [(pairs[number][0], ()) for number in chosen]
  batches = pair_batches.plan(
    [(len(source), search.max_tokens) for source, _ in tokens],
    longest,
    config.eval.batch_size or _ROWS[jax.default_backend() != 'cpu'],
    model.mesh.shape['data'] if model.mesh else 1,
  )
  with _adjusting(config, model) as (kind, adjust):
    write = decode.compile_decoder(
      model.model.encode,
      model.model.init_cache,
      functools.partial(model.model.decode, kind=kind),
      search,
      start=model.start,
      end=model.end,
    )
    hooks = {'base': None} | ({} if adjust is None else {'knn': adjust})
    for batch in batches:
      ids = [pairs.id(chosen[number]) for number in batch.numbers]
      if not any(id_ in wanted for id_ in ids):
        continue
      arrays = batch.arrays(tokens)[:2]
      arrays = model.put(arrays, batch.shape.rows)
      texts, seconds = {}, {}
      for name, hook in hooks.items():
        begin = time.monotonic()
        texts[name] = write(model.params, *arrays, hook)
        seconds[name] = (time.monotonic() - begin) / len(batch.numbers)
      for row, id_ in enumerate(ids):
        if id_ in wanted:
          written = {name: texts[name][row] for name in hooks}
          place = chosen[batch.numbers[row]]
          yield _row(model, id_, pairs.texts(place), written, seconds)


@contextlib.contextmanager
def _adjusting(
  config, model: pair_model.PairModel
) -> Iterator[tuple[str, decode.Adjust | None]]:
  """(kind of keys, what mixes neighbours in, or None), for a context."""
  if config.method == 'base':
    yield 'final_hidden', None
    return
  store = knn.open_store(config)
  about = {'fingerprint': model.fingerprint(), 'dim': model.model.width}
  with knn_generate.hook(config, store, **about) as hook:
    yield store.manifest.keys, hook
    if config.method == 'retomaton':
      print(f'evaluate: {hook.saved:.3f} of the searches of texts are saved')


def _row(
  model: pair_model.PairModel,
  id_: str | int,
  texts: tuple[str, str],
  written: dict[str, decode.Text | None],
  seconds: dict[str, float],
) -> dict:
  row = {'doc_id': id_, 'input': texts[0], 'reference': texts[1]}
  for name, text in written.items():
    if text is None:
      raise ValueError(
        f'pair {id_!r}: the probabilities of what follows ({name}) are not a '
        'number'
      )
    row[name] = {
      'text': model.tokenizer.decode(
        text.tokens,
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
      ),
      'score': text.score,
      'ended': text.ended,
      'tokens': len(text.tokens) + text.ended,
    }
  return row | {'seconds': seconds}


def figures(config, texts: Sequence[dict]) -> dict:
  """BLEU and exact match of the rows of `outputs.jsonl`, by whom they are."""
  found = {}
  for name in ('base', 'knn'):
    if name in texts[0]:
      agreement = translation.agreement(
        [row[name]['text'] for row in texts],
        [row['reference'] for row in texts],
        config.eval.bleu_tokenize,
      )
      found[name] = dataclasses.asdict(agreement) | {
        'ended': sum(row[name]['ended'] for row in texts) / len(texts),
        'seconds': sum(row['seconds'][name] for row in texts) / len(texts),
      }
  return found


def table(config, found: dict) -> tuple[str, tables.Cells]:
  """(title, cells) of `figures`."""
  section = config.generate
  how = f'beam search, {section.beams} beams' if section.beams > 1 else 'greedy'
  signature = found['base']['signature']
  cells = [['', 'BLEU', 'exact match', 'ended', 'seconds a pair']]
  for name, values in found.items():
    cells.append(
      [
        name,
        tables.number(values['bleu'], 2),
        f'{values["exact_match"]:.1%}',
        f'{values["ended"]:.1%}',
        tables.number(values['seconds'], 3),
      ]
    )
  return f'Outputs by {how} (BLEU {signature}):', cells
