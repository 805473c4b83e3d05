"""`delta_timestamps` through the public face: windows, padding, holes in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from tests.recordings import made, numbers_of, recording


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def test_the_worked_example_of_the_design(root: Path) -> None:
    dataset = made(root, [5])
    dataset.set_delta_timestamps({"index": [-0.3, -0.2, 0, 0.2, 0.3]})
    item = dataset[2]
    assert item["index"].tolist() == [0, 0, 2, 4, 4]
    assert item["index_is_pad"].tolist() == [True, False, False, False, True]


def test_windows_stay_within_their_episode(root: Path) -> None:
    dataset = made(root, [3, 4], delta_timestamps=None)
    dataset.set_delta_timestamps({"observation.state": [-0.2, 0, 0.1], "action": [0.1]})
    batch = dataset.get_batch(range(7))
    assert numbers_of(batch) == [
        [0, 0, 1], [0, 1, 2], [0, 2, 2],
        [3, 3, 4], [3, 4, 5], [3, 5, 6], [4, 6, 6],
    ]  # fmt: skip
    pads = [[True, False, False], [True, False, False], [False, False, True]]
    assert batch["observation.state_is_pad"].tolist() == [*pads[:2], pads[2], *pads[:2], [False] * 3, pads[2]]
    assert batch["action_is_pad"].tolist() == [[False], [False], [True]] + [[False]] * 3 + [[True]]
    assert batch["next.done"].shape == (7,)


def test_delta_timestamps_can_be_set_and_taken_back(root: Path) -> None:
    dataset = made(root, [5], delta_timestamps={"action": [0, 0.1]})
    assert {key: list(seconds) for key, seconds in dataset.delta_timestamps.items()} == {"action": [0, 0.1]}
    assert dataset[0]["action"].shape == (2,)
    dataset.set_delta_timestamps({"observation.state": [0]})
    assert dataset[0]["action"].shape == ()
    assert dataset[0]["observation.state"].shape == (1, 2)
    with pytest.raises(KeyError, match=r"delta_timestamps has the keys \['actoin'\]; the dataset has"):
        dataset.set_delta_timestamps({"actoin": [0]})
    assert dataset[0]["observation.state"].shape == (1, 2)  # the refused ones changed nothing
    dataset.set_delta_timestamps(None)
    assert dataset.delta_timestamps is None
    assert dataset[0]["observation.state"].shape == (2,)


def test_offsets_that_no_frame_matches_are_refused(root: Path) -> None:
    dataset = made(root, [5, 3])
    with pytest.raises(ValueError, match=r"delta_timestamps\['action'\].*longest episode has 5 frames.*not frames"):
        dataset.set_delta_timestamps({"action": [5, 6]})
    dataset.set_delta_timestamps({"action": [0, 5]})  # one of them matches
    assert dataset[0]["action_is_pad"].tolist() == [False, True]


@pytest.mark.parametrize(
    ("on_hole", "action", "is_pad"),
    [("nearest", [0.5, 0.5, 1.0], [False, False, False]), ("pad", [0.5, 0.5, 1.0], [False, True, False])],
)
def test_a_hole_in_time_is_refused_at_once_unless_asked_for(
    root: Path, on_hole: Any, action: list[float], is_pad: list[bool]
) -> None:
    dataset = made(root, [3])
    holed = {**recording(4), "timestamp": np.array([0, 0.1, 0.5, 0.6])}
    dataset.add_episodes(holed)
    with pytest.raises(roboreel.TimestampOutsideToleranceError, match=r"1 episodes .*0\.1998 s apart.*: 1;.*nearest"):
        dataset.set_delta_timestamps({"action": [0, 0.15, 0.4]})
    dataset.set_delta_timestamps({"action": [0, 0.15, 0.4]}, on_hole=on_hole)
    item = dataset[4]
    assert (item["action"].tolist(), item["action_is_pad"].tolist()) == (action, is_pad)
    with pytest.raises(ValueError, match="'raise', 'nearest' and 'pad' would do"):
        dataset.set_delta_timestamps({"action": [0]}, on_hole="skip")


def test_a_window_that_meets_a_hole_added_later_raises_and_names_it(root: Path) -> None:
    dataset = made(root, [3], delta_timestamps={"action": [0, 0.15]})
    dataset.add_episodes({**recording(4), "timestamp": np.array([0, 0.1, 0.5, 0.6])})
    assert dataset[3]["action"].tolist() == [0, 0.5]
    with pytest.raises(roboreel.TimestampOutsideToleranceError, match=r"episode 1: no frame within 0\.0999 s.*0\.1 s"):
        dataset[4]


def test_irregular_episodes_take_their_windows_by_time(root: Path) -> None:
    dataset = made(root, [3])
    dataset.add_episodes({**recording(4, 3), "timestamp": np.array([5, 5.04, 5.08, 5.16])})
    dataset.set_delta_timestamps({"observation.state": [-0.08, 0, 0.06]})
    batch = dataset.get_batch([1, 3, 5, 6])
    assert numbers_of(batch) == [[0, 1, 2], [3, 3, 4], [3, 5, 6], [5, 6, 6]]
    assert not batch["observation.state_is_pad"].any()


def ring_of_ten(root: Path, times: list[float]) -> Any:
    """Slots: 8 to 10 | 3 (of 0 to 3) | 4 to 7, the last two never filled; an episode does not go round the end."""
    dataset = LeRobotDatasetV2(root, fps=10, buffer_capacity=10, use_as_fifo_buffer=True)
    for first, length in ((0, 4), (4, 4), (8, 3)):
        dataset.add_episodes({**recording(length, first), "timestamp": np.array(times[:length])}, no_flush=True)
    return dataset


F, T = False, True


@pytest.mark.parametrize(
    ("index", "numbers", "is_pad"),
    [
        # Offsets are -2, -1, -1/2, 0, 1/2, 1 and 2 steps; half-way goes to the earlier frame.
        (0, [8, 8, 8, 8, 8, 9, 10], [T, T, F, F, F, F, F]),
        (1, [8, 8, 8, 9, 9, 10, 10], [T, F, F, F, F, F, T]),
        (2, [8, 9, 9, 10, 10, 10, 10], [F, F, F, F, F, T, T]),
        (3, [3, 3, 3, 3, 3, 3, 3], [T, T, F, F, F, T, T]),  # all that survives of its episode
        (4, [4, 4, 4, 4, 4, 5, 6], [T, T, F, F, F, F, F]),
        (7, [5, 6, 6, 7, 7, 7, 7], [F, F, F, F, F, T, T]),
    ],
)
def test_windows_in_a_ring_that_has_gone_round(root: Path, index: int, numbers: list[int], is_pad: list[bool]) -> None:
    dataset = ring_of_ten(root, [0, 0.1, 0.2, 0.3])
    dataset.set_delta_timestamps({"observation.state": [-0.2, -0.1, -0.05, 0, 0.05, 0.1, 0.2]})
    assert len(dataset) == 8
    item = dataset[index]
    assert (numbers_of(item), item["observation.state_is_pad"].tolist()) == (numbers, is_pad)


@pytest.mark.parametrize(
    ("index", "numbers", "is_pad"),
    [
        # Frames at 0, 0.04, 0.16 and 0.22 s; asked for -0.16, -0.1, -0.02, 0, 0.02, 0.06 and 0.14 s from now.
        (0, [8, 8, 8, 8, 8, 9, 10], [T, T, F, F, F, F, F]),
        (1, [8, 8, 8, 9, 9, 9, 10], [T, F, F, F, F, F, F]),
        (2, [8, 9, 10, 10, 10, 10, 10], [F, F, F, F, F, F, T]),
        (3, [3, 3, 3, 3, 3, 3, 3], [T, T, F, F, F, F, T]),
        (4, [4, 4, 4, 4, 4, 5, 6], [T, T, F, F, F, F, F]),
        (7, [5, 6, 7, 7, 7, 7, 7], [F, F, F, F, F, F, T]),
    ],
)
def test_windows_by_time_in_a_ring_that_has_gone_round(
    root: Path, index: int, numbers: list[int], is_pad: list[bool]
) -> None:
    dataset = ring_of_ten(root, [0, 0.04, 0.16, 0.22])
    dataset.set_delta_timestamps({"observation.state": [-0.16, -0.1, -0.02, 0, 0.02, 0.06, 0.14]})
    item = dataset[index]
    assert (numbers_of(item), item["observation.state_is_pad"].tolist()) == (numbers, is_pad)
