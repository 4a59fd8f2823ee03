"""The causal LM of a run: tokenizer, parameters and compiled pieces."""

import dataclasses

import jax

from tttnn import checkpoint
from tttnn import device
from tttnn import settings
from tttnn.corpus import documents as documents_lib
from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.methods import ttt
from tttnn.scoring import rolling


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """The causal LM of a run with what belongs to it.

  Attributes:
    tokenizer: its tokenizer.
    params: on the device.
    program: the compiled pieces.
    context: in tokens.
    start: the id that stands before a document.
  """

  tokenizer: object
  params: object
  program: ttt.Program
  context: int
  start: int

  def case(self, document, config) -> documents_lib.Case:
    """The document under the protocol of the run."""
    return documents_lib.apply_protocol(
      document,
      self.tokenizer,
      protocol=config.eval.protocol,
      prefix=config.eval.split_prefix or self.context,
    )

  def scored(self, case: documents_lib.Case) -> list[rolling.Window]:
    """The windows in which a document is scored."""
    return rolling.windows(case.tokens, self.context, self.start)

  def trained(self, texts: list[str]) -> list[list[list[int]]]:
    """The training windows of each neighbour's text."""
    return [
      ttt.windows(tokens, self.program.settings)
      for tokens in tokenizer_lib.encode(self.tokenizer, texts)
    ]


def load(config) -> LanguageModel:
  """From the sections `model` and `ttt` of the config.

  Raises:
    ValueError: if model, tokenizer and settings do not go together.
  """
  if not config.model.path:
    raise ValueError(
      'model.path is empty: name a Hugging Face directory, a hub id or Orbax '
      'checkpoints'
    )
  path, revision = config.model.path, config.model.revision
  dtype = device.compute_dtype(config.model.dtype)
  model, params = checkpoint.load_model(path, revision=revision, dtype=dtype)
  tokenizer = tokenizer_lib.load(path, revision)
  if tokenizer.eos_token_id is None or len(tokenizer) > model.vocab_size:
    raise ValueError(
      f'{path}: the tokenizer has {len(tokenizer)} ids and end-of-text id '
      f'{tokenizer.eos_token_id}, the model has {model.vocab_size} ids'
    )
  training = _training(config.ttt, model.context)
  return LanguageModel(
    tokenizer=tokenizer,
    params=jax.device_put(params),
    program=ttt.compile_program(model.log_likelihood, training, model.context),
    context=model.context,
    start=tokenizer.eos_token_id,
  )


def _training(section, context: int) -> ttt.Settings:
  """The section `ttt` with its zeros resolved."""
  values = settings.flatten(section)
  values['max_length'] = values['max_length'] or context
  values['stride'] = values['stride'] or values['max_length']
  if values['max_length'] > context:
    raise ValueError(
      f'ttt.max_length={values["max_length"]} exceeds the {context} positions '
      'of the model'
    )
  return ttt.Settings(**values)
