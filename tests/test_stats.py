"""Running statistics against numpy over everything at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboreel.stats import RunningImageStats, RunningStats


@given(cuts=st.lists(st.integers(0, 40), max_size=4), scale=st.sampled_from([1e-3, 1.0, 1e6]))
def test_blocks_give_the_same_as_all_at_once(cuts: list[int], scale: float) -> None:
    values = np.random.default_rng(0).normal(7, scale, (40, 3))
    running = RunningStats()
    for block in np.split(values, sorted(cuts)):
        running.add(block)
    stats = running.result()
    np.testing.assert_allclose(stats["mean"], values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(stats["std"], values.std(axis=0), rtol=1e-9)
    assert np.array_equal(stats["min"], values.min(axis=0))
    assert np.array_equal(stats["max"], values.max(axis=0))
    assert stats["count"].tolist() == [40]


def test_a_small_spread_around_a_large_mean_keeps_its_digits() -> None:
    running = RunningStats()
    for block in np.split(1e9 + np.tile([0.0, 1.0], 500), 10):
        running.add(block)
    assert running.result()["std"] == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [(np.array([True, False, True, True]), 0.75, 0.4330127018922193), (np.array([250, 252], np.uint8), 251, 1)],
)
def test_small_dtypes_do_not_overflow(values: np.ndarray, mean: float, std: float) -> None:
    running = RunningStats()
    running.add(values)
    assert running.result()["mean"] == pytest.approx(mean)
    assert running.result()["std"] == pytest.approx(std)


def test_nothing_taken_in_says_count_0_and_no_more() -> None:
    for running in (RunningStats(), RunningImageStats(3)):
        assert {key: value.tolist() for key, value in running.result().items()} == {"count": [0]}


@given(cut=st.integers(0, 6))
def test_images_are_scaled_to_the_unit_range_per_channel(cut: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    images[..., 1] = 9
    running = RunningImageStats(3)
    running.add(images[:cut])
    running.add(images[cut:])
    stats, scaled = running.result(), images / 255
    assert stats["count"].tolist() == [6]
    for name, function in (("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)):
        assert stats[name].shape == (3, 1, 1)
        wanted = np.stack([function(scaled[..., channel]) for channel in range(3)])
        np.testing.assert_allclose(stats[name].reshape(3), wanted, atol=1e-7)
