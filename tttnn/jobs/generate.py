"""Goes on with prompts, without neighbours and with them, side by side.

Either the weights adapt to those of the prompt, which is the query, or each
token is predicted from those of its context. Both texts are written with the
same random numbers, so that nothing else differs between them.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import shutil

import jax
import tqdm

from tttnn import checkpoint
from tttnn import device
from tttnn import estimate
from tttnn import language_model
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import jsonl
from tttnn.jobs import knn
from tttnn.jobs import knn_generate
from tttnn.jobs import neighbors
from tttnn.jobs import selection
from tttnn.jobs import trial
from tttnn.methods import decode
from tttnn.methods import generate
from tttnn.methods import pool as pool_lib
from tttnn.methods import schedule
from tttnn.scoring import results as results_lib

METHODS = ('base', 'ttt', *knn.METHODS)

# What a row says of the second text.
After = Callable[[documents_lib.Document, jax.Array], dict]


def run(config, workdir: str) -> None:
  """The job; `workdir` is not used.

  Raises:
    ValueError: for a wrong setting, model, prompt, store or server; a file of
      texts that were written with other settings.
  """
  del workdir
  sampling = _sampling(config)
  documents = _documents(config)
  if config.dry_run:
    _dry_run(config, sampling, documents)
    return
  results = _results(config)
  done = results.rows if results else {}
  todo = [d for d in documents if d.doc_id not in done]
  print(
    f'generate: {len(documents)} prompts, {len(documents) - len(todo)} done'
  )
  if todo:
    device.keep_compiled_programs()
    model = _model(config)
    _check(model, sampling, todo)
    write = model.writer(sampling)
    with _second(config, model, sampling, write, documents, done) as after:
      rows = _rows(config, model, write, after, todo)
      quiet = results is None or len(todo) == 1
      for row in tqdm.tqdm(
        rows, total=len(todo), desc='generate', unit=' prompts', disable=quiet
      ):
        if results:
          results.append(row)
        if quiet:
          _show(config, row)
  if results:
    results.close()
    print(f'generate: {config.generate.output}')


def _sampling(config) -> generate.Sampling:
  """How tokens are chosen, after a look at the other settings."""
  if config.method not in METHODS:
    raise ValueError(f'method={config.method!r} is not one of {METHODS}')
  section = config.generate
  if bool(section.prompt) == bool(section.input):
    raise ValueError(
      'generate needs either generate.prompt or generate.input; they are '
      f'{section.prompt!r} and {section.input!r}'
    )
  if section.beams != 1:
    raise ValueError(
      f'generate.beams={section.beams} is of eval.generate, the outputs of '
      'pairs; this job writes one text'
    )
  return generate.Sampling(
    section.max_tokens, section.temperature, section.top_k, section.top_p
  )


def _documents(config) -> list[documents_lib.Document]:
  if config.generate.prompt:
    return [documents_lib.Document(0, '', config.generate.prompt)]
  return documents_lib.read(config.generate.input)


def _results(config) -> results_lib.Results | None:
  """The file of texts, which a rerun continues; None: there is none."""
  output = config.generate.output
  if not output:
    return None
  directory, name = os.path.split(output)
  stem, ending = os.path.splitext(name)
  if ending != '.jsonl':
    raise ValueError(f'generate.output={output!r} does not end in .jsonl')
  identity = _identity(config)
  os.makedirs(directory or '.', exist_ok=True)
  return results_lib.Results(directory or '.', identity, stem)


def _identity(config) -> dict:
  """What a row depends on, flat: settings, and digests of what is read."""
  section = config.generate.to_dict()
  # The last three are of pairs.
  for key in ('output', 'beams', 'length_penalty', 'early_stopping'):
    del section[key]
  if section['input']:
    section['input'] = jsonl.digest(section['input'])
  chosen = {f'generate.{key}': value for key, value in section.items()}
  chosen |= {
    'method': config.method,
    'model': checkpoint.digest(config.model.path, config.model.revision),
    'model.dtype': config.model.dtype,
    'seed': config.seed,
  }
  if config.method == 'base':
    return chosen
  if config.method in knn.METHODS:
    return chosen | knn.identity(config)
  settings = config.ttt.to_dict()
  del settings['batch_documents']  # One prompt at a time, whatever it says.
  chosen |= {f'ttt.{key}': value for key, value in settings.items()}
  return chosen | neighbors.identity(config)


def _model(config) -> language_model.LanguageModel:
  model = language_model.load(config)
  settings = model.adaptation.settings
  if settings.carries and config.method == 'ttt':
    raise ValueError(
      'generate adapts to each prompt afresh, which does not go with '
      f'ttt.optimizer_state={settings.optimizer_state!r} and '
      f'ttt.reset_weights={settings.reset_weights}'
    )
  if model.mesh and model.mesh.shape['data'] > 1:
    raise ValueError(
      'generate takes one prompt at a time, which does not go with '
      f'mesh.data={model.mesh.shape["data"]}: spread the weights by mesh.model'
    )
  return model


def _check(
  model: language_model.LanguageModel,
  sampling: generate.Sampling,
  documents: Sequence[documents_lib.Document],
) -> None:
  """Raises ValueError for a prompt that leaves no room to write."""
  prompts = {d.doc_id: model.prompt(d.text) for d in documents}
  generate.check(prompts, model.context, sampling.max_tokens)


def _rows(
  config,
  model: language_model.LanguageModel,
  write: Callable[..., str | None],
  after: After,
  documents: Sequence[documents_lib.Document],
) -> Iterator[dict]:
  """One prompt after another, from its text to its row."""
  for document in documents:
    number = neighbors.number(document)
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    yield {
      'doc_id': document.doc_id,
      'prompt': document.text,
      'before': write(model.params, document.text, key),
      'after': None,
      'neighbors': [],
      **after(document, key),
    }


@contextlib.contextmanager
def _second(
  config,
  model: language_model.LanguageModel,
  sampling: generate.Sampling,
  write: Callable[..., str | None],
  documents: Sequence[documents_lib.Document],
  done: Collection[str | int],
) -> Iterator[After]:
  """How the text with neighbours is written, for the length of a context."""
  if config.method == 'base':
    yield lambda document, key: {}
  elif config.method == 'ttt':
    with neighbors.finder(config, documents, done) as find:
      yield _adapted(config, model, write, find)
  else:
    with knn_generate.writer(config, model, sampling) as go_on:
      yield lambda document, key: go_on(document.text, key)


def _adapted(
  config,
  model: language_model.LanguageModel,
  write: Callable[..., str | None],
  find: neighbors.Find,
) -> After:
  """By weights that adapt to the neighbours of the prompt."""
  pool = model.pool()

  def after(document: documents_lib.Document, key: jax.Array) -> dict:
    case = model.case(document, 'whole', 0)
    (chosen,) = selection.choose(config, find, [case])
    windows = model.trained(chosen.texts)
    adapted = _adapt(pool, windows, neighbors.number(document))
    row = {
      'after': write(adapted, document.text, key),
      'neighbors': [
        {'id': n.id, 'distance': n.distance} for n in chosen.neighbors
      ],
    }
    if chosen.missing_shards:
      row['missing_shards'] = chosen.missing_shards
    return row

  return after


def _adapt(pool: pool_lib.Pool, windows: list[list[list[int]]], number: int):
  """The parameters after a step on each window of each neighbour."""
  for _ in pool.run([schedule.Work('', {}, windows, number)]):
    pass
  return pool.adapted()


def _title(config, row: dict) -> str:
  """What stands above the second text."""
  if config.method == 'knn_lm':
    return f'with {config.knn.neighbors} neighbours a token'
  if config.method == 'retomaton':
    return f'with {row["searches"]} searches in {row["steps"]} tokens'
  distances = [neighbor['distance'] for neighbor in row['neighbors']]
  title = f'after {len(distances)} neighbours'
  if distances:
    title += f' ({min(distances):.4f} to {max(distances):.4f})'
  return title


def _show(config, row: dict) -> None:
  """The prompt, and below it the texts side by side."""
  width = shutil.get_terminal_size((100, 0)).columns
  print(f'\ndoc_id {row["doc_id"]}')
  print(*_lines(row['prompt'], width), sep='\n')
  print()
  if config.method == 'base':
    print('before', *_lines(row['before'], width), sep='\n')
    return
  half = max(10, (width - 3) // 2)
  left = ['before', '-' * half, *_lines(row['before'], half)]
  right = [_title(config, row), '-' * half, *_lines(row['after'], half)]
  for number in range(max(len(left), len(right))):
    one, other = (
      side[number] if number < len(side) else '' for side in (left, right)
    )
    print(f'{one:<{half}} | {other}'.rstrip())


def _lines(text: str | None, width: int) -> list[str]:
  """A text broken at `width`, as it may be shown on a terminal."""
  if text is None:
    return ['(the logits are not finite)']
  lines = []
  for line in text.expandtabs(4).rstrip().split('\n'):
    line = ''.join(c if c.isprintable() else '\ufffd' for c in line)
    pieces = [line[i : i + width] for i in range(0, len(line), width)]
    lines += pieces or ['']
  return lines


def _dry_run(config, sampling: generate.Sampling, documents) -> None:
  """Writes one text as long as they get, and tries training steps."""
  model = _model(config)
  _check(model, sampling, documents)
  longest = max((d.text for d in documents), key=lambda x: len(model.prompt(x)))
  write = model.writer(sampling)
  compiling, each = estimate.timed(lambda: write(model.params, longest))
  steps, seconds = 0, compiling + each * len(documents)
  memory = estimate.num_bytes(model.params)
  if config.method in knn.METHODS:  # Of which searches are not timed.
    seconds += _without_searches(model, sampling, longest, len(documents))
  if config.method == 'ttt':
    pool = model.pool()
    texts = neighbors.sample(config, documents)
    total = len(documents) * config.retrieval.neighbors
    steps, training = trial.training(model, pool, texts, total)
    seconds += each * len(documents) + training
    memory = pool.memory(model.adaptation.settings.max_length)
  estimate.show(
    f'generate ({config.method})',
    documents=len(documents),
    steps=steps,
    memory=memory,
    seconds=seconds,
  )


def _without_searches(model, sampling, text: str, count: int) -> float:
  """Seconds that as many texts take, a step at a time."""
  write = model.stepwise_writer(sampling, 'final_hidden')
  key = jax.random.key(0)
  compiling, each = estimate.timed(
    lambda: write(model.params, text, key, lambda x, *_: decode.log_softmax(x))
  )
  return compiling + each * count
