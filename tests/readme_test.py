"""What the README shows, run as it stands there."""

import os
import re

from configs import base
from tests import tiny
from tttnn import jobs

README = os.path.join(os.path.dirname(__file__), '..', 'README.md')


def test_the_python_of_the_readme_runs(tmp_path, capsys):
  lm, embedder = tiny.write_models(str(tmp_path))
  tiny.write_jsonl(tmp_path / 'train.jsonl', tiny.documents(20))
  config = base.get_config()
  config.job = 'build'
  config.corpus.train = f'{tmp_path}/train.jsonl'
  config.embedder.path = embedder
  config.store.path = f'{tmp_path}/store'
  jobs.run(config, f'{tmp_path}/build')
  with open(README, encoding='utf-8') as file:
    (code,) = re.findall(r'```python\n(.*?)```', file.read(), flags=re.S)
  for shown, here in (
    ('/tmp/lm/export', lm),
    ('/tmp/embedder/export', embedder),
    ('/tmp/store', config.store.path),
  ):
    assert shown in code
    code = code.replace(shown, here)
  capsys.readouterr()
  names = {}
  exec(compile(code, 'README.md', 'exec'), names)
  outcome = names['outcome']
  assert outcome.at == [0, 1, 5]
  assert len(set(outcome.log_likelihood)) == 3
  assert '---' in capsys.readouterr().out
