"""Train a RoBERTa with masked LM, to embed with.

python -m tttnn.main --config=configs/train_embedder.py \
  --workdir=/tmp/embedder \
  --config.corpus.train='/tmp/corpus/text/train/*.jsonl' \
  --config.corpus.validation=/tmp/corpus/text/validation.jsonl \
  --config.train.tokenizer=/tmp/corpus/tokenizers/roberta

To go on from a checkpoint instead: --config.train.init=DIRECTORY_OR_HUB_ID

train_embedder.py:hardt_sun is the recipe of Hardt & Sun's embedder (ICLR 2024),
RoBERTa-large on the Pile, on whatever devices there are:

python -m tttnn.main --config=configs/train_embedder.py:hardt_sun \
  --workdir=/data/embedder --config.corpus.train='/data/pile/train/*.jsonl' \
  --config.corpus.validation=/data/pile/val.jsonl
"""

from configs import base


def get_config(variant=''):
  config = base.get_config()
  config.job = 'train'
  config.train.objective = 'masked'
  config.train.model_type = 'roberta'
  if variant == 'hardt_sun':
    _hardt_sun(config)
  elif variant:
    raise ValueError(
      f'train_embedder.py:{variant}: the variant is hardt_sun, or none'
    )
  return config


def _hardt_sun(config) -> None:
  """As its paper and code have it; where both are silent, it says so."""
  config.seed = 42
  config.mesh.data = 0  # There eight devices.
  # Its job file names the base model, what was published is large.
  config.train.init = 'FacebookAI/roberta-large'
  config.train.sequence_length = 512
  # Rows are packed here, where there each is a document, cut off or padded. So
  # padding is never predicted; nor are <s> and </s>, which there could be.
  config.train.masking = 'always'
  config.train.mask_probability = 0.15
  # 1.7 million steps of 16 rows on each of eight devices, "about one pass" over
  # the Pile. Fewer devices need train.accumulation to hold as many rows.
  config.train.steps = 1_700_000
  config.train.batch_size = 128
  config.train.learning_rate = 2e-5
  config.train.warmup_steps = 0
  config.train.schedule = 'step'
  config.train.decay_every = 1_500_000
  config.train.decay_factor = 0.1
  config.train.weight_decay = 0.01  # The default of torch's AdamW.
  # Silent about clipping, at 1.0 by default in the trainer of `transformers`,
  # and about dropout, which is on there, at the model's own rates.
  config.train.clip_norm = 1.0
  config.train.dropout = True
  config.train.log_every = 100
  config.train.checkpoint_every = 5000
  config.train.eval_every = 5000
  config.train.eval_batches = 64  # There all of val.jsonl.
  # Silent about how its stream of documents was shuffled: here rows are mixed
  # within 4 GiB of text, and training begins when these are tokenized.
  config.train.window = 16
