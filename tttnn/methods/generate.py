"""Text that a language model goes on with, token by token.

Greedily, or drawn from the model's distribution, which a temperature sharpens
and which is cut to its k likeliest tokens (Fan et al., ACL 2018, section 5.4)
or to the likeliest that make up p of it (Holtzman et al., ICLR 2020, section
3.1), in this order and by the rules of `transformers`' logits processors.

A whole text is one compiled program, unless the distribution of each token is
to be changed by what is looked up: then a step is, and the loop is Python's.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tttnn.corpus import buckets
from tttnn.methods import decode as decode_lib


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is chosen; fields as `generate` of `configs/base.py`."""

  max_tokens: int
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if self.max_tokens < 1:
      raise ValueError(
        f'generate.max_tokens={self.max_tokens} must be 1 or more'
      )
    if self.temperature < 0:
      raise ValueError(
        f'generate.temperature={self.temperature} must be 0 (greedy) or more'
      )
    if self.top_k < 0:
      raise ValueError(f'generate.top_k={self.top_k} must be 0 (all) or more')
    if not 0 < self.top_p <= 1:
      raise ValueError(
        f'generate.top_p={self.top_p} must be above 0 and at most 1 (all)'
      )


def warp(logits_BxV: jax.Array, sampling: Sampling) -> jax.Array:
  """Logits at a temperature above 0, those that are cut off being -inf."""
  logits_BxV = logits_BxV / sampling.temperature
  entries = logits_BxV.shape[-1]
  if not sampling.top_k and sampling.top_p == 1:
    return logits_BxV
  order_BxV = jnp.argsort(logits_BxV, axis=-1)  # The least likely first.
  sorted_BxV = jnp.take_along_axis(logits_BxV, order_BxV, axis=-1)
  cut_BxV = jnp.zeros_like(order_BxV, bool)
  if sampling.top_k:
    least = max(0, entries - sampling.top_k)
    cut_BxV = sorted_BxV < sorted_BxV[:, least, None]
  if sampling.top_p < 1:
    kept_BxV = jnp.where(cut_BxV, -jnp.inf, sorted_BxV)
    mass_BxV = jnp.cumsum(jax.nn.softmax(kept_BxV, axis=-1), axis=-1)
    cut_BxV |= mass_BxV <= 1 - sampling.top_p
  cut_BxV = cut_BxV.at[:, -1].set(False)
  cut_BxV = jnp.put_along_axis(
    cut_BxV, order_BxV, cut_BxV, axis=-1, inplace=False
  )
  return jnp.where(cut_BxV, -jnp.inf, logits_BxV)


def check(
  prompts: Mapping[object, Sequence[int]], context: int, max_tokens: int
) -> None:
  """Raises ValueError for a prompt that is empty or leaves no room to go on.

  Args:
    prompts: tokens of each, by the name that the error gives it.
    context: of the model, in tokens.
    max_tokens: of the text that follows a prompt.
  """
  room = context - max_tokens
  for name, prompt in prompts.items():
    if not prompt:
      raise ValueError(f'prompt {name!r} has no tokens to go on from')
    if len(prompt) > room:
      raise ValueError(
        f'prompt {name!r} has {len(prompt)} tokens, more than the {room} that '
        f'generate.max_tokens={max_tokens} leaves of a context of {context}'
      )


def choose(
  logits_BxV: jax.Array, keys_B: jax.Array, sampling: Sampling
) -> jax.Array:
  """The next token of each row, [B]; each key draws for its row alone."""
  if sampling.temperature == 0:
    return jnp.argmax(logits_BxV, axis=-1)
  return jax.vmap(jax.random.categorical)(keys_B, warp(logits_BxV, sampling))


def compile_writer(
  init_cache: Callable,
  decode: Callable,
  sampling: Sampling,
  *,
  context: int,
  end: int,
) -> Callable[..., list[list[int] | None]]:
  """Compiles, at first use, a writer of texts.

  Args:
    init_cache: (rows, length) -> an empty cache for texts of up to `length`
      tokens.
    decode: (params, tokens_BxT, cache, lengths_B=None) -> (logits [B, V] of
      what follows the last of a row's tokens, cache with the tokens).
    sampling: how a token is chosen.
    context: of the model, in tokens.
    end: the end-of-text id, which ends a text.

  Returns:
    (params, prompts, keys_B) -> the tokens that each prompt goes on with, at
    most `max_tokens`, without the end-of-text; None where the model's logits
    are not finite. The n-th token of a row is drawn with the row's key and n:
    what a prompt gives depends, up to rounding, on the prompt and its key, and
    not on its company. Raises what `check` raises.
  """

  write = _program(init_cache, decode, sampling, context, end)

  def write_all(params, prompts: Sequence[Sequence[int]], keys_B):
    padded = _padded(prompts, context, sampling)
    return _texts(end, write(params, *padded, keys_B))

  return write_all


def compile_stepwise_writer(
  init_cache: Callable,
  decode: Callable,
  sampling: Sampling,
  *,
  context: int,
  end: int,
) -> Callable[..., list[list[int] | None]]:
  """As `compile_writer`, but each token's distribution may be changed.

  Args:
    init_cache: as of `compile_writer`.
    decode: as there, but with the key [B, D] of each row's last token between
      the logits and the cache.
    sampling: likewise.
    context: likewise.
    end: likewise.

  Returns:
    (params, prompts, keys_B, adjust) -> the texts as of `compile_writer`, of
    tokens chosen by the log-probabilities that `adjust` gives as it does for
    `decode.compile_decoder`; of `Beams`, tokens_R is a prompt's last token at
    step 0. None also where one of them is not a number.
  """

  @jax.jit
  def begin(params, tokens_BxT, lengths_B):
    rows, tokens = tokens_BxT.shape
    cache = init_cache(rows, min(context, tokens + sampling.max_tokens))
    return decode(params, tokens_BxT, cache, lengths_B)

  @functools.partial(jax.jit, donate_argnums=2)
  def advance(params, token_B, cache):
    return decode(params, token_B[:, None], cache)

  @jax.jit
  def take(step, logits_BxV, log_p_BxV, keys_B, written):
    fine_B = jnp.all(jnp.isfinite(logits_BxV), axis=-1)
    fine_B &= ~jnp.any(jnp.isnan(log_p_BxV), axis=-1)
    return _take(step, log_p_BxV, fine_B, keys_B, written, sampling, end)

  def write(params, prompts, keys_B, adjust: decode_lib.Adjust):
    tokens_BxT, lengths_B = _padded(prompts, context, sampling)
    token_B = np.array([prompt[-1] for prompt in prompts])
    row_B = np.arange(len(prompts))
    written = _nothing(len(prompts), sampling, end)
    logits_BxV, key_BxD, cache = begin(params, tokens_BxT, lengths_B)
    for step in range(sampling.max_tokens):
      if step:
        logits_BxV, key_BxD, cache = advance(params, token_B, cache)
      beams = decode_lib.Beams(
        step, row_B, np.asarray(token_B), np.asarray(written.done_B)
      )
      log_p_BxV = adjust(logits_BxV, key_BxD, beams)
      token_B, written = take(step, logits_BxV, log_p_BxV, keys_B, written)
      if np.all(written.done_B):
        break
    return _texts(end, written)

  return write


class _Written(NamedTuple):
  """The texts so far, which have ended, which the model had numbers for."""

  text_BxN: jax.Array
  done_B: jax.Array
  finite_B: jax.Array


def _padded(prompts, context: int, sampling: Sampling):
  """(tokens_BxT, lengths_B) of prompts that have room to go on."""
  check(dict(enumerate(prompts)), context, sampling.max_tokens)
  size = buckets.padded(max(map(len, prompts)), context)
  tokens_BxT = np.zeros((len(prompts), size), np.int32)
  for row, prompt in enumerate(prompts):
    tokens_BxT[row, : len(prompt)] = prompt
  return tokens_BxT, np.array([len(prompt) for prompt in prompts], np.int32)


def _texts(end: int, written: _Written) -> list[list[int] | None]:
  text_BxN, _, finite_B = jax.device_get(written)
  return [
    _before(end, text.tolist()) if finite else None
    for text, finite in zip(text_BxN, finite_B, strict=True)
  ]


def _nothing(rows: int, sampling: Sampling, end: int) -> _Written:
  text_BxN = jnp.full((rows, sampling.max_tokens), end)
  return _Written(text_BxN, jnp.zeros(rows, bool), jnp.ones(rows, bool))


def _take(
  step, logits_BxV, fine_B, keys_B, written: _Written, sampling, end
) -> tuple[jax.Array, _Written]:
  """The token of a step, and what is written with it."""
  text_BxN, done_B, finite_B = written
  key_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)
  token_B = choose(logits_BxV, key_B, sampling)
  finite_B &= done_B | fine_B
  token_B = jnp.where(done_B | ~finite_B, end, token_B)
  text_BxN = text_BxN.at[:, step].set(token_B)
  return token_B, _Written(text_BxN, done_B | (token_B == end), finite_B)


def _program(init_cache, decode, sampling: Sampling, context: int, end: int):
  """(params, tokens_BxT, lengths_B, keys_B) -> what is written."""

  @jax.jit
  def write(params, tokens_BxT, lengths_B, keys_B):
    rows, tokens = tokens_BxT.shape

    def take(step, logits_BxV, written):
      fine_B = jnp.all(jnp.isfinite(logits_BxV), axis=-1)
      return _take(step, logits_BxV, fine_B, keys_B, written, sampling, end)

    def unfinished(state):
      step, _, (_, written) = state
      return (step < sampling.max_tokens) & ~jnp.all(written.done_B)

    def advance(state):
      step, cache, (token_B, written) = state
      # Rows that are done read on: the cache has room for all that is written.
      logits_BxV, cache = decode(params, token_B[:, None], cache)
      return step + 1, cache, take(step, logits_BxV, written)

    cache = init_cache(rows, min(context, tokens + sampling.max_tokens))
    logits_BxV, cache = decode(params, tokens_BxT, cache, lengths_B)
    begun = take(0, logits_BxV, _nothing(rows, sampling, end))
    state = jax.lax.while_loop(unfinished, advance, (1, cache, begun))
    _, _, (_, written) = state
    return written

  return write


def _before(end: int, tokens: list[int]) -> list[int]:
  return tokens[: tokens.index(end)] if end in tokens else tokens
