"""What a dataset must hold after whatever was done to it: a list of dicts, a slot holding a frame or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2

CAMERA = "observation.image"
FPS = 16  # with timestamps that are multiples of 1/64 s: all sums are exact
TOLERANCE_S = 1 / FPS - 1e-4
OFFSETS = [-3, -1, 0, 1, 2]
DELTAS = {"value": [offset / FPS for offset in OFFSETS]}

Frame = dict[str, Any]
Slots = list[Frame | None]


class Model:
    """What must be stored."""

    def __init__(self, capacity: int | None, ring: bool, camera: bool) -> None:
        self.capacity, self.ring, self.camera = capacity, ring, camera
        self.slots: Slots = []
        self.next_slot = self.frames = self.episodes = 0

    def place(self, length: int) -> int | None:
        """The slot where an episode of so many frames begins; None where it does not fit."""
        if self.capacity is None or self.next_slot + length <= self.capacity:
            return self.next_slot
        return 0 if self.ring and length <= self.capacity else None

    def add(self, times: list[float]) -> None:
        start = self.place(len(times))
        assert start is not None
        for k, time in enumerate(times):
            frame = {
                "index": self.frames + k,
                "episode_index": self.episodes,
                "frame_index": k,
                "timestamp": time,
                "value": [self.frames + k, -(self.frames + k)],
                "regular": all(abs(t * FPS - i) < 0.5 for i, t in enumerate(times)),
            }
            self.slots[start + k : start + k + 1] = [frame]
        self.next_slot, self.frames, self.episodes = start + len(times), self.frames + len(times), self.episodes + 1

    def lose(self, start: int, stop: int) -> None:
        for slot in range(start, min(stop, len(self.slots))):
            self.slots[slot] = None

    def surviving(self, slot: int) -> Frame | None:
        """The frame of a slot or, where that is lost, of the nearest; the earlier of two."""
        order = sorted(range(len(self.slots)), key=lambda other: (abs(other - slot), other))
        return next((frame for other in order if (frame := self.slots[other]) is not None), None)

    def episode(self, number: int) -> list[Frame]:
        return [frame for frame in self.slots if frame is not None and frame["episode_index"] == number]

    def window(self, frame: Frame) -> tuple[list[Any], list[bool]]:
        """Values and padding around a frame, from what survives of its episode."""
        mine = self.episode(frame["episode_index"])
        chosen = [self._nearest(mine, frame, offset) for offset in OFFSETS]
        return [found["value"] for found, _ in chosen], [is_pad for _, is_pad in chosen]

    @staticmethod
    def _nearest(mine: list[Frame], frame: Frame, offset: int) -> tuple[Frame, bool]:
        if offset == 0:
            return frame, False
        if frame["regular"]:
            wanted = frame["frame_index"] + offset
            found = min(mine, key=lambda other: abs(other["frame_index"] - wanted))
            return found, found["frame_index"] != wanted
        time = frame["timestamp"] + offset / FPS
        found = min(mine, key=lambda other: (abs(other["timestamp"] - time), other["timestamp"], other["frame_index"]))
        outside = not mine[0]["timestamp"] <= time <= mine[-1]["timestamp"]
        return found, outside and abs(found["timestamp"] - time) > TOLERANCE_S


class ViewModel:
    """What a view must hold: the frames of its episodes as they were chosen, by number."""

    def __init__(self, model: Model, episodes: list[int]) -> None:
        self.numbers = [frame["index"] for number in episodes for frame in model.episode(number)]

    def answers(self, model: Model) -> list[Frame]:
        """For each index the frame that was chosen, or the nearest that survives; none where all are gone."""
        there = {frame["index"]: frame for frame in model.slots if frame is not None}
        alive = [i for i, number in enumerate(self.numbers) if number in there]
        nearest = [min(alive, key=lambda k: (abs(k - i), k)) for i in range(len(self.numbers)) if alive]
        return [there[self.numbers[i]] for i in nearest]


def check_view(view: LeRobotDatasetV2, chosen: ViewModel, model: Model) -> None:
    """Compare a view with the model."""
    there = {frame["index"] for frame in model.slots if frame is not None}
    alive = [i for i, number in enumerate(chosen.numbers) if number in there]
    ranges = view.episode_data_index
    held = [i for a, b in zip(ranges["from"].tolist(), ranges["to"].tolist(), strict=True) for i in range(a, b)]
    assert (len(view), held) == (len(chosen.numbers), alive)
    assert ranges["index"].tolist() == [chosen.numbers[first] for first in ranges["from"]]
    frames = chosen.answers(model)
    if not frames:
        with pytest.raises(roboreel.EpisodeNotFoundError, match="overwritten"):
            view.get_batch([0])
        return
    batch = view.get_batch(range(len(view)))
    for key in ("index", "episode_index", "frame_index"):
        assert batch[key].tolist() == [frame[key] for frame in frames], key
        assert view.get_data_by_key(key).tolist() == batch[key].tolist()
    windows = [model.window(frame) for frame in frames]
    assert batch["value"].tolist() == [values for values, _ in windows]
    assert batch["value_is_pad"].tolist() == [is_pad for _, is_pad in windows]


def recorded(model: Model, episodes: list[list[float]]) -> dict[str, Any]:
    """What `add_episodes` is given for episodes at these times, the first of them the model's next."""
    count = sum(map(len, episodes))
    numbers = np.arange(model.frames, model.frames + count)
    images = {CAMERA: np.broadcast_to((numbers % 256).astype(np.uint8)[:, None, None, None], (count, 4, 4, 3))}
    return {
        **(images if model.camera else {}),
        "value": np.stack([numbers, -numbers], axis=1).astype(np.float64),
        "timestamp": np.concatenate([np.array(times) for times in episodes]),
        "episode_index": np.repeat(np.arange(len(episodes)), [len(times) for times in episodes]),
    }


def check(dataset: LeRobotDatasetV2, model: Model) -> None:
    """Compare all that can be read with the model."""
    assert len(dataset) == len(model.slots)
    numbers = sorted({frame["episode_index"] for frame in model.slots if frame is not None})
    assert dataset.get_unique_episode_indices().tolist() == numbers
    if not numbers:  # everything was being replaced when the writer died
        with pytest.raises(roboreel.StorageDirCorruptError, match="no frame survives"):
            dataset.get_batch([0])
        return
    frames = [model.surviving(slot) for slot in range(len(model.slots))]
    batch = dataset.get_batch(range(len(dataset)))
    for key in ("index", "episode_index", "frame_index", "timestamp"):
        assert batch[key].tolist() == [frame[key] for frame in frames if frame is not None], key
        assert dataset.get_data_by_key(key).tolist() == batch[key].tolist()
    if model.camera:
        wanted = (batch["index"] % 256)[:, None]
        assert bool((batch[CAMERA].flatten(1) == wanted).all())
    windows = [model.window(frame) for frame in frames if frame is not None]
    assert batch["value"].tolist() == [values for values, _ in windows]
    assert batch["value_is_pad"].tolist() == [is_pad for _, is_pad in windows]
    for number in numbers:
        episode = dataset.get_episode(number)
        for key in ("index", "frame_index", "timestamp", "value"):
            assert episode[key].tolist() == [frame[key] for frame in model.episode(number)], (number, key)
    ranges = dataset.episode_data_index
    held = [i for a, b in zip(ranges["from"].tolist(), ranges["to"].tolist(), strict=True) for i in range(a, b)]
    assert sorted(held) == [slot for slot, frame in enumerate(model.slots) if frame is not None]
    firsts = [frames[first] for first in ranges["from"]]
    for key in ("index", "episode_index"):
        assert ranges[key].tolist() == [frame[key] for frame in firsts if frame is not None]
