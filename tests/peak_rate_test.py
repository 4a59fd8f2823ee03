"""What `tttnn.device` takes for the peak rate of accelerators."""

import pytest

from tttnn import device


@pytest.mark.parametrize(
  'kinds, teraflops',
  [
    # Both names that JAX has for each generation.
    (('TPU v6 lite', 'TPU v6e'), 918),
    (('TPU v5 lite', 'TPU v5e'), 197),
    (('TPU v5', 'TPU v5p'), 459),
    (('TPU v4',), 275),
    (('TPU v4 lite',), 138),
    (('TPU v3',), 61.5),
    (('NVIDIA H200', 'NVIDIA H100 80GB HBM3'), 989),
    # On a card, with less power than on a board.
    (('NVIDIA H200 NVL', 'NVIDIA H100 NVL'), 835),
    (('NVIDIA H100 PCIe',), 756),
    (('NVIDIA A100-SXM4-80GB', 'NVIDIA A100 80GB PCIe'), 312),
  ],
)
def test_the_peak_is_that_of_the_data_sheet(kinds, teraflops):
  for kind in kinds:
    assert device.documented_peak(kind) == teraflops * 1e12


def test_no_peak_is_guessed_of_an_unknown_device():
  for kind in ('cpu', 'NVIDIA GeForce RTX 4090', 'TPU8i'):
    assert device.documented_peak(kind) is None


def test_a_name_is_not_hidden_by_a_shorter_one_before_it():
  names = [beginning for beginning, _ in device._PEAKS]
  for place, name in enumerate(names):
    assert not any(name.startswith(before) for before in names[:place])
