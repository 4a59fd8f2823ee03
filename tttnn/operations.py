"""Floating-point operations that a training step has to do.

As Chowdhery et al., "PaLM" (2022, appendix B) count those of a model: nothing
that is computed twice, as with model.remat. Padding of pairs counts, as in
their tokens a second.
"""

import re

import jax

from tttnn import objectives

# What is looked up, not multiplied; the vocabulary's comes in as the head.
_TABLE = r'(wte|wpe|shared|embeddings\..*|.*relative_attention_bias)\.weight'
_VOCABULARY = r'(wte|shared|embeddings\.word_embeddings)\.weight'
_HEAD = r'lm_head\..*'
_DECODER = r'decoder\..*'
_CROSS_INPUT = r'decoder\..*EncDecAttention\.[kv]\.weight'


def of_step(task: objectives.Task, params) -> float:
  """Of all rows of a step: forward, and twice as much for the gradient.

  A product with P parameters takes 2 P a token. Attention of T tokens to each
  other takes 4 T^2 A a layer, A the width of all heads, and half of that where
  each sees only those before it (also in GPT-Neo's local layers).
  """
  if isinstance(task, objectives.PairTask):
    return 3.0 * task.rows * _seq2seq(task, params)
  model, length = task.model, task.length
  causal = model.architecture.CAUSAL
  attention = (2 if causal else 4) * length**2 * model.width
  predicted = length if causal else task.chosen
  forward = (
    2 * length * _count(params, without=(_TABLE, _HEAD))
    + 2 * predicted * _head(params)
    + model.config.layers * attention
  )
  return 3.0 * task.rows * forward


def _seq2seq(task: objectives.PairTask, params) -> float:
  source, target = task.input_length, task.output_length
  shape = task.model.config
  width = shape.num_heads * shape.d_kv
  encoder = _count(params, without=(_TABLE, _HEAD, _DECODER))
  cross = _count(params, _CROSS_INPUT)
  decoder = _count(params, _DECODER, without=(_TABLE, _CROSS_INPUT))
  attention = 4 * shape.num_layers * source**2 + shape.num_decoder_layers * (
    2 * target**2 + 4 * source * target
  )
  return (
    2 * source * (encoder + cross)
    + 2 * target * (decoder + _head(params))
    + attention * width
  )


def _head(params) -> int:
  """Numbers in the matrices that lead to the vocabulary's logits."""
  own = _count(params, _HEAD)
  # Tied to the table, it is not there a second time.
  tied = 'lm_head' not in params or 'weight' not in params['lm_head']
  return own + (_count(params, _VOCABULARY) if tied else 0)


def _count(params, pattern: str = '.*', without: tuple[str, ...] = ()) -> int:
  """Numbers in the matrices whose dotted path fits."""
  total = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    left_out = any(re.fullmatch(other, name) for other in without)
    if leaf.ndim == 2 and re.fullmatch(pattern, name) and not left_out:
      total += leaf.size
  return total
