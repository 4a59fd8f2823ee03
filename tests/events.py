"""Reads TensorBoard's event files."""

import struct

from tensorboardX.proto import event_pb2


def scalars(directory):
  """{(name, step): value} of event files, by the record format itself."""
  found = {}
  paths = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
  for path in paths:
    data, begin = path.read_bytes(), 0
    while begin < len(data):
      (size,) = struct.unpack_from('<Q', data, begin)
      event = event_pb2.Event.FromString(data[begin + 12 : begin + 12 + size])
      begin += 12 + size + 4
      if event.HasField('session_log'):
        # The reader's rule: what is not before this step is hidden.
        assert event.session_log.status == event.session_log.START
        found = {k: v for k, v in found.items() if k[1] < event.step}
      for value in event.summary.value:
        found[value.tag, event.step] = value.simple_value
  return found
