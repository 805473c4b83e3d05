"""Batches of offline and online frames: in the ratio asked for, of what the buffer holds when they are drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from roboreel import ConfigError, LeRobotDatasetV2
from roboreel.train.online.mixing import MixedOrder
from roboreel.train.online.options import OnlineOptions


def write(folder: Path, lengths: list[int], capacity: int | None = None) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(folder, fps=10, buffer_capacity=capacity, use_as_fifo_buffer=capacity is not None)
    for length in lengths:
        dataset.add_episodes({"action": np.arange(length, dtype=np.float32)})
    return dataset


def order_of(offline: LeRobotDatasetV2 | None, online: LeRobotDatasetV2, ratio: float, stop: int = 50) -> MixedOrder:
    return MixedOrder(offline, online, ratio, drop_n_last=(2, 1), batch_size=64, seed=3, stop=stop)


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_the_ratio_and_what_is_dropped(tmp_path: Path, ratio: float) -> None:
    offline, online = write(tmp_path / "off", [6, 4]), write(tmp_path / "on", [5, 3], capacity=20)
    drawn = np.concatenate(list(order_of(offline, online, ratio)))
    counts = np.bincount(drawn, minlength=18)
    assert np.flatnonzero(counts[:10]).tolist() == ([0, 1, 2, 3, 6, 7] if ratio < 1 else [])
    assert (np.flatnonzero(counts[10:]) + 10).tolist() == ([10, 11, 12, 13, 15, 16] if ratio else [])
    assert (drawn >= 10).mean() == pytest.approx(ratio, abs=0.03)  # of 3,200
    within = counts[counts > 0] / len(drawn)
    expected = [(1 - ratio) / 6] * 6 * (ratio < 1) + [ratio / 6] * 6 * (ratio > 0)
    assert within.tolist() == pytest.approx(expected, abs=0.03)


def test_it_follows_the_buffer_and_keeps_the_ratio(tmp_path: Path) -> None:
    offline, writer = write(tmp_path / "off", [10]), write(tmp_path / "on", [4], capacity=12)
    order = order_of(offline, LeRobotDatasetV2(tmp_path / "on", readonly=True), 0.5)
    batches = iter(order)
    first = np.array(next(batches))
    assert first.max() < 13  # the last of four is dropped
    for _ in range(3):  # the third one overwrites the first
        writer.add_episodes({"action": np.zeros(6, np.float32)})
    later = np.concatenate(list(batches))
    assert set(range(10, 22)) - set(later.tolist()) == {15, 21}, "the last of each of the two that are left"
    assert (later >= 10).mean() == pytest.approx(0.5, abs=0.04)


def test_without_offline_frames(tmp_path: Path) -> None:
    drawn = np.concatenate(list(order_of(None, write(tmp_path / "on", [3, 2], capacity=9), 0.5)))
    assert np.unique(drawn).tolist() == [0, 1, 3]


def test_a_batch_is_of_its_step_alone(tmp_path: Path) -> None:
    offline, online = write(tmp_path / "off", [9]), write(tmp_path / "on", [7], capacity=20)
    order, part = order_of(offline, online, 0.5, stop=8), order_of(offline, online, 0.5, stop=8)
    whole = list(order)
    part.start = 5
    assert list(part) == whole[5:]
    assert len(part) == 3
    assert order.batch(6) == whole[6]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("online_sampling_ratio", 1.5, "--online-sampling-ratio 1.5: give a number from 0 to 1"),
        ("online_rollout_n_episodes", 0, "--online-rollout-n-episodes 0: give 1 or more"),
        ("online_steps_between_rollouts", 0, "--online-steps-between-rollouts 0: give 1 or more"),
        ("online_buffer_seed_size", -1, "--online-buffer-seed-size -1: give 0 or more"),
    ],
)
def test_options_that_cannot_be(name: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OnlineOptions(**{name: value})  # type: ignore[arg-type]
