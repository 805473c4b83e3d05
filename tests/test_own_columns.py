"""What a ring shows of itself, given to it again: the values that were given come in, however the slots lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from roboreel import LeRobotDatasetV2
from roboreel.store import is_mapped_in, verify
from tests.recordings import CAMERA, recording, ring


def through_torch(array: np.ndarray) -> np.ndarray:
    return torch.from_numpy(array).numpy()


def through_a_buffer(array: np.ndarray) -> np.ndarray:
    return np.frombuffer(array.data, array.dtype).reshape(array.shape)


def given_again(dataset: LeRobotDatasetV2, start: int, stop: int, seen_as: Callable[[Any], Any]) -> dict[str, Any]:
    keys = ["observation.state", "action", "next.done", CAMERA]
    return {key: seen_as(dataset.column(key)[start:stop]) for key in keys}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("seen_as", [np.asarray, through_torch, through_a_buffer])
@pytest.mark.parametrize(
    ("lengths", "start", "stop"), [([10, 2], 0, 6), ([10], 2, 8), ([10, 5], 1, 9), ([10, 3], 3, 9)]
)
def test_a_part_of_a_ring_given_to_it_again(
    tmp_path: Path, seen_as: Callable[[Any], Any], lengths: list[int], start: int, stop: int
) -> None:
    dataset = ring(tmp_path / "ring", lengths[:1], 10, camera=True)
    for length in lengths[1:]:
        dataset.add_episodes(recording(length, sum(lengths), camera=True))
    data = given_again(dataset, start, stop, seen_as)
    wanted = {key: array.copy() for key, array in data.items()}
    dataset.add_episodes(data)
    stored = dataset.get_episode(len(lengths))
    for key, array in wanted.items():
        assert np.array_equal(stored[key], array), key
    assert verify(tmp_path / "ring").problems == []


def test_several_episodes_in_one_call_are_taken_before_the_first_overwrites_them(tmp_path: Path) -> None:
    dataset = ring(tmp_path / "ring", [10], 10, camera=True)
    data = given_again(dataset, 0, 8, np.asarray)
    wanted = {key: array.copy() for key, array in data.items()}
    dataset.add_episodes({**data, "episode_index": [3, 3, 3, 3, 2, 2, 2, 2]}, no_flush=True)
    for key, array in wanted.items():
        assert np.array_equal(dataset.get_episode(1)[key], array[:4]), key
        assert np.array_equal(dataset.get_episode(2)[key], array[4:]), key


def test_columns_of_another_dataset_are_not_copied_first(tmp_path: Path) -> None:
    dataset = ring(tmp_path / "ring", [10], 10)
    column = dataset.column("action")[3:]
    assert is_mapped_in(column, tmp_path / "ring")
    assert not is_mapped_in(column, tmp_path / "rin")
    assert not is_mapped_in(np.array(column), tmp_path / "ring")
    (tmp_path / "link").symlink_to(tmp_path / "ring")
    assert is_mapped_in(np.memmap(tmp_path / "link/columns/action.bin", np.float32, "r"), tmp_path / "ring")
