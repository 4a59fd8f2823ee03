"""Serves a store on this host, or on a cluster, until it is told to stop."""

from tttnn.datastore import client
from tttnn.datastore import server


def run(config, workdir: str) -> None:
  """The job; `workdir` is not used.

  Raises:
    ValueError: if there is no store, its address is being served, or a cluster
      is not there or too small.
  """
  del workdir
  path = config.store.path
  if not path:
    raise ValueError('serve needs store.path, what `build` made')
  if config.store.search == 'cluster':
    _serve_cluster(config)
    return
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


def _serve_cluster(config) -> None:
  # Imported here: Ray is an extra.
  from tttnn.datastore import actors
  from tttnn.datastore import cluster_server

  path = config.store.path

  def show(address: str, store) -> None:
    print(actors.table(actors.states(store, config.cluster.replicas)))
    print(
      f'serve: {path} in the cluster {address}; Ctrl-C or '
      'query.action=shutdown ends it',
      flush=True,
    )

  settings = config.cluster.to_dict()
  del settings['allow_partial']  # Of those who ask.
  cluster_server.serve(
    path,
    index=config.store.index,
    threads=config.serve.threads,
    ready=show,
    **settings,
  )
