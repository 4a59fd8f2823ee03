"""The command line: keys, types, jobs, and one clear line when wrong."""

import json
import os
import subprocess
import sys

import pytest

from configs import base
from tttnn import main
from tttnn import settings
from tttnn.datastore import protocol

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def command(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'tttnn.main', *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=False,
  )


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.ttt.learning_rat=1', 'the nearest .* config.ttt.learning_rate'),
    ('--config.trt.stride=1', 'config.ttt.stride'),
    ('--config.ttt=1', 'unknown key config.ttt;'),
  ],
)
def test_unknown_keys_are_named_with_the_nearest(argument, message):
  with pytest.raises(ValueError, match=message):
    settings.check_keys(['main', '--config=x', argument])


def test_known_keys_pass():
  settings.check_keys(['main', '--config.ttt.stride=1', '--workdir=x'])


def test_keys_that_python_reserves_are_quoted():
  given = ['main', '--config.a.lambda=b.c.lambda=1', '-config.lambda', '2']
  other = ['--config=a.lambda', '--config.a.lambdas=1', '--workdir=a.lambda']
  assert settings.quoted(given + other) == [
    'main',
    '--config.a["lambda"]=b.c.lambda=1',
    '-config["lambda"]',
    '2',
    *other,
  ]


@pytest.mark.parametrize(
  ('key', 'value', 'expected'),
  [
    ('ttt.learning_rate', 1, 1.0),
    ('ttt.batch_documents', 4, '4'),
    ('ttt.dropout', True, True),
    ('store.path', 'a', 'a'),
  ],
)
def test_what_was_parsed_becomes_the_type_of_the_key(key, value, expected):
  config = base.get_config()
  settings.override_parsed(config, key, value)
  found = settings.flatten(config)[key]
  assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
  ('key', 'value', 'message'),
  [
    ('ttt.learning_rat', 1.0, 'known one is ttt.learning_rate'),
    ('seed', True, 'seed=True was read as bool, and is to be int'),
    ('seed', 1.0, 'seed=1.0 was read as float'),
    ('store.path', 1.5, 'store.path=1.5 .* quotes'),
    ('store.path', None, 'store.path=None was read as NoneType'),
    ('ttt.dropout', 'yes', "ttt.dropout='yes' was read as str"),
  ],
)
def test_what_was_parsed_wrongly_is_refused(key, value, message):
  with pytest.raises(ValueError, match=message):
    settings.override_parsed(base.get_config(), key, value)


def test_workdir_is_expanded_in_paths():
  config = base.get_config()
  config.corpus.train = '{workdir}/a,{workdir}/b'
  assert settings.expand(config, '/w').corpus.train == '/w/a,/w/b'
  assert config.corpus.train == '{workdir}/a,{workdir}/b'


def test_difference_shows_both_sides():
  assert settings.difference({'a': 1}, {'a': 1}) == ''
  assert settings.difference({'a': 1}, {'a': 2, 'b': 'x'}) == (
    "a: 1 there, 2 now; b: None there, 'x' now"
  )


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config.ttt.stride=1.5'], 'ttt.stride=1.5'),
    (['--config.dry_run=perhaps'], 'perhaps'),
    (['--config.job=trian'], "did you mean 'train'"),
    (['--workdir=', '--config.job=build'], 'needs --workdir=DIR'),
    (['extra'], "'extra'"),
    (['--confg=1'], 'confg'),
    (['--workdir=/proc/none'], '/proc/none'),
  ],
)
def test_mistakes_on_the_command_line_give_one_line(arguments, message):
  done = command('--config=configs/report.py', *arguments)
  assert done.returncode == os.EX_CONFIG
  assert message in done.stderr
  assert done.stderr.startswith('error: ')
  assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_or_wrong_config_gives_one_line():
  for argument, message in (
    ('--config=configs/none.py', 'configs/none.py'),
    ('--config=configs/evaluate.py:tt', 'the variant is one of'),
  ):
    done = command(argument, '--workdir=/tmp/none')
    assert done.returncode == os.EX_CONFIG
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_unknown_key_in_a_config_file_is_named_with_the_nearest(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text(
    'from configs import base\n'
    'def get_config():\n'
    '  config = base.get_config()\n'
    '  config.ttt.learning_rat = 1.0\n'
    '  return config\n'
  )
  done = command(f'--config={path}', f'--workdir={tmp_path}/w')
  assert done.returncode == os.EX_CONFIG
  assert 'Did you mean "learning_rate"' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
  ('error', 'status'),
  [
    (ValueError('a'), 78),
    (FileNotFoundError(2, 'a'), 78),
    (PermissionError(13, 'a'), 78),
    (OSError(28, 'disk full'), 1),
    (protocol.Lost('the server is gone'), 1),
    (BlockingIOError('locked'), 1),
  ],
)
def test_the_exit_status_says_whether_another_try_may_help(
  error, status, capsys
):
  with pytest.raises(SystemExit) as ended:
    main.fail(error)
  assert ended.value.code == status
  assert capsys.readouterr().err.startswith('error: ')


def test_config_is_written_to_the_workdir(tmp_path):
  done = command(
    '--config=configs/report.py',
    f'--workdir={tmp_path}/w',
    '--config.report.title=A',
    '--config.selection.lambda=0.2',  # No name in Python.
  )
  assert done.returncode == os.EX_CONFIG  # There are no results to report on.
  with open(tmp_path / 'w' / 'config.json') as file:
    config = json.load(file)
  assert config['job'] == 'report'
  assert config['report']['title'] == 'A'
  assert config['selection']['lambda'] == 0.2
