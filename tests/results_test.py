"""The results file: resumed, torn, of another run."""

import json
import math

import pytest

from tttnn.scoring import results


def rows_of(workdir):
  return results.read(str(workdir / 'results.jsonl'))[0]


def test_rows_are_there_as_soon_as_they_are_appended(tmp_path):
  opened = results.Results(str(tmp_path), {'a': 1})
  opened.append({'doc_id': 0, 'x': math.nan, 'y': [1.5, math.inf]})
  assert rows_of(tmp_path) == [{'doc_id': 0, 'x': None, 'y': [1.5, None]}]
  opened.close()


def test_a_rerun_goes_on_and_drops_a_torn_line(tmp_path):
  opened = results.Results(str(tmp_path), {'a': 1})
  opened.append({'doc_id': 'one'})
  opened.close()
  with open(tmp_path / 'results.jsonl', 'a') as file:
    file.write('{"doc_id": "tw')
  again = results.Results(str(tmp_path), {'a': 1})
  assert list(again.rows) == ['one']
  again.append({'doc_id': 'two'})
  again.close()
  assert [row['doc_id'] for row in rows_of(tmp_path)] == ['one', 'two']


def test_rows_of_another_run_are_refused_with_the_difference(tmp_path):
  opened = results.Results(str(tmp_path), {'lr': 0.1, 'n': 5})
  opened.append({'doc_id': 0})
  opened.close()
  with pytest.raises(ValueError, match=r'lr: 0.1 there, 0.2 now'):
    results.Results(str(tmp_path), {'lr': 0.2, 'n': 5})
  assert len(rows_of(tmp_path)) == 1


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path):
  (tmp_path / 'results.config.json').write_text(json.dumps({}))
  (tmp_path / 'results.jsonl').write_text('{"doc_id": 0}\n{oops\n{"doc_id"')
  with pytest.raises(ValueError, match=r'results.jsonl:2'):
    results.Results(str(tmp_path), {})
