"""Power is cut at any effect: what was flushed is there, less what a ring was about to overwrite, and nothing lies."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2, StorageError
from roboreel.format import lock
from roboreel.format.files import Effect, observed, recorded
from tests.power import Disk
from tests.recordings import CAMERA, VIDEO_ERROR, pictures, recording
from tests.test_durability import Failing

Frames = dict[int, tuple[int, float]]
"""Frame number → its episode, and its action as edited."""


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> Boots:
    return machine(monkeypatch)


def machine(monkeypatch: pytest.MonkeyPatch) -> Boots:
    """Have the boot id be ours; the disk is too, so that no other one is waited for."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)
    boots = Boots()
    users = [module for name, module in list(sys.modules.items()) if name.startswith("roboreel.store.")]
    for module in users:
        if getattr(module, "boot_id", None) is lock.boot_id:
            monkeypatch.setattr(module, "boot_id", boots)
    return boots


class Boots:
    """Stands for the machine's boot id: another one after each cut."""

    number = 1

    def __call__(self) -> bytes:
        return self.number.to_bytes(16, "little")


@dataclass
class Moment:
    """What a disk may come up with: what was stored when it was flushed, less what a ring has overwritten since."""

    frames: Frames = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    """Slot → frame number."""
    next_slot: int = 0
    reached: int = 0
    """Slots from `next_slot` on, around the ring, that were overwritten since, or are being."""

    def allows(self, found: Frames, capacity: int | None) -> bool:
        at_risk = {(self.next_slot + k) % capacity for k in range(self.reached)} if capacity else set()
        may_go = {self.slots[slot] for slot in at_risk & self.slots.keys()}
        return found.items() <= self.frames.items() and self.frames.keys() - found.keys() <= may_go

    def overwritten(self, start: int, length: int, capacity: int) -> None:
        """An end that is skipped counts, and a sixteenth is taken ahead."""
        if self.slots.keys() & range(start, start + length):
            reached = (start - self.next_slot) % capacity + length + capacity // 16
            self.reached = min(max(self.reached, reached), capacity)


class History:
    """Random additions, flushes and edits of one dataset, with a list of what must survive."""

    def __init__(self, root: Path, mode: str, capacity: int | None, rng: np.random.Generator) -> None:
        self.root, self.capacity, self.rng = root, capacity, rng
        self.dataset = LeRobotDatasetV2(root, 10, capacity, capacity is not None, mode)
        self.moments = [Moment()]
        """What was flushed last, and what may have been since."""
        self.frames: Frames = {}
        self.slots: dict[int, int] = {}
        self.next_slot = self.number = self.episode = 0
        self.grown = False

    def step(self) -> None:
        kind = self.rng.choice(["add", "add", "add", "add", "add and flush", "flush", "edit", "close", "grow"])
        if not self.frames or kind.startswith("add"):
            self._add(flush=kind == "add and flush")
        elif kind == "edit":
            self._edit()
        elif kind == "grow":
            self._grow()
        else:
            self.moments.append(self._now())
            self.dataset.flush() if kind == "flush" else self.dataset.close()
            self._flushed()

    def _now(self) -> Moment:
        return Moment(dict(self.frames), dict(self.slots), self.next_slot)

    def _add(self, *, flush: bool) -> None:
        length = int(self.rng.integers(1, 7))
        start = self.next_slot
        if self.capacity is not None and start + length > self.capacity:
            start = 0
        if self.grown:  # the first overwriting of a ring that has grown is preceded by a flush
            self.moments.append(self._now())
        for moment in self.moments if self.capacity else []:
            moment.overwritten(start, length, self.capacity or 0)
        for slot in range(start, start + length):
            self.frames.pop(self.slots.get(slot, -1), None)
        self.slots |= {start + k: self.number + k for k in range(length)}
        self.frames |= {self.number + k: (self.episode, (self.number + k) * 0.5) for k in range(length)}
        data = recording(length, self.number, camera=True, task="push")
        self.next_slot, self.number, self.episode = start + length, self.number + length, self.episode + 1
        if flush:
            self.moments.append(self._now())
        self.dataset.add_episodes(data, no_flush=not flush)
        if flush:
            self._flushed()

    def _grow(self) -> None:
        if self.capacity is None or self.capacity > 100:
            return
        self.moments.append(self._now())
        self.dataset.close()
        self._flushed()
        self.capacity += int(self.rng.integers(1, 12))
        self.dataset = LeRobotDatasetV2(self.root, buffer_capacity=self.capacity)
        self.grown = True

    def _edit(self) -> None:
        chosen = self.rng.random(len(self.slots)) < 0.5
        chosen[int(self.rng.integers(len(chosen)))] = True  # an edit that changes nothing does nothing
        self.moments.append(self._now())
        for slot, number in self.slots.items():
            if number in self.frames and chosen[slot]:
                self.frames[number] = (self.frames[number][0], -self.frames[number][1])
        self.moments.append(self._now())
        with self.dataset.edit("action") as actions:
            actions[chosen] *= -1
        self._flushed()

    def _flushed(self) -> None:
        self.moments = [self._now()]
        self.grown = False


class Cutting:
    """A recorder that cuts the power at a random choice of effects and looks at what comes up."""

    def __init__(self, history: History, boots: Boots, share: float, seed: int) -> None:
        self.disk = Disk(history.root.parents[1])
        self.history, self.boots, self.share = history, boots, share
        self.rng = np.random.default_rng(seed)
        self.cuts = 0
        self._looking = False

    def __call__(self, effect: Effect) -> None:
        if self._looking:
            return
        if self.rng.random() < self.share:
            self.cut()
        self.disk(effect)

    def cut(self) -> None:
        base = self.history.root.parents[1]
        out = base.with_name("cut")
        self._looking = True
        self.disk.cut(int(self.rng.integers(1 << 62)), out)
        self.boots.number += 1
        root = out / self.history.root.relative_to(base)
        look(root, self.history.moments, self.history.capacity, self.rng)
        self.boots.number -= 1
        shutil.rmtree(out)
        self._looking = False
        self.cuts += 1


def look(root: Path, moments: list[Moment], capacity: int | None, rng: np.random.Generator) -> None:
    """Open what a cut has left: read it, go on writing, read again."""
    if not (root / "metadata.json").exists():
        assert not moments[0].frames
        return
    reader = LeRobotDatasetV2(root, readonly=True)
    before = contents(reader)
    assert any(moment.allows(before, capacity) for moment in moments), (before, moments)
    number = 10_000
    with LeRobotDatasetV2(root) as writer:
        assert contents(writer) == before
        added: Frames = {}
        for _ in range(int(rng.integers(1, 5))):
            length = int(rng.integers(1, 7))
            writer.add_episodes(recording(length, number, camera=True, task="pull"), no_flush=bool(rng.random() < 0.7))
            episode = int(writer.get_unique_episode_indices()[-1])
            added |= {number + k: (episode, (number + k) * 0.5) for k in range(length)}
            number += length
            now = contents(writer)
            assert now.items() <= {**before, **added}.items()
            assert number - 1 in now
            if capacity is None:
                assert now == {**before, **added}
    assert contents(reader) == contents(LeRobotDatasetV2(root, readonly=True)) == now
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def contents(dataset: Any) -> Frames:
    """What the episodes hold, after checking that every key of every frame says the same."""
    frames: Frames = {}
    for episode in dataset.get_unique_episode_indices().tolist():
        whole = dataset.get_episode(episode)
        state, numbers = whole["observation.state"], whole["observation.state"][:, 0].astype(int)
        assert np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers)))
        assert np.array_equal(state[:, 1], -state[:, 0])
        assert np.array_equal(np.abs(whole["action"]), numbers * 0.5)
        assert np.all(whole["episode_index"] == episode)
        assert set(whole["task"]) <= {"push", "pull"}
        assert whole["frame_index"][-1] - whole["frame_index"][0] == len(numbers) - 1
        assert np.abs(whole[CAMERA].astype(int) - pictures(numbers)).max() <= VIDEO_ERROR
        frames |= {n: (episode, a) for n, a in zip(numbers.tolist(), whole["action"].tolist(), strict=True)}
    return frames


def cut_often(folder: Path, boots: Boots, mode: str, capacity: int | None, seed: int, *, steps: int, cuts: int) -> int:
    """Run one history; return how many cuts were looked at."""
    base = folder / "disk"
    base.mkdir()
    history = History(base / "new" / "dataset", mode, capacity, np.random.default_rng(seed))
    effects_a_step = 200 if mode == "memmap" else 60
    cutting = Cutting(history, boots, cuts / steps / effects_a_step, seed)
    with recorded(cutting):
        for _ in range(steps):
            history.step()
            cutting.cut()
    history.dataset.close()
    shutil.rmtree(base)
    return cutting.cuts


@pytest.mark.parametrize(
    ("mode", "capacity", "seed"),
    [
        *(("memmap", None, 0), ("memmap", 17, 0), ("memmap", 17, 1), ("memmap", 40, 1)),
        *(("png", None, 1), ("png", 17, 0), ("png", 17, 1), ("png", 40, 0)),
    ],
)
def test_what_was_flushed_survives_a_power_cut(
    tmp_path: Path, boots: Boots, mode: str, capacity: int | None, seed: int
) -> None:
    assert cut_often(tmp_path, boots, mode, capacity, seed, steps=8, cuts=4) >= 8


@pytest.mark.parametrize("capacity", [None, 17])
def test_videos_survive_a_power_cut_as_well(tmp_path: Path, boots: Boots, capacity: int | None) -> None:
    assert cut_often(tmp_path, boots, "video", capacity, 0, steps=3, cuts=2) >= 3


def test_power_is_cut_after_a_writer_has_died_in_an_edit(tmp_path: Path, boots: Boots) -> None:
    """The file of the edit stays until no record needs it, that of the disk included."""
    died = True
    at = 0
    while died:
        base = tmp_path / f"disk {at}"
        base.mkdir()
        history = History(base / "new" / "dataset", "memmap", None, np.random.default_rng(at))
        disk = Disk(base)
        with recorded(disk):
            history.number = 1  # 0 has no sign to change
            history._add(flush=True)
            old = history._now()
            failing = Failing(at, for_good=True)
            with observed(failing), contextlib.suppress(StorageError):
                history._edit()
            died = failing.seen > at
            edited = history._now()
            history.dataset = LeRobotDatasetV2(history.root)
            history._add(flush=False)
        boots.number += 1
        for seed in (at % 2, 2 + at % 2):
            disk.cut(seed, tmp_path / f"cut {at} {seed}")
            root = tmp_path / f"cut {at} {seed}" / "new" / "dataset"
            look(root, [old, edited], None, np.random.default_rng(seed))
        boots.number -= 1
        history.dataset.close()
        at += 1
    assert at > 15
