"""The main job on the built-in corpus, from text to page.

bash launch/quickstart.sh /tmp/quickstart

which sets everything up and then runs

python -m tttnn.main --config=configs/quickstart.py --workdir=/tmp/quickstart

quickstart.py:short takes less of everything, to see that all parts work.
"""

from configs import base


def get_config(variant=''):
  config = base.get_config()
  if variant not in ('', 'short'):
    raise ValueError(f'quickstart.py:{variant}: the only variant is short')
  config.job = 'pipeline'
  config.builtin.max_bytes = 4_000_000
  config.builtin.vocab_size = 2048
  config.corpus.train = '{workdir}/corpus/text/train/*.jsonl'
  config.corpus.validation = '{workdir}/corpus/text/validation.jsonl'
  config.train.layers = 4
  config.train.width = 128
  config.train.heads = 4
  config.train.context = 256
  # Few tokens a step: many steps teach a small model more than large ones.
  config.train.batch_size = 4
  config.train.warmup_steps = 20
  config.train.checkpoint_every = 100
  config.model.path = '{workdir}/lm/export'
  config.embedder.path = '{workdir}/embedder/export'
  config.store.path = '{workdir}/store'
  config.build.block = 256
  config.method = 'ttt'
  config.retrieval.neighbors = 10
  config.ttt.learning_rate = 2e-4  # Chosen on validation documents.
  config.eval.documents = '{workdir}/corpus/text/test.jsonl'
  config.eval.protocol = 'split'
  config.eval.at = '0,1,2,5,10'
  config.eval.limit = 49
  config.eval.save_tokens = True  # For the page.
  config.report.title = 'Test-time training on the standard library'
  embedder_steps, lm_steps = 300, 160
  if variant == 'short':
    config.builtin.max_bytes = 1_000_000
    config.builtin.vocab_size = 1024
    config.train.layers = 2
    config.train.width = 64
    config.train.context = 128
    config.retrieval.neighbors = 3
    config.eval.at = 'all'
    config.eval.limit = 14
    embedder_steps, lm_steps = 20, 40
  config.pipeline.steps = (
    ('corpus', {'job': 'corpus'}),
    (
      'embedder',
      {
        'job': 'train',
        'train.objective': 'masked',
        'train.model_type': 'roberta',
        # Wide, shallow and slow tells texts apart soonest: the first few
        # hundred larger steps make all embeddings alike.
        'train.learning_rate': 1e-4,
        'train.layers': 1,
        'train.width': 2 * config.train.width,
        'train.tokenizer': '{workdir}/corpus/tokenizers/roberta',
        'train.steps': embedder_steps,
      },
    ),
    (
      'lm',
      {
        'job': 'train',
        'train.objective': 'causal',
        'train.tokenizer': '{workdir}/corpus/tokenizers/gpt2',
        'train.learning_rate': 2e-3,
        'train.steps': lm_steps,
      },
    ),
    ('build', {'job': 'build'}),
    ('', {'job': 'evaluate'}),
    ('', {'job': 'report'}),
  )
  return config
