"""Processes that meet, and end together; JAX has no part in it."""

from concurrent import futures
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tttnn import watch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def come(count, timeout=20.0, *, indices=None, counts=None):
  """What gathering and joining give or raise, of each process in a thread."""
  indices = indices or range(1, count)
  counts = counts or [count] * len(indices)
  with (
    watch.listen(0) as listener,
    futures.ThreadPoolExecutor(8) as executor,
  ):
    address = 'localhost', listener.getsockname()[1]
    calls = [executor.submit(watch.gather, listener, count, timeout, 'hello')]
    calls += [
      executor.submit(watch.join, address, index, of, timeout)
      for index, of in zip(indices, counts, strict=True)
    ]
    return [call.exception() or call.result() for call in calls]


def close(watches):
  with futures.ThreadPoolExecutor(8) as executor:
    list(executor.map(watch.Watch.close, watches))


def test_nobody_passes_before_the_last_one_has_come():
  watches = come(3)
  assert [one.own.index for one in watches] == [0, 1, 2]
  assert {one.note for one in watches} == {'hello'}
  for late in range(3):
    with futures.ThreadPoolExecutor(8) as executor:
      early = [
        executor.submit(one.meet, 'here', 20)
        for one in watches
        if one.own.index != late
      ]
      time.sleep(0.2)
      assert not any(call.done() for call in early)
      watches[late].meet('here', 20)
      for call in early:
        call.result()
  close(watches)


def test_who_does_not_come_is_named_and_progress_is_waited_for():
  watches = come(3)
  with futures.ThreadPoolExecutor(8) as executor:
    begin = time.monotonic()
    call = executor.submit(watches[0].meet, 'here', 1.5)
    executor.submit(watches[1].meet, 'here', 1.5)
    time.sleep(1.1)
    watches[2].progress()
    with pytest.raises(TimeoutError) as error:
      call.result()
    assert 2.5 < time.monotonic() - begin < 10
    pattern = r"process 2 of 3 \(.+, pid \d+\) did not come to 'here', .* 1.5 s"
    assert re.match(pattern, str(error.value))
    again = executor.submit(watches[2].meet, 'here', 20)
    watches[0].meet('here', 20)
    again.result()
  close(watches)


def test_who_does_not_begin_is_named_to_all():
  main, other = come(3, 0.5, indices=[2])
  assert isinstance(main, TimeoutError)
  assert re.match(r'process 1 of 3 did not come to port \d+ of', str(main))
  assert str(other) == str(main)


def test_process_zero_that_is_not_there_is_named():
  with watch.listen(0) as listener:
    address = 'localhost', listener.getsockname()[1]
  text = r'process 1 of 2 \(.*\) did not reach process 0 of 2 at localhost:\d+'
  with pytest.raises(TimeoutError, match=text):
    watch.join(address, 1, 2, 0.5)


@pytest.mark.parametrize(
  'indices, counts, text',
  [
    ([1], [3], r'pid \d+ says distributed.processes=3, process 0 says 2'),
    (
      [1, 1],
      [3, 3],
      r'process 1 .* process 1 .* have the same distributed.pro',
    ),
    ([0], [2], r'process 0 .* and process 0 .* have the same distributed.proc'),
  ],
)
def test_wrong_processes_are_refused(indices, counts, text):
  count = 3 if len(indices) == 2 else 2
  for found in come(count, indices=indices, counts=counts):
    assert isinstance(found, ValueError)
    assert re.search(text, str(found))


def test_who_is_none_of_the_processes_is_let_go():
  with (
    watch.listen(0) as listener,
    futures.ThreadPoolExecutor(8) as executor,
  ):
    address = 'localhost', listener.getsockname()[1]
    main = executor.submit(watch.gather, listener, 2, 20)
    with socket.create_connection(address) as stranger:
      stranger.sendall(b'GET / HTTP/1.1\r\n\r\n')
      with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b''
    other = watch.join(address, 1, 2, 20)
    close([main.result(), other])


def test_a_port_in_use_is_named():
  with watch.listen(0) as listener:
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match=f'coordinator: port {port}: '):
      watch.listen(port)


WORKER = """
import sys, time
from tttnn import watch
port, index, dying = map(int, sys.argv[1:])
if index:
  own = watch.join(('localhost', port), index, 3, 20)
else:
  with watch.listen(port) as listener:
    own = watch.gather(listener, 3, 20)
own.meet('the beginning', 20)
print('ready', flush=True)
if dying == index:
  sys.stdin.readline()
  own.fail('no more tea', of_jax=False)
  sys.exit('error: no more tea')
time.sleep(60)
"""


@pytest.mark.parametrize('how', ['killed', 'fails'])
@pytest.mark.parametrize('victim', [0, 2])
def test_the_others_end_and_say_who_has_ended(how, victim):
  with watch.listen(0) as listener:
    port = listener.getsockname()[1]
  everyone = [
    subprocess.Popen(
      [sys.executable, '-c', WORKER, str(port), str(index), str(victim)],
      cwd=ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(3)
  ]
  try:
    for process in everyone:
      assert process.stdout.readline() == 'ready\n'
    begin = time.monotonic()
    if how == 'killed':
      everyone[victim].send_signal(signal.SIGKILL)
      why = 'died'
    else:
      everyone[victim].stdin.write('\n')
      everyone[victim].stdin.flush()
      why = 'failed: no more tea'
    for index, process in enumerate(everyone):
      _, said = process.communicate(timeout=20)
      if index != victim:
        assert process.returncode == 1
        who = rf'process {victim} of 3 \(.+, pid {everyone[victim].pid}\)'
        assert re.fullmatch(rf'\nerror: {who} {why}\n', said)
      elif how == 'fails':
        assert (process.returncode, said) == (1, 'error: no more tea\n')
    # Nobody waits for someone who has gone.
    assert time.monotonic() - begin < 4
  finally:
    for process in everyone:
      process.kill()
      process.communicate()
