"""The windows in which a store of tokens reads its texts."""

import numpy as np
import pytest

from tests import keys_test
from tests import model_keys_test
from tests import tiny
from tests import toy_keys
from tttnn.datastore import keys as keys_lib

EOT, CONTEXT = 0, 64


@pytest.mark.parametrize('block', [1, 7, 1000])
def test_a_store_is_read_in_the_windows_it_says(tmp_path, block):
  texts = ['a text of some length, in words', '', 'b', 'eight by']
  path = tiny.write_jsonl(tmp_path / 'a.jsonl', texts)
  arguments = {'window': 6, 'stride': 2, 'block': block}
  store = toy_keys.run(tmp_path / 's', [path], **arguments)
  expected = []
  for text in texts:
    ids = [256, *text.encode()]
    for at in range(1, len(ids)):  # The window that ends there, or behind.
      begin = max(0, -(-(at + 1 - 6) // 2) * 2)
      expected.append(toy_keys.key(ids[begin:at]))
  found = store.gather(np.arange(len(expected)))
  np.testing.assert_array_equal(found, np.float32(expected))
  assert store.manifest.rows == len(expected)
  plain = toy_keys.run(tmp_path / 'plain', [path], block=block)
  assert plain.fingerprint() != store.fingerprint()
  for changes, message in (
    ({'stride': 3}, 'stride is 2 there, 3 now'),
    ({'window': 9}, 'store.window=9 is not from 1 to 8'),
    ({'stride': 6}, 'store.stride=6 is not from 0 to 5'),
  ):
    with pytest.raises(ValueError, match=message):
      toy_keys.run(tmp_path / 's', [path], **arguments | changes)


def test_keys_of_sliding_windows_are_those_of_torch(tmp_path):
  model, params, reference = tiny.causal('gpt2', CONTEXT)
  text = 'x' + 'How vexingly quick daft zebras jump! ' * 4
  path = tiny.write_jsonl(tmp_path / 'a.jsonl', [text])
  keys = keys_lib.Keys(model, params, keys_test.Bytes(), 'ffn_input')
  store = toy_keys.run(
    tmp_path / 's', [path], keys, window=20, stride=8, block=50
  )
  ids = [EOT, *keys_test.Bytes()([text])['input_ids'][0]]
  read = model_keys_test.hooked(reference, 'ffn_input')
  for at in (1, 19, 20, 27, 28, 99, len(ids) - 1):
    begin = max(0, -(-(at + 1 - 20) // 8) * 8)
    np.testing.assert_allclose(
      store.gather([at - 1])[0],
      read(ids[begin:at])[-1],
      rtol=2e-3,
      atol=2e-3,
    )
