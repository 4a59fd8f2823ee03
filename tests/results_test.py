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


def _of_two(workdir, identity, process):
  return results.Results(str(workdir), identity, process=process, processes=2)


def test_two_processes_write_apart_and_are_put_together_in_order(tmp_path):
  both = [_of_two(tmp_path, {'a': 1}, process) for process in range(2)]
  for doc_id in (2, 0, 3, 1, 'extra'):
    both[doc_id in (1, 3)].append({'doc_id': doc_id})
  assert not (tmp_path / 'results.jsonl').exists()
  for one in both:
    one.close()
  # A third one that an earlier run had.
  (tmp_path / 'results.2.jsonl').write_text('{"doc_id": 4}\n{"doc_i')
  for one in both:
    one.unite([0, 1, 2, 3, 4])
    assert list(one.rows) == [0, 1, 2, 3, 4, 'extra']
  assert [row['doc_id'] for row in rows_of(tmp_path)] == list(one.rows)
  assert not list(tmp_path.glob('results.?.jsonl'))


def test_a_row_that_no_process_wrote_is_missed_and_nothing_lost(tmp_path):
  main = _of_two(tmp_path, {}, 0)
  main.append({'doc_id': 0})
  main.close()
  with pytest.raises(ValueError, match="lacks the rows of 2 documents, 'one'"):
    main.unite([0, 'one', 'two'])
  assert results.read(str(tmp_path / 'results.0.jsonl'))[0] == [{'doc_id': 0}]


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_any_number_of_processes_goes_on_with_all_rows(tmp_path, processes):
  (tmp_path / 'results.config.json').write_text('{"a": 1}')
  (tmp_path / 'results.jsonl').write_text('{"doc_id": 0}\n')
  (tmp_path / 'results.1.jsonl').write_text('{"doc_id": 1}\n{"do')
  (tmp_path / 'results.7.jsonl').write_text('{"doc_id": 7}\n')
  (tmp_path / 'results.x.jsonl').write_text('not one of them')
  for process in range(processes):
    one = results.Results(
      str(tmp_path), {'a': 1}, process=process, processes=processes
    )
    assert {0, 1, 7} == set(one.rows) - {10, 11}
    one.append({'doc_id': 10 + process})
    one.close()
  found = {
    row['doc_id']
    for path in tmp_path.glob('results*.jsonl')
    if 'x' not in path.name
    for row in results.read(str(path))[0]
  }
  assert found == {0, 1, 7, *range(10, 10 + processes)}
  with pytest.raises(ValueError, match='a: 1 there, 2 now'):
    results.Results(str(tmp_path), {'a': 2}, processes=processes)


def test_files_that_only_look_like_parts_stay(tmp_path):
  (tmp_path / 'results.config.json').write_text('{}')
  (tmp_path / 'results.jsonl').write_text('{"doc_id": 0}\n')
  (tmp_path / 'results.1.jsonl').write_text('of someone else')
  alone = results.Results(str(tmp_path), {})
  assert list(alone.rows) == [0]
  alone.close()
  assert (tmp_path / 'results.1.jsonl').read_text() == 'of someone else'


def test_another_process_must_mean_the_same_run(tmp_path):
  _of_two(tmp_path, {'model': 'x'}, 0).close()
  with pytest.raises(ValueError, match="model: 'x' there, 'y' now"):
    _of_two(tmp_path, {'model': 'y'}, 1)
