"""Every way in which one read and one write can meet, effect by effect: what is read is the old or the new, whole.

The reading protocol has many rules (docs/format.md, "Reading beside a writer"). Without any one of them some meeting
here gives a mixture, of two episodes, of two versions, of a window and its padding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2, StorageError
from roboreel.format.files import observed
from roboreel.store import Store
from tests.stepping import ALL, Meeting

DELTAS = {"value": [-0.2, -0.1, 0.0, 0.1]}
LOOKS = ["owners", "index", "owners 1", "value", "value 1"]


def episode(length: int, first: int) -> dict[str, Any]:
    return {"value": np.arange(first, first + length, dtype=np.float32)}


class Ring:
    """A ring of 12 slots, three episodes of 4 frames, with a writer and a reader."""

    def __init__(self, root: Path) -> None:
        self.writer = LeRobotDatasetV2(root, fps=10, buffer_capacity=12, use_as_fifo_buffer=True)
        self.number = 0
        for _ in range(3):
            self.add(4)
        self.reader = LeRobotDatasetV2(root, readonly=True, delta_timestamps=DELTAS)
        self.read([0])

    def add(self, length: int) -> None:
        self.number += length
        self.writer.add_episodes(episode(length, self.number - length), no_flush=True)

    def fail_to_add(self) -> None:
        """Fail at the last effect before the commit, so that everything is undone."""

        def fail(_kind: str, path: Path) -> None:
            if path.name == "episodes.bin":
                raise OSError(5, "made to fail")

        with observed(fail):
            self.writer.add_episodes(episode(4, 1000), no_flush=True)

    def edit(self) -> None:
        with self.writer.edit("value") as values:
            values += 1000

    def read(self, indices: list[int]) -> dict[str, Any]:
        return {key: value.tolist() for key, value in self.reader.get_batch(indices).items()}


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ring]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    ring = Ring(tmp_path / "ring")
    yield ring
    ring.writer.close()


def effects_of(write: Callable[[], None]) -> int:
    seen: list[str] = []
    with observed(lambda kind, _path: seen.append(kind)), contextlib.suppress(StorageError):
        write()
    return len(seen)


def schedules(effects: int) -> Iterator[dict[str, int]]:
    """How many effects come before which look of the first attempt."""
    for look in LOOKS:
        for here in range(1, effects + 1):
            yield {look: here, "end": ALL}  # ended when the reader looks again
    for here in range(1, effects):
        yield {"value 1": here}  # going on when it looks again
        for look in ("value", "value 1"):
            yield {"begin": here, look: 1}  # going on when the read begins
            yield {"begin": here, look: 4}


def check(ring: Ring, meeting: Meeting, write: Callable[[], None], indices: list[int], again: list[int]) -> None:
    """Have a read meet a write in every way; adding episodes of `again` frames makes the ring as it was."""
    effects = effects_of(write)
    for at in schedules(effects):
        for length in again:
            ring.add(length)
        old = ring.read(indices)
        with meeting.of(write, at):
            met = ring.read(indices)
        assert met in (old, ring.read(indices)), (at, meeting.looks)


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch, ring: Ring) -> Meeting:
    return Meeting(monkeypatch)


def test_a_read_that_meets_an_overwrite_of_its_whole_episode(ring: Ring, meeting: Meeting) -> None:
    check(ring, meeting, lambda: ring.add(4), [0, 1, 2, 3], [4, 4])


def test_a_read_of_which_only_the_windows_meet_an_overwrite(ring: Ring, meeting: Meeting) -> None:
    check(ring, meeting, lambda: ring.add(2), [2, 3], [10, 4, 8])


def test_a_read_that_meets_an_overwrite_which_fails_and_is_undone(ring: Ring, meeting: Meeting) -> None:
    check(ring, meeting, ring.fail_to_add, [0, 1, 2, 3], [])


def test_a_read_that_meets_an_edit(ring: Ring, meeting: Meeting) -> None:
    check(ring, meeting, ring.edit, [0, 1, 2, 3], [])


def test_a_batch_of_a_ring_that_never_rests_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roboreel.store.store.WAIT_FOR_WRITER_S", 0.5)
    ring = Ring(tmp_path / "dataset")
    take_all = Store.take_all
    added = 0

    def take_and_add(store: Store, keys: Any, slots: Any, arrays: dict[str, Any]) -> None:
        nonlocal added
        take_all(store, keys, slots, arrays)
        if "value" in keys and len(slots) > 2:  # whoever wants many frames is overtaken
            ring.add(4)
            added += 1

    monkeypatch.setattr(Store, "take_all", take_and_add)
    batch = ring.read(list(range(12)))
    assert added > 3
    for value, is_pad in zip(batch["value"], batch["value_is_pad"], strict=True):
        first = int(value[2]) // 4 * 4  # episodes are of 4 frames, each frame of its number
        wanted = [value[2] - 2, value[2] - 1, value[2], value[2] + 1]
        assert value == [min(max(number, first), first + 3) for number in wanted]
        assert is_pad == [not first <= number <= first + 3 for number in wanted]
    assert [len(part) for part in batch.values()] == [12] * len(batch)
