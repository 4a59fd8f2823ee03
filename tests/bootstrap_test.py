"""Resampling against a plain loop, and intervals against what they promise."""

import math
import time
import tracemalloc

import numpy as np
import pytest

from tttnn.scoring import bootstrap


def _groups(documents):
  return [(1.0, np.arange(documents))]


def _correlated(rng, documents):
  """nats_Bx2 of models that find the same documents hard, num_bytes_B."""
  num_bytes_B = rng.integers(50, 5000, documents)
  rate_B = rng.gamma(9, 0.1, documents)
  better_B = rate_B * rng.normal(0.9, 0.03, documents)
  nats_Bx2 = -np.stack([rate_B, better_B], 1) * num_bytes_B[:, None]
  return nats_Bx2, num_bytes_B


@pytest.mark.parametrize('block', [1, 100, 1 << 22])
def test_sums_are_those_of_a_plain_loop(monkeypatch, block):
  monkeypatch.setattr(bootstrap, '_BLOCK', block)
  values_BxC = np.random.default_rng(1).normal(size=(37, 3))
  got = bootstrap.resample_sums(values_BxC, 25, seed=5)
  rng = np.random.default_rng(5)
  for sums_C in got:
    drawn = rng.integers(37, size=37)
    wanted = [math.fsum(values_BxC[i, c] for i in drawn) for c in range(3)]
    np.testing.assert_allclose(sums_C, wanted, rtol=1e-12, atol=1e-12)


def test_bits_per_byte_of_groups_are_those_of_a_plain_loop():
  rng = np.random.default_rng(2)
  nats_BxC, num_bytes_B = _correlated(rng, 20)
  groups = [(0.3, np.arange(0, 20, 2)), (0.7, np.arange(1, 20, 2))]
  got = bootstrap.bits_per_byte(nats_BxC, num_bytes_B, groups, 7, seed=3)
  draws = [np.random.default_rng([3, number]) for number in range(2)]
  for bits_C in got:
    wanted = np.zeros(2)
    for draw, (weight, chosen) in zip(draws, groups, strict=True):
      drawn = [chosen[i] for i in draw.integers(10, size=10)]
      for c in range(2):
        nats = math.fsum(nats_BxC[i, c] for i in drawn)
        num_bytes = sum(int(num_bytes_B[i]) for i in drawn)
        wanted[c] -= weight * nats / num_bytes / math.log(2)
    np.testing.assert_allclose(bits_C, wanted, rtol=1e-12)


def test_measured_is_the_weighted_mean_of_micro_averages():
  nats_BxC = np.array([[-100.0], [-300.0], [-50.0]])
  num_bytes_B = np.array([100, 100, 100])
  groups = [(0.25, np.array([0, 1])), (0.75, np.array([2]))]
  (bits,) = bootstrap.measured(nats_BxC, num_bytes_B, groups)
  assert bits == pytest.approx((0.25 * 2 + 0.75 * 0.5) / math.log(2))
  (bits,) = bootstrap.measured(nats_BxC, num_bytes_B, _groups(3))
  assert bits == pytest.approx(450 / 300 / math.log(2))


def test_intervals_cover_what_they_promise():
  # Of 300 samples' 90 % intervals 270 should hold the truth, give or take
  # three times 5.2; a few less, since resampling is only right for many.
  rng = np.random.default_rng(4)
  truth = 0.9 - 1  # The change's expectation, by construction of the rates.
  held = 0
  for _ in range(300):
    sample = _correlated(rng, 120)
    bits_RxC = bootstrap.bits_per_byte(*sample, _groups(120), 400)
    low, high = bootstrap.interval(bits_RxC[:, 1:] / bits_RxC[:, :1] - 1, 0.9)
    held += low[0] <= truth <= high[0]
  assert 250 <= held <= 286


def test_paired_intervals_are_narrower():
  nats_Bx2, num_bytes_B = _correlated(np.random.default_rng(6), 200)
  groups = _groups(200)
  first = bootstrap.bits_per_byte(nats_Bx2, num_bytes_B, groups, seed=0)
  other = bootstrap.bits_per_byte(nats_Bx2, num_bytes_B, groups, seed=1)

  def width(change):
    low, high = bootstrap.interval(change[:, None], 0.9)
    return (high - low)[0]

  paired = width(first[:, 1] / first[:, 0] - 1)
  unpaired = width(first[:, 1] / other[:, 0] - 1)
  assert 0 < paired < unpaired / 5


def test_columns_of_two_calls_are_paired():
  nats_Bx2, num_bytes_B = _correlated(np.random.default_rng(7), 30)
  both = bootstrap.bits_per_byte(nats_Bx2, num_bytes_B, _groups(30), 50)
  for c in range(2):
    (alone,) = bootstrap.bits_per_byte(
      nats_Bx2[:, c : c + 1], num_bytes_B, _groups(30), 50
    ).T
    np.testing.assert_allclose(alone, both[:, c], rtol=1e-12)


def test_seeds_decide():
  values_BxC = np.random.default_rng(8).normal(size=(50, 2))
  first = bootstrap.resample_sums(values_BxC, 20, seed=1)
  np.testing.assert_array_equal(
    bootstrap.resample_sums(values_BxC, 20, seed=1), first
  )
  assert (bootstrap.resample_sums(values_BxC, 20, seed=2) != first).all()


def test_nan_stays_in_its_column():
  nats_Bx2, num_bytes_B = _correlated(np.random.default_rng(9), 10)
  nats_Bx2[4, 0] = math.nan
  bits_RxC = bootstrap.bits_per_byte(nats_Bx2, num_bytes_B, _groups(10), 50)
  low_C, high_C = bootstrap.interval(bits_RxC, 0.9)
  assert np.isnan(low_C[0]) and np.isnan(high_C[0])
  assert 0 < low_C[1] < high_C[1]


def test_interval_is_the_middle_of_the_values():
  low, high = bootstrap.interval(np.arange(101.0)[:, None], 0.9)
  assert (low[0], high[0]) == (pytest.approx(5), pytest.approx(95))


def test_without_documents_there_is_an_error():
  with pytest.raises(ValueError, match='no documents'):
    bootstrap.resample_sums(np.zeros((0, 2)))


def test_many_documents_take_little_time_and_memory():
  values_BxC = np.random.default_rng(10).normal(size=(50_000, 6))
  tracemalloc.start()
  begin = time.monotonic()
  bootstrap.resample_sums(values_BxC)
  seconds = time.monotonic() - begin
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert seconds < 20  # Half a second on an idle machine.
  assert peak < 64 << 20  # All counts together would be 400 MB.
