"""`compute_sampler_weights` by literals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from roboreel import LeRobotDatasetV2, compute_sampler_weights
from tests.recordings import made, recording, ring
from tests.test_sampled_rings import die_recording


@pytest.mark.parametrize(
    ("offline", "drop", "online", "ratio", "online_drop", "weights"),
    [
        ([2], 0, None, None, 0, [1 / 2, 1 / 2]),
        ([2, 2], 0, [3], 0.5, 1, [1 / 8] * 4 + [1 / 4, 1 / 4, 0]),
        ([2, 2], 0, [3], 0.8, 0, [0.05] * 4 + [0.8 / 3] * 3),
        ([4], 1, None, None, 0, [1 / 3] * 3 + [0]),
        ([4, 1], 1, [2, 2], 0.5, 1, [1 / 6] * 3 + [0, 0] + [1 / 4, 0, 1 / 4, 0]),
        ([2], 0, [2], 0.0, 0, [1 / 2, 1 / 2, 0, 0]),
        ([2], 0, [2], 1.0, 0, [0, 0, 1 / 2, 1 / 2]),
        # Where one side may not be drawn at all, the other takes its share; where neither may, all are alike.
        ([2], 2, [3], 0.5, 1, [0, 0, 1 / 2, 1 / 2, 0]),
        ([2], 0, [3], 0.5, 9, [1 / 2, 1 / 2, 0, 0, 0]),
        ([2], 9, None, None, 0, [1 / 2, 1 / 2]),
        ([2], 9, [2], 0.3, 9, [1 / 4] * 4),
        # An online buffer that is still empty, and training from online data alone.
        ([3], 1, [], 0.5, 0, [1 / 2, 1 / 2, 0]),
        ([], 0, [2], 0.5, 0, [1 / 2, 1 / 2]),
    ],
)
def test_weights(
    tmp_path: Path,
    offline: list[int],
    drop: int,
    online: list[int] | None,
    ratio: float | None,
    online_drop: int,
    weights: list[float],
) -> None:
    first = dataset(tmp_path / "offline", offline)
    second = None if online is None else dataset(tmp_path / "online", online)
    found = compute_sampler_weights(first, drop, second, ratio, online_drop)
    assert found.tolist() == pytest.approx(weights)
    assert float(found.sum()) == pytest.approx(1)
    sampler = torch.utils.data.WeightedRandomSampler(found.tolist(), 50)
    assert all(weights[i] > 0 for i in sampler)


def test_only_the_chosen_episodes_are_weighed(tmp_path: Path) -> None:
    made(tmp_path / "offline", [3, 2, 4]).close()
    chosen = LeRobotDatasetV2(tmp_path / "offline", episodes=[2, 1])
    assert compute_sampler_weights(chosen, 1).tolist() == pytest.approx([1 / 4] * 3 + [0, 1 / 4, 0])


def test_weights_follow_what_is_added(tmp_path: Path) -> None:
    offline = made(tmp_path / "offline", [3])
    offline.add_episodes(recording(1, 3))
    assert compute_sampler_weights(offline).tolist() == pytest.approx([1 / 4] * 4)


@pytest.mark.parametrize(
    ("drop", "weights"),
    [
        (0, [1 / 8] * 8),
        (1, [1 / 5, 1 / 5, 0, 0, 1 / 5, 1 / 5, 1 / 5, 0]),
        (2, [1 / 3, 0, 0, 0, 1 / 3, 1 / 3, 0, 0]),
        (9, [1 / 8] * 8),
    ],
)
def test_what_is_left_of_an_overwritten_episode_is_weighed(tmp_path: Path, drop: int, weights: list[float]) -> None:
    buffer = ring(tmp_path / "ring", [4, 4, 3], 8)  # slot 3 holds the last frame of the first episode
    assert compute_sampler_weights(buffer, drop).tolist() == pytest.approx(weights)


def test_lost_frames_weigh_nothing(tmp_path: Path) -> None:
    root = die_recording(ring(tmp_path / "ring", [4, 4], 8), 3)
    for readonly in (True, False):  # before and after the next writer has come
        reader = LeRobotDatasetV2(root, readonly=readonly)
        assert compute_sampler_weights(reader, 1).tolist() == pytest.approx([0] * 4 + [1 / 3] * 3 + [0])
        assert compute_sampler_weights(reader, 9).tolist() == pytest.approx([0] * 3 + [1 / 5] * 5)
        if not readonly:
            reader.add_episodes(recording(2, 8))
            assert compute_sampler_weights(reader).tolist() == pytest.approx([1 / 7, 1 / 7, 0] + [1 / 7] * 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"online_sampling_ratio": 0.5}, "go together; give both or neither"),
        ({"online_dataset": True}, "go together"),
        ({"online_dataset": True, "online_sampling_ratio": 1.5}, "online_sampling_ratio=1.5; a number from 0 to 1"),
        ({"online_dataset": True, "online_sampling_ratio": float("nan")}, "online_sampling_ratio=nan"),
        ({"offline_drop_n_last_frames": -1}, "cannot drop the last -1 frames"),
        ({"offline_drop_n_last_frames": 1.5}, r"drop_n_last_frames=1\.5; an integer would do"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    offline = made(tmp_path / "offline", [3])
    if "online_dataset" in arguments:
        arguments = {**arguments, "online_dataset": dataset(tmp_path / "online", [2])}
    with pytest.raises(ValueError, match=message):
        compute_sampler_weights(offline, **arguments)


def test_nothing_to_weigh_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both datasets are empty"):
        compute_sampler_weights(dataset(tmp_path / "offline", []), 0, dataset(tmp_path / "online", []), 0.5)


def dataset(root: Path, lengths: list[int]) -> LeRobotDatasetV2:
    new: LeRobotDatasetV2 = made(root, lengths) if lengths else LeRobotDatasetV2(root, fps=10)
    return new
