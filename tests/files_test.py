"""Whole files or none."""

import pytest

from tttnn import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
  path = tmp_path / 'a'
  files.write_atomic(str(path), 'old')
  with pytest.raises(KeyboardInterrupt), files.atomic(str(path)) as file:
    file.write(b'half')
    raise KeyboardInterrupt
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]


def test_an_equal_file_is_left_alone(tmp_path):
  path = tmp_path / 'a'
  assert files.write_if_changed(str(path), 'one')
  stamp = path.stat().st_mtime_ns
  assert not files.write_if_changed(str(path), 'one')
  assert path.stat().st_mtime_ns == stamp
  assert files.write_if_changed(str(path), 'two')
  assert path.read_text() == 'two'


def test_once_is_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'a'

  def fail(file):
    file.write(b'half')
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    files.write_once(str(path), fail)
  assert not path.exists() and not (tmp_path / 'a.tmp').exists()
  files.write_once(str(path), lambda file: file.write(b'first'))
  files.write_once(str(path), lambda file: file.write(b'second'))
  assert path.read_bytes() == b'first'
  assert list(tmp_path.iterdir()) == [path]
