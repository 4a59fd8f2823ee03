"""What the reports of all benchmarks say of their surroundings."""

from collections.abc import Mapping
from collections.abc import Sequence

from tttnn.benchmarks import bench


def where(result: Mapping) -> str:
  """On what was measured."""
  device = result['device']
  return f'On {device["kind"]}, {device["cores"]} cores.'


def who(result: Mapping) -> list[str]:
  """How the sides were run."""
  said = [f'{bench.ENGINE}: {_typed(result["environment"])}.']
  for side, setting in result['rival']['chosen'].items():
    about = setting['about']
    versions = ' '.join(f'{k} {v}' for k, v in about['versions'].items())
    said.append(
      f'{side}: {_typed(setting["environment"], setting["options"])}; '
      f'{versions}, {about["threads"]} threads, on {about["device"]}.'
    )
  if not result['rival']['chosen']:
    why = result['rival']['missing'] or 'none was asked for'
    said.append(f'No rival ({why}): {bench.ENGINE} alone was measured.')
  return said


def memory(measured: Mapping, backend: str) -> str:
  """Of a side's `peak_bytes` and `device_peak_bytes`."""
  text = f'{measured["peak_bytes"] / 1e9:.2f} GB'
  if backend != 'cpu':
    text += f' + {measured["device_peak_bytes"] / 1e9:.1f} GB'
  return text


def _typed(environment: Mapping, options: Sequence[str] = ()) -> str:
  """Variables and options as one would type them."""
  variables = [f'{name}={value}' for name, value in environment.items()]
  return ' '.join([*variables, *options]) or 'as it is'
