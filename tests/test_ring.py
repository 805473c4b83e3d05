"""The ring (`use_as_fifo_buffer`) against a list that is painted over, after every step, from two processes' eyes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import roboreel
from roboreel import LeRobotDatasetV2, compute_sampler_weights
from roboreel.format.files import observed
from tests.recordings import CAMERA, made, numbers_of, pictures, recording, ring

OFFSETS = [-3, -1, 0, 1, 2]


class Model:
    """What a ring must hold: for each slot the frame number and the episode, or None."""

    def __init__(self, capacity: int) -> None:
        self.slots: list[tuple[int, int] | None] = [None] * capacity
        self.next = 0
        self.frames = 0
        self.episodes = 0

    def add(self, length: int) -> dict[str, Any]:
        """Place an episode; return the data to be given to the dataset."""
        if self.next + length > len(self.slots):
            self.next = 0
        for position in range(length):
            self.slots[self.next + position] = (self.frames + position, self.episodes)
        self.next += length
        self.frames += length
        self.episodes += 1
        return recording(length, self.frames - length)

    @property
    def held(self) -> list[tuple[int, int]]:
        last = max((slot for slot, frame in enumerate(self.slots) if frame is not None), default=-1)
        held = self.slots[: last + 1]
        assert None not in held
        return [frame for frame in held if frame is not None]

    def window(self, slot: int) -> tuple[list[int], list[bool]]:
        """Frame numbers and padding around a slot, from what survives of its episode."""
        number, episode = self.held[slot]
        mine = [frame[0] for frame in self.held if frame[1] == episode]
        wanted = [number + offset for offset in OFFSETS]
        return [min(max(frame, mine[0]), mine[-1]) for frame in wanted], [frame not in mine for frame in wanted]


def check(dataset: LeRobotDatasetV2, model: Model) -> None:
    held = model.held
    assert len(dataset) == len(held)
    batch = dataset.get_batch(range(len(held)))
    windows = [model.window(slot) for slot in range(len(held))]
    assert numbers_of(batch) == [numbers for numbers, _ in windows]
    assert batch["observation.state_is_pad"].tolist() == [is_pad for _, is_pad in windows]
    assert batch["index"].tolist() == [number for number, _ in held]
    assert batch["episode_index"].tolist() == [episode for _, episode in held]
    starts = {episode: batch["index"][slot] - batch["frame_index"][slot] for slot, (_, episode) in enumerate(held)}
    assert dataset.get_unique_episode_indices().tolist() == sorted(starts)
    assert dataset.get_data_by_key("index").tolist() == [number for number, _ in held]
    for episode, first in starts.items():
        numbers = [number for number, owner in held if owner == episode]
        got = dataset.get_episode(episode)
        assert numbers_of(got) == numbers
        assert got["frame_index"].tolist() == [number - first for number in numbers]
    ranges = dataset.episode_data_index
    covered = [i for start, stop in zip(ranges["from"], ranges["to"], strict=True) for i in range(start, stop)]
    assert sorted(covered) == list(range(len(held)))
    firsts = list(zip(ranges["index"].tolist(), ranges["episode_index"].tolist(), strict=True))
    assert firsts == [held[start] for start in ranges["from"]]


@settings(max_examples=40)
@given(data=st.data(), capacity=st.integers(1, 16))
def test_a_ring_holds_what_was_painted_last(data: st.DataObject, capacity: int) -> None:
    steps = data.draw(st.lists(st.integers(0, capacity), min_size=1, max_size=14), label="lengths; 0: reopen")
    deltas = {"observation.state": [offset / 10 for offset in OFFSETS]}
    model, longest = Model(capacity), 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ring"
        dataset = LeRobotDatasetV2(root, 10, capacity, use_as_fifo_buffer=True, delta_timestamps=deltas)
        reader = LeRobotDatasetV2(root, 10, delta_timestamps=deltas)
        for length in steps:
            if length:
                dataset.add_episodes(model.add(length), no_flush=True)
            elif model.frames:
                dataset.close()
                dataset = LeRobotDatasetV2(root, delta_timestamps=deltas)
            if model.frames:
                check(dataset, model)
                check(reader, model)
                assert len(dataset) >= longest  # loaders hold indices drawn in advance
                longest = len(dataset)
        dataset.close()
        if model.frames:
            LeRobotDatasetV2.check_storage_dir_integrity(root)


@pytest.mark.parametrize("mode", ["memmap", "png"])
def test_a_ring_with_a_camera(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    model = Model(12)
    deltas = {key: [offset / 10 for offset in OFFSETS] for key in ("observation.state", CAMERA)}
    options: Any = {"image_mode": mode, "image_dtype": "uint8", "delta_timestamps": deltas}
    dataset = LeRobotDatasetV2(tmp_path, 10, 12, use_as_fifo_buffer=True, **options)
    for step, length in enumerate(rng.integers(1, 9, 25).tolist()):
        data = model.add(length)
        data[CAMERA] = pictures(np.arange(model.frames - length, model.frames))
        dataset.add_episodes(data, no_flush=True)
        if step % 7 == 3:
            dataset.close()
            dataset = LeRobotDatasetV2(tmp_path, **options)
        check(dataset, model)
        batch = dataset.get_batch(range(len(dataset)))
        assert np.array_equal(batch[CAMERA].movedim(-3, -1).numpy(), pictures(np.array(numbers_of(batch))))
    if mode == "png":
        kept = {path.parent.name for path in (tmp_path / "images").rglob("*.png")}
        assert len(kept) == dataset.num_episodes


def test_a_half_overwritten_episode_by_hand(tmp_path: Path) -> None:
    deltas = {"observation.state": [-0.2, 0], "frame_index": [-0.1]}
    dataset = made(tmp_path / "ring", [5, 4], buffer_capacity=10, use_as_fifo_buffer=True)
    dataset.set_delta_timestamps(deltas)
    dataset.add_episodes(recording(3, 9))  # 9 + 3 > 10: to the start; slot 9 was never filled
    assert len(dataset) == 9
    batch = dataset.get_batch(range(9))
    assert batch["index"].tolist() == [9, 10, 11, 3, 4, 5, 6, 7, 8]
    assert batch["episode_index"].tolist() == [2, 2, 2, 0, 0, 1, 1, 1, 1]
    assert numbers_of(batch)[3:5] == [[3, 3], [3, 4]]
    assert batch["observation.state_is_pad"].tolist()[3:6] == [[True, False], [True, False], [True, False]]
    assert batch["frame_index"][3:5, 0].tolist() == [3, 3]  # its first frame is not frame 0 any more
    assert dataset.num_episodes == 3
    dataset.add_episodes(recording(5, 12))
    assert dataset.get_unique_episode_indices().tolist() == [1, 2, 3]
    with pytest.raises(roboreel.EpisodeNotFoundError, match=r"episode 0 .* holds 3 episodes: 1 to 3"):
        dataset.get_episode(0)


def test_an_episode_longer_than_the_ring_is_refused_and_nothing_overwritten(tmp_path: Path) -> None:
    dataset = made(tmp_path / "ring", [5, 4], buffer_capacity=10, use_as_fifo_buffer=True)
    with pytest.raises(ValueError, match="11 frames is longer than buffer_capacity=10"):
        dataset.add_episodes(recording(11, 9))
    assert dataset.get_data_by_key("index").tolist() == list(range(9))
    dataset.add_episodes(recording(10, 9))
    assert dataset.get_data_by_key("index").tolist() == list(range(9, 19))


def test_a_ring_can_be_made_larger_on_reopening(tmp_path: Path) -> None:
    root = tmp_path / "ring"
    made(root, [4, 4], buffer_capacity=8, use_as_fifo_buffer=True).close()
    dataset = LeRobotDatasetV2(root, buffer_capacity=12)
    dataset.add_episodes(recording(4, 8))
    assert dataset.get_data_by_key("index").tolist() == list(range(12))
    dataset.add_episodes(recording(4, 12))
    assert dataset.get_data_by_key("index").tolist() == [12, 13, 14, 15, *range(4, 12)]


def test_the_weights_of_a_ring_cover_what_survives(tmp_path: Path) -> None:
    dataset = made(tmp_path / "ring", [5, 4], buffer_capacity=10, use_as_fifo_buffer=True)
    dataset.add_episodes(recording(3, 9))
    # Slots 0–2 the new episode, 3–4 what is left of the first, 5–8 the second; the last frame of each is dropped.
    weights = compute_sampler_weights(dataset, 1)
    assert (weights > 0).tolist() == [True, True, False, True, False, True, True, True, False]


def test_an_episode_whose_first_frames_are_lost_between_look_and_read_is_given_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring(tmp_path / "ring", [10, 10], 20).close()
    dataset = LeRobotDatasetV2(tmp_path / "ring", readonly=True)

    def die_over_its_first_frames() -> None:
        def kill(kind: str, path: Path) -> None:
            if kind == "write" and path.name == "frame_index.bin":
                os._exit(0)

        if not os.fork():
            with observed(kill):
                LeRobotDatasetV2(tmp_path / "ring").add_episodes(recording(4, 20))
            os._exit(1)
        os.wait()

    read, looked = dataset._opening.read, False

    def read_later(reading: Any) -> Any:
        nonlocal looked
        if not looked:
            looked = True
            die_over_its_first_frames()
        return read(reading)

    monkeypatch.setattr(dataset._opening, "read", read_later)
    got = dataset.get_episode(0)
    assert got["frame_index"].tolist() == [4, 5, 6, 7, 8, 9]
    assert numbers_of(got) == [4, 5, 6, 7, 8, 9]
