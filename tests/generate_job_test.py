"""The job `generate` on tiny models: texts before and after adapting."""

import json
import os

import pytest
import torch
import transformers

from configs import base
from tests import tiny
from tests import world as world_lib
from tttnn import jobs
from tttnn.corpus import tokenizer as tokenizer_lib

PROMPTS = ['The quick brown', '17 23 991', 'five boxing wizards', '']
MAX_TOKENS = 12
NEIGHBORS = 2


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """Models, prompts, and a file of three neighbours for each."""
  directory = tmp_path_factory.mktemp('world')
  lm, embedder = tiny.write_models(str(directory))
  ids = ['a', 1, 'c', 'empty']
  with open(directory / 'prompts.jsonl', 'w') as file:
    for doc_id, text in zip(ids, PROMPTS, strict=True):
      file.write(json.dumps({'text': text, 'doc_id': doc_id}) + '\n')
  texts = tiny.documents(3 * len(ids), seed=1)
  with open(directory / 'neighbors.jsonl', 'w') as file:
    for number, doc_id in enumerate([*ids, 0]):
      entries = [
        {'id': i, 'distance': i / 2, 'text': texts[(number + i) % len(texts)]}
        for i in range(3)
      ]
      file.write(json.dumps({'doc_id': doc_id, 'neighbors': entries}) + '\n')
  config = base.get_config()
  config.job = 'generate'
  config.model.path = lm
  config.embedder.path = embedder
  config.retrieval.replay = f'{directory}/neighbors.jsonl'
  config.retrieval.neighbors = NEIGHBORS
  config.ttt.learning_rate = 1e-2
  config.generate.input = f'{directory}/prompts.jsonl'
  config.generate.max_tokens = MAX_TOKENS
  return config


def run(world, output, **changes) -> list[dict]:
  """The rows that the job writes."""
  jobs.run(
    world_lib.changed(world, generate__output=str(output), **changes), ''
  )
  with open(output) as file:
    return [json.loads(line) for line in file]


@pytest.fixture(scope='module')
def rows(world, tmp_path_factory):
  return run(world, tmp_path_factory.mktemp('rows') / 'texts.jsonl')


def reference_texts(world, prompt, neighbors):
  """(before, after) by a plain loop over windows in PyTorch, greedily."""
  path = world.model.path
  model = transformers.GPT2LMHeadModel.from_pretrained(
    path, attn_implementation='eager'
  ).eval()  # Without dropout.
  tokenizer = tokenizer_lib.load(path)

  def encode(text):
    return tokenizer_lib.encode(tokenizer, [text])[0]

  @torch.no_grad()
  def write():
    ids = torch.tensor([encode(prompt) or [tokenizer.eos_token_id]])
    written = model.generate(
      ids,
      attention_mask=torch.ones_like(ids),
      do_sample=False,
      max_new_tokens=MAX_TOKENS,
      pad_token_id=tokenizer.eos_token_id,
    )[0, ids.shape[1] :]
    if written[-1] == tokenizer.eos_token_id:
      written = written[:-1]
    return tokenizer_lib.decode(tokenizer, written)

  before = write()
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=world.ttt.learning_rate, weight_decay=0.0
  )
  for text in neighbors:
    tokens = encode(text)
    for begin in range(0, len(tokens), 64):
      ids = torch.tensor([tokens[begin : begin + 64]])
      if ids.shape[1] > 1:
        optimizer.zero_grad()
        logits = model(ids).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
  return before, write()


def test_texts_are_those_of_a_loop_in_pytorch(world, rows):
  with open(world.retrieval.replay) as file:
    records = [json.loads(line) for line in file]
  for row, prompt, record in zip(rows, PROMPTS, records[:-1], strict=True):
    texts = [n['text'] for n in record['neighbors'][:NEIGHBORS]]
    before, after = reference_texts(world, prompt, texts)
    assert row == {
      'doc_id': record['doc_id'],
      'prompt': prompt,
      'before': before,
      'after': after,
      'neighbors': [{'id': 0, 'distance': 0.0}, {'id': 1, 'distance': 0.5}],
    }
    assert before != after


def test_base_writes_the_text_before(world, rows, tmp_path):
  found = run(
    world,
    tmp_path / 'texts.jsonl',
    method='base',
    retrieval__replay='',
    embedder__path='',
  )
  assert found == [{**row, 'after': None, 'neighbors': []} for row in rows]


def test_what_trains_and_remat_go_through(world, rows, tmp_path):
  changes = {'ttt__trainable': 'lora', 'model__remat': True}
  found = run(world, tmp_path / 'texts.jsonl', **changes)
  assert [row['before'] for row in found] == [row['before'] for row in rows]
  assert all(row['after'] != row['before'] for row in found)
  assert [row['after'] for row in found] != [row['after'] for row in rows]


def test_the_neighbors_are_those_of_the_prompt(world, tmp_path):
  corpus = tiny.write_jsonl(
    tmp_path / 'train.jsonl', tiny.documents(30, seed=1)
  )
  store = world_lib.changed(
    world,
    job='build',
    corpus__train=corpus,
    store__path=f'{tmp_path}/store',
    retrieval__replay='',
  )
  jobs.run(store, str(tmp_path / 'build'))
  queried = tmp_path / 'queried.jsonl'
  config = world_lib.changed(
    store,
    job='query',
    query__input=world.generate.input,
    query__output=str(queried),
  )
  jobs.run(config, '')
  searched = run(store, tmp_path / 'searched.jsonl', job='generate')
  replayed = run(
    world, tmp_path / 'replayed.jsonl', retrieval__replay=str(queried)
  )
  assert searched == replayed
  assert [len(row['neighbors']) for row in searched] == [NEIGHBORS] * 4


def test_a_rerun_goes_on_where_it_was(world, rows, tmp_path):
  output = tmp_path / 'texts.jsonl'
  assert run(world, output) == rows
  whole = output.read_bytes()
  lines = whole.splitlines(keepends=True)
  output.write_bytes(lines[0] + lines[1] + lines[2][:10])
  assert run(world, output) == rows
  assert output.read_bytes() == whole
  # All is done: not even the model is looked at, but for its digest.
  touched = output.stat().st_mtime_ns
  run(world, output)
  assert output.stat().st_mtime_ns == touched
  with pytest.raises(ValueError, match=r'ttt.learning_rate: 0.01 .* 0.5 now'):
    run(world, output, ttt__learning_rate=0.5)
  with pytest.raises(ValueError, match=r'generate.top_k: 0 there, 3 now'):
    run(world, output, generate__top_k=3)
  assert output.read_bytes() == whole


def test_the_seed_decides_and_the_company_does_not(world, tmp_path):
  drawn = {'generate__temperature': 1.0, 'generate__top_p': 0.9}
  first = run(world, tmp_path / 'a.jsonl', **drawn)
  assert run(world, tmp_path / 'b.jsonl', **drawn) == first
  other = run(world, tmp_path / 'c.jsonl', **drawn, seed=1)
  for row, another in zip(first, other, strict=True):
    assert row['before'] != another['before']
    assert row['after'] != another['after']
  with open(tmp_path / 'one.jsonl', 'w') as file:
    file.write(json.dumps({'text': PROMPTS[2], 'doc_id': 'c'}) + '\n')
  one = run(world, tmp_path / 'd.jsonl', generate__input=file.name, **drawn)
  assert one == first[2:3]


def test_one_prompt_is_shown_side_by_side(
  world, rows, tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '80')
  monkeypatch.chdir(tmp_path)
  config = world_lib.changed(world, generate__input='', generate__prompt='fox')
  jobs.run(config, '')
  lines = capsys.readouterr().out.splitlines()
  assert 'fox' in lines
  (top,) = [n for n, line in enumerate(lines) if line.startswith('before')]
  assert 'after 2 neighbours (0.0000 to 0.5000)' in lines[top]
  left, right = zip(
    *[line.split(' | ') for line in lines[top + 2 :]], strict=True
  )
  assert max(map(len, lines)) <= 80
  output = tmp_path / 'fox.jsonl'
  (row,) = run(config, output)
  for shown, written in ((left, row['before']), (right, row['after'])):
    assert ''.join(''.join(shown).split()) == ''.join(written.split())
  assert sorted(os.listdir(tmp_path)) == ['fox.config.json', 'fox.jsonl']
  config.method = 'base'
  capsys.readouterr()
  jobs.run(config, '')
  assert 'after' not in capsys.readouterr().out


def test_weights_that_diverge_give_no_text(world, rows, tmp_path, capsys):
  output = tmp_path / 'texts.jsonl'
  found = run(world, output, ttt__learning_rate=1e38)
  assert [row['after'] for row in found] == [None] * len(rows)
  assert [row['before'] for row in found] == [row['before'] for row in rows]
  config = world_lib.changed(world, ttt__learning_rate=1e38)
  jobs.run(config, '')
  assert 'the logits are not finite' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'generate__input': ''}, 'either generate.prompt or generate.input'),
    ({'generate__prompt': 'a'}, 'either generate.prompt or generate.input'),
    ({'generate__input': '/no/file.jsonl'}, '/no/file.jsonl'),
    ({'generate__output': '/tmp/texts.txt'}, 'does not end in .jsonl'),
    ({'generate__max_tokens': 0}, 'max_tokens=0'),
    ({'generate__max_tokens': 60}, "'a' has .*than the 4 .*=60 .* of 64"),
    ({'generate__temperature': -1.0}, 'temperature=-1.0'),
    ({'generate__top_p': 0.0}, 'top_p=0.0'),
    ({'method': 'knn'}, "method='knn'"),
    ({'model__path': ''}, 'model.path is empty'),
    ({'retrieval__replay': ''}, 'needs store.path'),
    ({'ttt__optimizer_state': 'carry'}, "optimizer_state='carry'"),
    ({'ttt__reset_weights': False}, 'reset_weights=False'),
    ({'mesh__data': 2}, 'mesh.data=2'),
  ],
)
def test_bad_input_is_refused(world, changes, message):
  with pytest.raises(ValueError, match=message):
    jobs.run(world_lib.changed(world, **changes), '')


def test_dry_run_prints_and_leaves_nothing(world, tmp_path, capsys):
  output = tmp_path / 'texts.jsonl'
  config = world_lib.changed(world, dry_run=True, generate__output=str(output))
  jobs.run(config, str(tmp_path / 'w'))
  printed = capsys.readouterr().out
  for word in ('documents       4', 'steps', 'memory', 'estimated time'):
    assert word in printed
  assert not list(tmp_path.iterdir())
