"""Kill a writer at random instants, again and again, and compare what is left with what it had told.

    python -m scripts.torture --kills 2000 --seed 1

A child adds, overwrites, grows, edits, flushes and reopens, in all three image modes, and writes down before each
operation what it is about to do and after it that it is done. After SIGKILL the dataset must hold what was done, and
of the operation under way all or nothing; in a ring, the frames that it was replacing may be lost, and nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from tests.recordings import CAMERA, VIDEO_ERROR, pictures, recording

from roboreel import LeRobotDatasetV2
from scripts.reliability import record

SETUPS: list[tuple[str, int | None]] = [
    *[("memmap", None), ("memmap", 30), ("memmap", 60)] * 3,
    *[("png", None), ("png", 30)] * 2,
    *[("video", None), ("video", 30)],
]
ROUNDS = 20
"""Kills of one dataset, after which the next begins."""
LONGEST = 9

Frames = dict[int, list[Any]]
"""Frame number → [episode, action]."""


@dataclass
class Args:
    """How often."""

    kills: int = 2000
    seed: int = 0
    minutes: float = 120.0
    """Stop after so long at the latest."""
    into: str | None = None
    """Record the figures under this name in docs/results/reliability.json."""


# The child


class Operations:
    """Random operations on a dataset, each told to the log before and after."""

    def __init__(self, root: Path, mode: str, capacity: int | None, seed: int, log: Path) -> None:
        self._rng = np.random.default_rng(seed)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._root, self._mode = root, mode
        self._ring = capacity is not None
        new = not (root / "metadata.json").exists()  # later it may have grown beyond `capacity`
        self._dataset = LeRobotDatasetV2(root, 10, capacity if new else None, self._ring, mode)
        self._frames = contents(self._dataset) if len(self._dataset) else {}
        self._number = 1 + max(self._frames, default=-1)

    def tell(self, line: dict[str, Any]) -> None:
        os.write(self._log, json.dumps(line).encode() + b"\n")

    def go_on(self) -> None:
        """Do one thing after the other, for ever."""
        self.tell({"ready": True})
        while True:
            kind = self._rng.choice(["add", "add", "add", "add", "flush", "edit", "close", "grow"])
            if kind == "edit" and self._frames:
                self._edit()
            elif kind == "flush":
                self._dataset.flush()
            elif kind == "close":
                self._dataset.close()
            elif kind == "grow" and self._ring and self._frames and self._rng.random() < 0.3:
                self._grow()
            else:
                self._add()

    def _add(self) -> None:
        length = int(self._rng.integers(1, LONGEST + 1))
        data = recording(length, self._number, camera=True, task=str(self._rng.choice(["push", "pull"])))
        self.tell({"add": [self._number, length]})
        self._dataset.add_episodes(data, no_flush=bool(self._rng.random() < 0.8))
        self._number += length
        self._done()

    def _edit(self) -> None:
        self.tell({"edit": True})
        with self._dataset.edit("action") as actions:
            actions *= -1
        self._done()

    def _grow(self) -> None:
        self._dataset.close()
        capacity = len(self._dataset.column("index").base) + int(self._rng.integers(1, 8))  # type: ignore[arg-type]
        self.tell({"grow": capacity})
        self._dataset = LeRobotDatasetV2(self._root, buffer_capacity=capacity)
        self._done()

    def _done(self) -> None:
        columns = [
            self._dataset.get_data_by_key(key).tolist() for key in ("observation.state", "episode_index", "action")
        ]
        frames = {int(state[0]): [episode, action] for state, episode, action in zip(*columns, strict=True)}
        self.tell({"done": [[number, *rest] for number, rest in frames.items()]})


# The judge


@dataclass
class Told:
    """What a child's log says, read after its death."""

    frames: Frames
    """As they were before the operation that was under way, if one was."""
    added: tuple[int, int] | None = None
    edited: bool = False
    ready: bool = False
    operations: int = 0


def read_log(log: Path, before: Frames) -> Told:
    told = Told(before)
    lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []  # what follows the last end is half a line
    for line in map(json.loads, lines):
        told.ready |= "ready" in line
        if "done" in line:
            told.frames = {number: rest for number, *rest in line["done"]}
            told.added, told.edited = None, False
            told.operations += 1
        elif "add" in line:
            told.added = tuple(line["add"])
        elif "edit" in line:
            told.edited = True
    return told


def judge(root: Path, told: Told, ring: bool) -> tuple[Frames, int]:
    """Compare what is left with what was told; return it, and how many frames a ring has lost."""
    if not (root / "metadata.json").exists():
        assert not told.frames, "a dataset is gone"
        return {}, 0
    dataset = LeRobotDatasetV2(root, readonly=True)
    left = contents(dataset)
    dataset.close()
    expected = dict(told.frames)
    if told.edited and all(left[number][1] == -action for number, (_, action) in expected.items()):
        expected = {number: [episode, -action] for number, (episode, action) in expected.items()}
    gone = expected.keys() - left.keys()
    if told.added is not None:
        first, length = told.added
        new = range(first, first + length)
        if first in left:
            assert all(number in left for number in new), f"half an episode: {sorted(left)}"
            expected |= {number: [left[first][0], number * 0.5] for number in new}
        if ring:
            assert len(gone) <= length, f"lost {sorted(gone)}"
            oldest = sorted(expected, key=lambda number: expected[number][0])
            assert gone <= set(oldest[: length + 2 * LONGEST]), f"lost {sorted(gone)} of {sorted(expected)}"
            expected = {number: rest for number, rest in expected.items() if number not in gone}
    assert left == expected, f"left {left}, expected {expected}, under way {told.added} {told.edited}"
    return left, len(gone) if told.added is not None and told.added[0] not in left else 0


def contents(dataset: LeRobotDatasetV2) -> Frames:
    """What the episodes hold, after checking that every key of every frame says the same, images included."""
    frames: Frames = {}
    for episode in dataset.get_unique_episode_indices().tolist():
        whole = dataset.get_episode(episode)
        numbers = whole["observation.state"][:, 0].astype(int)
        assert np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers)))
        assert np.array_equal(whole["observation.state"][:, 1], -numbers)
        assert np.array_equal(np.abs(whole["action"]), numbers * 0.5)
        assert np.all(whole["episode_index"] == episode)
        assert set(whole["task"]) <= {"push", "pull"}
        assert np.abs(whole[CAMERA].astype(int) - pictures(numbers)).max() <= VIDEO_ERROR
        actions = whole["action"].tolist()
        frames |= {number: [episode, action] for number, action in zip(numbers.tolist(), actions, strict=True)}
    return frames


# The run


@dataclass
class Figures:
    kills: int = 0
    operations: int = 0
    episodes: int = 0
    lost_in_mid_overwrite: int = 0
    """Frames that a ring was replacing at the instant of the kill."""
    lost: int = 0
    """Any other; a run that finds one ends with an error."""
    by_mode: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def child(root: Path, mode: str, capacity: int | None, seed: int, log: Path) -> None:
    Operations(root, mode, capacity, seed, log).go_on()


def kill_one(root: Path, setup: tuple[str, int | None], seed: int, before: Frames, figures: Figures) -> Frames:
    """Start a child, kill it after a random time, judge what is left."""
    mode, capacity = setup
    rng = np.random.default_rng(seed)
    log = root.with_name("log")
    log.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=child, args=(root, mode, capacity, seed, log))
    process.start()
    while process.is_alive() and not read_log(log, {}).ready:
        time.sleep(0.001)
    time.sleep(rng.exponential(0.8 if mode == "video" else 0.12))
    assert process.pid is not None
    assert process.is_alive(), f"the child ended by itself: exit code {process.exitcode}"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    told = read_log(log, before)
    left, lost = judge(root, told, capacity is not None)
    if left and rng.random() < 0.5:
        LeRobotDatasetV2.check_storage_dir_integrity(root)
    figures.kills += 1
    figures.operations += told.operations
    figures.lost_in_mid_overwrite += lost
    figures.by_mode[mode] = figures.by_mode.get(mode, 0) + 1
    return left


def run(args: Args, folder: Path) -> Figures:
    figures, began, number = Figures(), time.monotonic(), 0
    while figures.kills < args.kills and time.monotonic() - began < 60 * args.minutes:
        setup, root, left = SETUPS[number % len(SETUPS)], folder / "dataset", dict[int, list[Any]]()
        for k in range(min(ROUNDS, args.kills - figures.kills)):
            try:
                left = kill_one(root, setup, args.seed + 100 * number + k, left, figures)
            except BaseException:
                print(
                    f"seed {args.seed + 100 * number + k}, {setup}, after {figures.kills} kills; kept in {root}-failed"
                )
                if root.exists():
                    shutil.copytree(root, f"{root}-failed", dirs_exist_ok=True)
                raise
        figures.episodes += len({episode for episode, _ in left.values()})
        shutil.rmtree(root, ignore_errors=True)
        number += 1
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def main() -> None:
    args = tyro.cli(Args, description=__doc__)
    figures = run(args, Path(tempfile.mkdtemp(prefix="roboreel-torture-")))
    print(asdict(figures))
    if args.into:
        record("kills", args.into, {**asdict(args), **asdict(figures)})


if __name__ == "__main__":
    main()
