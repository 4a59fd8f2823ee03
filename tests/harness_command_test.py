"""The command of lm-evaluation-harness, with tasks of every kind."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('lm_eval', reason='lm-eval, extra [lm-eval], is missing')

from tests import harness_world
from tttnn import harness

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@pytest.fixture(scope='module')
def arguments(world, tmp_path_factory):
  directory = tmp_path_factory.mktemp('harness')
  return harness_world.make_arguments(world, directory)


def write_tasks(directory):
  """A task of each kind, over files beside it; returns the documents."""
  choices = [
    {'question': 'The quick brown', 'choices': ['fox', 'dog', 'box']},
    {'question': 'Pack my', 'choices': ['vow', 'box', 'jugs']},
    {'question': '17 23', 'choices': ['991', 'liquor', '4']},
  ]
  records = {
    'choice': [{**r, 'answer': n % 3} for n, r in enumerate(choices)],
    'rolling': [{'text': text} for text in harness_world.TEXTS if text],
    'last_word': [{'text': 'lazy dog', 'word': 'jumps'}] * 3,
    'text': [{'prompt': 'The quick brown', 'target': 'fox'}],
  }
  tasks = {
    'choice': """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
""",
    'rolling': """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
  - metric: word_perplexity
""",
    'last_word': """
output_type: loglikelihood
doc_to_text: "{{text}}"
doc_to_target: " {{word}}"
metric_list:
  - metric: perplexity
""",
    'text': """
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{target}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 8
metric_list:
  - metric: exact_match
""",
  }
  for name, task in tasks.items():
    data = directory / f'{name}.json'
    lines = [json.dumps(record) + '\n' for record in records[name]]
    data.write_text(''.join(lines))
    about = f"""task: tiny_{name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
"""
    (directory / f'{name}.yaml').write_text(about + task.lstrip())
  return records


@pytest.mark.slow
def test_the_command_runs_tasks_of_every_kind(world, arguments, tmp_path):
  adapted = harness.Harness(method='ttt', **arguments)
  directory = tmp_path / 'tasks'
  directory.mkdir()
  records = write_tasks(directory)
  command = [sys.executable, '-m', 'tttnn.harness', '--model', 'tttnn']
  command += ['--include_path', str(directory), '--output_path', tmp_path]
  command += ['--tasks', ','.join(f'tiny_{name}' for name in records)]
  command += ['--log_samples', '--model_args', 'method=ttt']
  chosen = arguments | {'store.search': 'faiss'}
  command += [f'{key}={value}' for key, value in chosen.items()]
  offline = {'HF_DATASETS_OFFLINE': '1', 'HF_HOME': str(tmp_path / 'hf')}
  subprocess.run(command, cwd=ROOT, env=os.environ | offline, check=True)
  (path,) = tmp_path.glob('**/results_*.json')
  with open(path) as file:
    written = json.load(file)
  results = written['results']

  hits = []
  for record in records['choice']:
    pairs = [(record['question'], f' {one}') for one in record['choices']]
    values = [value for value, _ in harness_world.likelihoods(adapted, pairs)]
    hits.append(int(np.argmax(values)) == record['answer'])
  assert results['tiny_choice']['acc,none'] == np.mean(hits)

  texts = [record['text'] for record in records['rolling']]
  nats = -sum(harness_world.rolling(adapted, texts))
  num_bytes = sum(len(text.encode()) for text in texts)
  bits = nats / num_bytes / math.log(2)
  found = results['tiny_rolling']['bits_per_byte,none']
  assert found == pytest.approx(bits, rel=1e-5)
  # As `evaluate` counts words.
  rows = harness_world.evaluated(world, arguments, tmp_path, 'ttt')
  rows = [row for row in rows if row['num_bytes']]
  words = sum(row['num_words'] for row in rows)
  nats = -sum(row['log_likelihood'][-1] for row in rows)
  found = results['tiny_rolling']['word_perplexity,none']
  assert found == pytest.approx(math.exp(nats / words), rel=1e-5)

  ((value, _),) = harness_world.likelihoods(adapted, [('lazy dog', ' jumps')])
  found = results['tiny_last_word']['perplexity,none']
  assert found == pytest.approx(math.exp(-value), rel=1e-5)
  assert results['tiny_last_word']['perplexity_stderr,none'] < 1e-3

  (path,) = tmp_path.glob('**/samples_tiny_text_*.jsonl')
  sample = json.loads(path.read_text())
  (text,) = harness_world.texts_of(
    adapted, ['The quick brown'], max_gen_toks=8, until='\n'
  )
  assert sample['resps'] == [[text]]
  about = written['config']['tttnn']
  assert about['config']['retrieval']['neighbors'] == harness_world.NEIGHBORS
  assert set(about) >= {'model', 'neighbors', 'versions', 'git_revision'}
