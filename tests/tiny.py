"""Tiny models and their PyTorch counterparts, made in memory."""

import functools
import json
import os

import jax
import numpy as np
import tokenizers
import torch
import transformers

from tttnn.corpus import tokenizer as tokenizer_lib
from tttnn.models import hf

VOCABULARY = 97


@functools.lru_cache
def _causal_directory(kind: str, context: int, seed: int) -> str:
  import tempfile

  torch.manual_seed(seed)
  directory = tempfile.mkdtemp(prefix='tttnn-test-')
  if kind == 'gpt2':
    config = transformers.GPT2Config(
      vocab_size=VOCABULARY,
      n_embd=32,
      n_layer=2,
      n_head=4,
      n_positions=context,
      initializer_range=0.2,
      resid_pdrop=0.0,
      embd_pdrop=0.0,
      attn_pdrop=0.0,
    )
    reference = transformers.GPT2LMHeadModel(config)
  else:
    config = transformers.GPTNeoConfig(
      vocab_size=VOCABULARY,
      hidden_size=32,
      num_layers=2,
      num_heads=4,
      max_position_embeddings=context,
      attention_types=[[['global', 'local'], 1]],
      window_size=16,
      initializer_range=0.2,
      resid_dropout=0.0,
      embed_dropout=0.0,
      attention_dropout=0.0,
    )
    reference = transformers.GPTNeoForCausalLM(config)
  reference.save_pretrained(directory)
  return directory


def causal(kind: str, context: int, seed: int = 0):
  """(model, params, PyTorch model in eval mode) with the same weights."""
  directory = _causal_directory(kind, context, seed)
  model, params = hf.load(directory)
  classes = {
    'gpt2': transformers.GPT2LMHeadModel,
    'gpt_neo': transformers.GPTNeoForCausalLM,
  }
  reference = classes[kind].from_pretrained(
    directory, attn_implementation='eager'
  )
  return model, jax.device_put(params), reference.eval()


@functools.lru_cache
def seq2seq(feed_forward: str = 'relu', tied: bool = True):
  """(model, params, PyTorch T5 in eval mode) with the same weights."""
  import tempfile

  torch.manual_seed(0)
  config = transformers.T5Config(
    vocab_size=VOCABULARY,
    d_model=24,
    d_kv=5,  # Heads need not make up the width.
    d_ff=40,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=4,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    layer_norm_epsilon=1e-2,
    feed_forward_proj=feed_forward,
    tie_word_embeddings=tied,
    dropout_rate=0.0,
    pad_token_id=0,
    eos_token_id=1,
    decoder_start_token_id=3,
    attn_implementation='eager',
  )
  reference = transformers.T5ForConditionalGeneration(config).eval()
  if not tied:  # `transformers` ties them until they differ.
    weight = 0.4 * torch.randn(VOCABULARY, 24)
    reference.lm_head.weight = torch.nn.Parameter(weight)
  with torch.no_grad():
    reference.shared.weight *= 0.3  # Or it would say one token for ever.
    for name, parameter in reference.named_parameters():
      scale = 1.0 if 'relative' in name else 0.2
      parameter += scale * torch.randn_like(parameter)
  directory = tempfile.mkdtemp(prefix='tttnn-test-')
  reference.save_pretrained(directory)
  model, params = hf.load(directory, role='seq2seq')
  return model, jax.device_put(params), reference


@torch.no_grad()
def rolling_log_likelihood(
  reference, tokens, context: int, start: int
) -> float:
  """The definition of the rolling log-likelihood, one window at a time."""
  total = np.float64(0)
  done = 0
  while done < len(tokens):
    if done == 0:
      end = min(context, len(tokens))
      inputs = [start] + list(tokens[: end - 1])
    else:
      end = min(done + context, len(tokens))
      inputs = list(tokens[end - 1 - context : end - 1])
    logits = reference(torch.tensor([inputs])).logits[0].float()
    scores = torch.log_softmax(logits, dim=-1)
    targets = list(tokens[done:end])
    first = len(inputs) - len(targets)
    total += sum(
      float(scores[first + i, target]) for i, target in enumerate(targets)
    )
    done = end
  return float(total)


TEXT = """
The quick brown fox jumps over the lazy dog. Pack my box with five dozen
liquor jugs. How vexingly quick daft zebras jump! Sphinx of black quartz,
judge my vow. The five boxing wizards jump quickly.
"""


def documents(count: int, seed: int = 0) -> list[str]:
  """Texts of two kinds, prose and numbers, of several lengths."""
  rng = np.random.default_rng(seed)
  words = TEXT.split()
  texts = []
  for i in range(count):
    size = int(rng.integers(5, 120))
    if i % 2:
      texts.append(' '.join(rng.choice(words, size)))
    else:
      texts.append(' '.join(map(str, rng.integers(0, 1000, size))))
  return texts


def write_jsonl(path, texts, domains=('prose', 'numbers')) -> str:
  """A Pile-style file; returns its path."""
  with open(path, 'w', encoding='utf-8') as file:
    for i, text in enumerate(texts):
      meta = {'pile_set_name': domains[(i + 1) % len(domains)]}
      file.write(json.dumps({'text': text, 'meta': meta}) + '\n')
  return str(path)


def write_models(directory) -> tuple[str, str]:
  """(a GPT-2, a RoBERTa) as Hugging Face directories with tokenizers."""
  lm = os.path.join(directory, 'lm')
  embedder = os.path.join(directory, 'embedder')
  texts = documents(200)
  torch.manual_seed(0)
  for kind, path in (('gpt2', lm), ('roberta', embedder)):
    tokenizer = tokenizer_lib.train(texts, path, vocab_size=300, kind=kind)
    if kind == 'gpt2':
      reference = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
          vocab_size=len(tokenizer),
          n_embd=32,
          n_layer=2,
          n_head=4,
          n_positions=64,
          bos_token_id=0,
          eos_token_id=0,
        )
      )
    else:
      reference = transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(
          vocab_size=len(tokenizer),
          hidden_size=32,
          num_hidden_layers=1,
          num_attention_heads=4,
          intermediate_size=64,
          max_position_embeddings=66,
          type_vocab_size=1,
          bos_token_id=0,
          pad_token_id=1,
          eos_token_id=2,
        )
      )
    reference.save_pretrained(path)
  return lm, embedder


def t5_tokenizer(directory: str):
  """A small T5 tokenizer, kept in `directory`."""
  unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
  unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  unigram.decoder = tokenizers.decoders.Metaspace()
  unigram.train_from_iterator(
    documents(30),
    tokenizers.trainers.UnigramTrainer(
      vocab_size=90,
      special_tokens=['<pad>', '</s>', '<unk>'],
      unk_token='<unk>',
      show_progress=False,
    ),
  )
  roles = {'pad_token': '<pad>', 'eos_token': '</s>', 'unk_token': '<unk>'}
  made = transformers.PreTrainedTokenizerFast(tokenizer_object=unigram, **roles)
  made.save_pretrained(directory)
  path = os.path.join(directory, 'tokenizer_config.json')
  with open(path, encoding='utf-8') as file:
    config = json.load(file)
  config |= {'tokenizer_class': 'T5Tokenizer', 'extra_ids': 0}
  with open(path, 'w', encoding='utf-8') as file:
    json.dump(config, file)
  return tokenizer_lib.load(directory)
