"""What `train` begins with: tokenizer, model, texts and objective."""

import dataclasses
import os

import jax

from tttnn import checkpoint
from tttnn import device
from tttnn import distributed
from tttnn import objectives
from tttnn.corpus import packing
from tttnn.corpus import pairs as pairs_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf
from tttnn.models import model as model_lib
from tttnn.models import seq2seq
from tttnn.models import t5

_OBJECTIVES = ('causal', 'masked', 'pairs')
_SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class Learner:
  """What is trained, and on what.

  Attributes:
    tokenizer: of model and texts.
    model: the model.
    params: its parameters to begin with.
    texts: 'train', and where it is given 'validation'.
    task: the objective.
  """

  tokenizer: object
  model: hf.Model
  params: model_lib.Params
  texts: dict[str, packing.Stream | pairs_lib.Pairs]
  task: objectives.Task

  @property
  def documents(self) -> int:
    """Documents or pairs to train on."""
    texts = self.texts['train']
    if isinstance(texts, pairs_lib.Pairs):
      return len(texts)
    return texts.documents

  def close(self) -> None:
    """Ends what is still tokenized in the background."""
    for texts in self.texts.values():
      if isinstance(texts, packing.Stream):
        texts.close()


def make(config, workdir: str) -> Learner:
  """Loads or makes everything, by the config.

  Raises:
    ValueError: for a wrong setting, model or corpus.
  """
  train = config.train
  if train.objective not in _OBJECTIVES:
    raise ValueError(
      f'train.objective={train.objective!r} is not one of {_OBJECTIVES}'
    )
  tokenizer, model, params = _start(config)
  model = dataclasses.replace(model, remat=config.model.remat)
  if train.objective == 'pairs':
    if distributed.count() > 1:
      raise ValueError(
        "train.objective='pairs' is trained by one process, this run has "
        f'{distributed.count()}'
      )
    texts = _pairs(config, model, tokenizer)
    task = _task_of_pairs(train, model, texts)
  elif isinstance(model, seq2seq.Model):
    raise ValueError(
      f'train.objective={train.objective!r} does not fit a t5, which is '
      "trained on 'pairs'"
    )
  else:
    task = objectives.StreamTask.create(train, model, tokenizer)
    texts = _streams(config, workdir, tokenizer)
  return Learner(tokenizer, model, params, texts, task)


def _start(config) -> tuple[object, hf.Model, model_lib.Params]:
  """Tokenizer, model and parameters to begin with."""
  train = config.train
  dtype = device.compute_dtype(config.model.dtype)
  if train.init:
    tokenizer = tokenizer_lib.load(train.init, train.revision)
    model, params = checkpoint.load_model(
      train.init,
      revision=train.revision,
      dtype=dtype,
      role=hf.role_of(train.init, train.revision),
    )
    return tokenizer, model, params
  if not train.tokenizer:
    raise ValueError(
      'train needs train.init (a model to start from) or train.tokenizer'
    )
  tokenizer = tokenizer_lib.load(train.tokenizer)
  model = _new(train, tokenizer, dtype)
  return tokenizer, model, model.init(jax.random.key(config.seed))


def _new(train, tokenizer, dtype: str) -> hf.Model:
  """A model from scratch."""
  kinds = model_lib.ARCHITECTURES
  if train.model_type not in (*kinds, 't5'):
    raise ValueError(
      f'train.model_type={train.model_type!r} is not one of '
      f'{sorted((*kinds, "t5"))}'
    )
  ids = {
    f'{role}_token_id': getattr(tokenizer, f'{role}_token_id')
    for role in ('bos', 'eos', 'pad')
    if getattr(tokenizer, f'{role}_token_id') is not None
  }
  sizes = len(tokenizer), train.layers, train.width, train.heads
  if train.model_type != 't5':
    shape = kinds[train.model_type].Config.create(*sizes, train.context, **ids)
    return model_lib.Model(train.model_type, shape, dtype)
  if 'pad_token_id' not in ids:
    raise ValueError(
      f'{train.tokenizer} has no padding token, with which the texts of a T5 '
      'begin'
    )
  ids.pop('bos_token_id', None)
  shape = t5.Config.create(
    *sizes, decoder_start_token_id=ids['pad_token_id'], **ids
  )
  return seq2seq.Model(shape, dtype)


def _streams(config, workdir: str, tokenizer) -> dict[str, packing.Stream]:
  corpus = config.corpus
  if not corpus.train:
    raise ValueError('train needs corpus.train: JSONL paths or globs')
  found = {}
  # Validation comes first: it is small, and in the background training's goes
  # on when it has begun.
  for split in ('validation', 'train'):
    if corpus[split]:
      found[split] = packing.pack(
        tokenizer,
        tokenizer.eos_token_id,
        corpus[split],
        os.path.join(workdir, 'tokens', split),
        on_error=corpus.on_error,
        window=config.train.window if split == 'train' else 0,
        seed=config.seed,
        workers=config.train.workers,
        share=(distributed.index(), distributed.count()),
      )
  return found


def _pairs(config, model: hf.Model, tokenizer) -> dict[str, pairs_lib.Pairs]:
  if not config.pairs.train:
    raise ValueError(
      "train.objective='pairs' needs pairs.train, a file that job=tokenize made"
    )
  found = {
    split: pairs_lib.open(config.pairs[split])
    for split in _SPLITS
    if config.pairs[split]
  }
  model_type = model.config.to_hf()['model_type']
  kind = 'seq2seq' if isinstance(model, seq2seq.Model) else 'causal'
  if not (kind == 'seq2seq' or model.architecture.CAUSAL):
    raise ValueError(f"train.objective='pairs' does not fit a {model_type}")
  for pairs in found.values():
    pairs.check(tokenizer)
    if pairs.kind != kind:
      raise ValueError(
        f'{pairs.path} was made for a {pairs.kind} model, and a {model_type} '
        f'is {kind}'
      )
  return found


def _task_of_pairs(
  train, model: hf.Model, texts: dict[str, pairs_lib.Pairs]
) -> objectives.PairTask | objectives.CausalPairTask:
  lengths = {}
  for side in ('input', 'output'):
    given = train[f'{side}_length']
    length = given or texts['train'].limits[f'max_{side}']
    for pairs in texts.values():
      longest = min(pairs.counts[side]['max'], pairs.limits[f'max_{side}'])
      if longest > length:
        raise ValueError(
          f'train.{side}_length={given} makes room for {length} tokens, but '
          f'{pairs.path} has an {side} of {longest}'
        )
    lengths[f'{side}_length'] = length
  if isinstance(model, seq2seq.Model):
    kind = objectives.PairTask
  else:
    kind = objectives.CausalPairTask
  return kind(
    model=model, rows=train.batch_size, dropout=train.dropout, **lengths
  )
