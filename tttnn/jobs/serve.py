"""Serves a store on this host until it is told to stop."""

from tttnn.datastore import client
from tttnn.datastore import server


def run(config, workdir: str) -> None:
  """The job; `workdir` is not used.

  Raises:
    ValueError: if there is no store, or its address is being served.
  """
  del workdir
  path = config.store.path
  if not path:
    raise ValueError('serve needs store.path, what `build` made')
  address = config.store.address or client.default_address(
    path, config.store.index
  )
  print(f'serve: {path} at {address}; Ctrl-C or query.action=shutdown ends it')
  server.serve(
    path,
    address,
    index=config.store.index,
    **config.serve,
  )
