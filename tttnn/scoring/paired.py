"""Rows of several runs side by side: the same text under the same protocol."""

from collections.abc import Mapping
from collections.abc import Sequence
import math

_SAME_MODEL = 1e-3  # Relative; batches and devices round in other ways.

Rows = Sequence[Mapping]


def by_id(row: Mapping) -> tuple[bool, int | str]:
  """Key that sorts rows by document, integers first.

  Files are in the order in which documents finished, which says nothing.
  """
  return isinstance(row['doc_id'], str), row['doc_id']


def protocol(row: Mapping) -> dict[str, object]:
  """What a row says of how its document was scored, flat.

  Those scored in rolling windows of the model's context say nothing of it.
  """
  return {
    'eval.protocol': row['protocol'],
    'eval.window': row.get('window', 0),
    'eval.stride': row.get('stride', 0),
  }


def check_protocols(runs: Sequence[tuple[str, Mapping[str, object]]]) -> None:
  """Refuses runs whose figures are of different things.

  Args:
    runs: name, and what is known of its protocol. What is known of one run
      only is not compared.

  Raises:
    ValueError: naming two runs that differ, and what they have.
  """
  for number, (name, protocol) in enumerate(runs):
    for other, its in runs[:number]:
      differ = [
        key for key in protocol if key in its and protocol[key] != its[key]
      ]
      if differ:
        has, had = (
          ', '.join(f'{key}={known[key]!r}' for key in differ)
          for known in (protocol, its)
        )
        raise ValueError(
          f'{other!r} has {had}, {name!r} has {has}: figures of different '
          'protocols do not compare'
        )


def common(runs: Sequence[tuple[str, Rows]]) -> list[list[Mapping]]:
  """Each run's rows of the documents that all runs have, by document.

  Raises:
    ValueError: if there are none, or runs scored different parts of one.
  """
  by_document = [{row['doc_id']: row for row in rows} for _, rows in runs]
  shared = set.intersection(*(set(rows) for rows in by_document))
  if not shared:
    listed = ', '.join(
      f'{name!r} {len(rows):,} (such as {next(iter(rows), None)!r})'
      for (name, _), rows in zip(runs, by_document, strict=True)
    )
    raise ValueError(f'no document is in all runs; documents: {listed}')
  chosen = [
    sorted((rows[doc_id] for doc_id in shared), key=by_id)
    for rows in by_document
  ]
  names = [name for name, _ in runs]
  for name, rows in zip(names, chosen, strict=True):
    for first, row in zip(chosen[0], rows, strict=True):
      if first['num_bytes'] != row['num_bytes']:
        raise ValueError(
          f'document {row["doc_id"]!r}: {names[0]!r} scored '
          f'{first["num_bytes"]:,} bytes of it, {name!r} {row["num_bytes"]:,}; '
          'another eval.protocol, eval.split_prefix or document'
        )
  return chosen


def check_documents(runs: Sequence[tuple[str, Rows]]) -> None:
  """Refuses runs that are not over the same documents.

  Raises:
    ValueError: with an example, if a run lacks a document of another, or runs
      scored different parts of one.
  """
  first, rows = runs[0]
  wanted = {row['doc_id'] for row in rows}
  for name, rows in runs[1:]:
    ids = {row['doc_id'] for row in rows}
    for has, lacks, missing in (
      (first, name, wanted - ids),
      (name, first, ids - wanted),
    ):
      if missing:
        raise ValueError(
          f'{lacks!r} lacks {len(missing):,} of the documents of {has!r}, such '
          f'as {min(missing, key=str)!r}'
        )
  common(runs)


def check_models(runs: Sequence[tuple[str, Rows]]) -> None:
  """Refuses runs whose unadapted models score a document differently.

  Raises:
    ValueError: showing the two; if a document was not scored at 0.
  """
  first = runs[0][0]
  chosen = common(runs)
  for (name, _), rows in zip(runs, chosen, strict=True):
    for theirs, ours in zip(chosen[0], rows, strict=True):
      there, here = base(first, theirs), base(name, ours)
      if math.isnan(there) and math.isnan(here):
        continue
      if not math.isclose(there, here, rel_tol=_SAME_MODEL):
        raise ValueError(
          f'document {ours["doc_id"]!r}: its log-likelihood at 0 is '
          f'{there:.6g} in {first!r}, {here:.6g} in {name!r}; the models differ'
        )


def base(name: str, row: Mapping) -> float:
  """The unadapted model's log-likelihood of a document, in nats.

  Raises:
    ValueError: naming run and document, if it was not scored at 0.
  """
  if 0 not in row['at']:
    raise ValueError(
      f'{name!r}: document {row["doc_id"]!r} was scored at {row["at"]} only, '
      'not at 0, from which changes are counted (eval.at)'
    )
  value = row['log_likelihood'][row['at'].index(0)]
  return math.nan if value is None else value
