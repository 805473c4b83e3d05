"""Whatever happens in the middle of a write: what was committed is there, identical, and the next write works."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format.files import Effect, observed, recorded
from roboreel.store import Store
from tests.recordings import CAMERA, VIDEO_ERROR, made, numbers_of, pictures, recording, several

Make = Callable[[Path], LeRobotDatasetV2]

# What a dataset looks like before the write that fails, and the length of the episode that is being added.
SCENARIOS: dict[str, tuple[list[int], int, dict[str, Any]]] = {
    "into fresh slots": ([2, 3], 2, {"buffer_capacity": 20}),
    "growing": ([2, 3], 3, {}),
    "over the start of a ring": ([2, 3, 1], 3, {"buffer_capacity": 7, "use_as_fifo_buffer": True}),
    "over all of a ring": ([2, 2], 4, {"buffer_capacity": 4, "use_as_fifo_buffer": True}),
}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody pulls the plug here: effects are seen and failed all the same, only the device is not waited for."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


class Failing:
    """Fails the effect number `at`, and where `for_good` all after it; counts them all.

    Where `half`, the write number `at` fails when half of its bytes are there: `with failing.observing():` does either.
    """

    def __init__(self, at: int | None = None, *, for_good: bool = False, half: bool = False) -> None:
        self.at, self.for_good, self.half, self.seen = at, for_good, half, 0
        self._begun = threading.local()
        self._counting = threading.Lock()
        self._ends: dict[tuple[int, str, str], list[int]] = {}
        self._records = 0

    def __call__(self, kind: str, path: Path) -> None:
        with self._counting:  # cameras are stored at once
            number = self.seen
            self.seen += 1
            self._records += path.name == "state.bin"
            by_folder = path.parent.name in ("columns", "checksums") or path.suffix == ".png"
            alike = path.parent.name if by_folder else path.name
            self._ends.setdefault((self._records, kind, alike), [number, number])[1] = number
        self._begun.code = None
        if self.at is not None and (number == self.at or (self.for_good and number > self.at)):
            code = errno.ENOSPC if number % 2 else errno.EIO
            if not self.half or kind != "write" or number > self.at:
                # held by no variable: with this frame it would keep all that were called from, and their locks
                raise OSError(code, "made to fail")
            self._begun.code = code

    def _write_half(self, effect: Effect) -> None:
        if self._begun.code is not None:
            data = bytes(effect.data) if effect.source is None else effect.source.read_bytes()
            fd = os.open(effect.path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if effect.whole else 0))
            os.pwrite(fd, data[: len(data) // 2], effect.offset)
            os.close(fd)
            raise OSError(self._begun.code, "made to fail")

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        with observed(self), recorded(self._write_half):
            yield

    @property
    def moments(self) -> list[int]:
        """The effects seen, but of several alike only the first and the last.

        Alike are those of one kind on columns, on checksums or on the PNG files of an episode, with no record of the
        dataset's state between them: one loop makes them all. `python -m scripts.faults` leaves none out.
        """
        return sorted({number for ends in self._ends.values() for number in ends})


def contents(dataset: LeRobotDatasetV2) -> list[tuple[int, int]]:
    """(index, episode) of each frame, after checking that every frame is whole."""
    columns = {key: dataset.get_data_by_key(key) for key in ("index", "episode_index", "observation.state")}
    assert np.array_equal(columns["observation.state"][:, 0], columns["index"])
    assert np.array_equal(columns["observation.state"][:, 1], -columns["index"])
    for episode in dataset.get_unique_episode_indices().tolist():
        whole = dataset.get_episode(episode)
        numbers = numbers_of(whole)
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if CAMERA in whole:
            error = np.abs(whole[CAMERA].astype(int) - pictures(np.array(numbers)))
            assert error.max() <= VIDEO_ERROR
    return list(zip(columns["index"].tolist(), columns["episode_index"].tolist(), strict=True))


def template(folder: Path, name: str, mode: str) -> Path:
    lengths, _, options = SCENARIOS[name]
    made(folder / "template", lengths, camera=True, image_mode=mode, task="push", **options).close()
    return folder / "template"


def added(root: Path, first: int, length: int, failing: Failing) -> tuple[LeRobotDatasetV2, Exception | None]:
    dataset = LeRobotDatasetV2(root)
    try:
        with failing.observing():
            dataset.add_episodes(recording(length, first, camera=True, task="pull"))
    except roboreel.StorageError as error:
        return dataset, error
    return dataset, None


@pytest.mark.parametrize(
    ("name", "mode", "half"),
    [
        *((name, "memmap", False) for name in SCENARIOS),
        ("growing", "png", False),
        ("over the start of a ring", "png", False),
        ("into fresh slots", "video", False),
        ("over all of a ring", "video", False),
        ("over the start of a ring", "memmap", True),
        ("growing", "png", True),
    ],
)
def test_an_episode_is_there_whole_or_not_at_all_whichever_effect_fails(
    tmp_path: Path, name: str, mode: str, half: bool
) -> None:
    lengths, length, _ = SCENARIOS[name]
    first = sum(lengths)
    source = template(tmp_path, name, mode)
    counting = Failing()
    shutil.copytree(source, tmp_path / "whole")
    before = contents(LeRobotDatasetV2(source))
    whole = added(tmp_path / "whole", first, length, counting)[0]
    after = contents(whole)
    whole.close()
    assert counting.seen > 5
    added(tmp_path / "whole", first + length, 1, Failing())[0].close()
    images = len(files_of_images(tmp_path / "whole"))
    every = name == "over the start of a ring" and mode == "memmap"
    for at in range(counting.seen) if every else counting.moments:
        root = tmp_path / f"fails at {at}"
        shutil.copytree(source, root)
        dataset, error = added(root, first, length, Failing(at, half=half))
        found = contents(dataset)
        assert found in (before, after)
        committed = found == after
        if error is not None:
            assert committed == bool(getattr(error, "__notes__", []))  # the note says that only the flush failed
        assert contents(LeRobotDatasetV2(root, readonly=True)) == found
        if not committed:
            dataset.add_episodes(recording(length, first, camera=True, task="pull"))
            assert contents(dataset) == after
        dataset.close()
        assert contents(LeRobotDatasetV2(root)) == after
        LeRobotDatasetV2.check_storage_dir_integrity(root)
        added(root, first + length, 1, Failing())[0].close()  # which sweeps what a failure has left behind
        assert len(files_of_images(root)) == images
        shutil.rmtree(root)


@pytest.mark.parametrize("name", SCENARIOS)
def test_where_not_even_undoing_works_only_what_was_being_overwritten_is_lost(tmp_path: Path, name: str) -> None:
    lengths, length, _ = SCENARIOS[name]
    first = sum(lengths)
    source = template(tmp_path, name, "memmap")
    counting = Failing()
    shutil.copytree(source, tmp_path / "whole")
    before, whole = contents(LeRobotDatasetV2(source)), added(tmp_path / "whole", first, length, counting)[0]
    after = contents(whole)
    kept = {frame for frame in before if frame in after}
    for at in counting.moments:
        for same_process in (True, False):
            root = tmp_path / f"fails from {at}"
            shutil.copytree(source, root)
            dataset, error = added(root, first, length, Failing(at, for_good=True))
            assert error is not None
            if kept:
                for reader in (dataset, LeRobotDatasetV2(root, readonly=True)):
                    assert kept <= set(contents(reader)) <= {*before, *after}
                    assert len(reader) >= len(before)
            if not same_process:
                dataset.close()
                dataset = LeRobotDatasetV2(root)
            number = 1 + max(index for index, _ in contents(dataset)) if kept else None
            if number is not None:
                dataset.add_episodes(recording(1, number, camera=True, task="pull"))
                assert (number, dataset.get_unique_episode_indices()[-1]) in contents(dataset)
                dataset.close()
                LeRobotDatasetV2.check_storage_dir_integrity(root)
            shutil.rmtree(root)


@pytest.mark.parametrize("mode", ["memmap", "png"])
def test_a_creation_that_fails_leaves_nothing(tmp_path: Path, mode: str) -> None:
    def create(root: Path, failing: Failing) -> LeRobotDatasetV2:
        dataset = LeRobotDatasetV2(root, fps=10, image_mode=mode)
        with observed(failing):
            dataset.add_episodes(recording(3, camera=True, task="push"))
        return dataset

    counting = Failing()
    after = contents(create(tmp_path / "whole", counting))
    for at in counting.moments:
        root = tmp_path / "parent" / f"fails at {at}"
        try:
            create(root, Failing(at))
        except roboreel.StorageError as error:
            if not getattr(error, "__notes__", []):  # else it was made, and only the flush failed
                assert not root.parent.exists()
                create(root, Failing())
        assert contents(LeRobotDatasetV2(root)) == after
        shutil.rmtree(tmp_path / "parent")


def test_an_interrupt_rolls_back_as_an_error_does(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [3, 4, 3], buffer_capacity=11, use_as_fifo_buffer=True)
    before = contents(dataset)
    seen: list[Path] = []

    def interrupt(kind: str, path: Path) -> None:
        if path.name == "action.bin" and not seen:
            seen.append(path)
            raise KeyboardInterrupt

    with observed(interrupt), pytest.raises(KeyboardInterrupt):
        dataset.add_episodes(recording(5, 10))
    assert contents(dataset) == before


def files_of_images(root: Path) -> list[str]:
    return sorted(
        str(path.relative_to(root)) for folder in ("images", "videos") for path in (root / folder).rglob("*.*")
    )


# Other processes

CHILD = """
import sys
import numpy as np
from roboreel import LeRobotDatasetV2
from tests.recordings import recording
root, capacity, mode, seed = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
dataset = LeRobotDatasetV2(root, 10, capacity or None, bool(capacity), mode)
rng = np.random.default_rng(seed)
number = 1 + int(dataset.get_data_by_key("index").max()) if len(dataset) else 0
while True:
    length = int(rng.integers(1, 9))
    dataset.add_episodes(recording(length, number, camera=True), no_flush=bool(rng.random() < 0.7))
    number += length
    print(number, flush=True)
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    repository = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{repository / 'src'}{os.pathsep}{repository}"},
    )


@pytest.mark.parametrize(("capacity", "mode"), [(0, "memmap"), (40, "memmap"), (40, "png")])
def test_a_killed_writer_leaves_every_committed_episode(tmp_path: Path, capacity: int, mode: str) -> None:
    rng = np.random.default_rng(capacity)
    root = tmp_path / "dataset"
    for seed in range(4):
        with start(root, capacity, mode, seed) as child:
            assert child.stdout is not None
            told = [int(child.stdout.readline()) for _ in range(int(rng.integers(1, 60)))]
            time.sleep(rng.random() * 0.01)
            child.send_signal(signal.SIGKILL)
            told += [int(line) for line in child.stdout if line.endswith("\n")]
        reader = LeRobotDatasetV2(root, readonly=True)
        frames = contents(reader)
        assert told[-1] <= 1 + max(index for index, _ in frames)
        if not capacity:
            assert [index for index, _ in frames] == list(range(len(frames)))
        writer = LeRobotDatasetV2(root)  # takes the lock over, and goes on
        number = 1 + max(index for index, _ in frames)
        writer.add_episodes(recording(2, number, camera=True))
        assert number + 1 in [index for index, _ in contents(writer)]
        assert contents(reader) == contents(writer)
        writer.close()
        LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_one_writer_at_a_time_and_a_dead_one_blocks_nobody(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    with start(root, 40, "memmap", 0) as child:
        assert child.stdout is not None
        child.stdout.readline()
        mine = LeRobotDatasetV2(root)
        with pytest.raises(roboreel.DatasetLockedError, match=f"process {child.pid} on host {socket.gethostname()}"):
            mine.add_episodes(recording(2, camera=True))
        assert len(mine.get_data_by_key("index")) > 0  # reading needs no lock
        child.kill()
    mine.add_episodes(recording(2, 1 + int(mine.get_data_by_key("index").max()), camera=True))
    contents(mine)


def test_a_second_writer_in_the_same_process_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    first = made(tmp_path / "dataset", [3])
    second = LeRobotDatasetV2(tmp_path / "dataset")
    with pytest.raises(roboreel.DatasetLockedError, match=rf"process {os.getpid()} .*wait until it has called close"):
        second.add_episodes(recording(2, 3))
    first.close()
    second.add_episodes(recording(2, 3))
    assert len(first) == 5


def test_who_loses_the_race_to_make_a_dataset_leaves_the_others_files_alone(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    late = LeRobotDatasetV2(root, fps=10)
    errors: list[Exception] = []

    def meanwhile(kind: str, path: Path) -> None:
        if path.name == "state.bin" and not errors:  # the other one is half way through making it
            try:
                late.add_episodes(recording(2))
            except roboreel.DatasetLockedError as error:
                errors.append(error)

    dataset = LeRobotDatasetV2(root, fps=10)
    with observed(meanwhile):
        dataset.add_episodes(recording(3))
    assert len(errors) == 1
    assert contents(dataset) == contents(LeRobotDatasetV2(root)) == [(0, 0), (1, 0), (2, 0)]
    dataset.close()
    late.add_episodes(recording(2, 3))
    assert len(dataset) == 5


@pytest.mark.parametrize("no_flush", [False, True])
def test_of_a_call_that_fails_half_way_the_episodes_before_survive_a_power_cut(tmp_path: Path, no_flush: bool) -> None:
    dataset = made(tmp_path / "dataset", [3], buffer_capacity=10)
    with pytest.raises(roboreel.CapacityError, match="exceeds buffer_capacity=10 by 5") as caught:
        dataset.add_episodes(several([4, 8]), no_flush=no_flush)
    assert caught.value.__notes__ == ["1 episodes before it were added and stay"]
    store = Store.open(tmp_path / "dataset")
    assert store.state.rows == 2
    assert max(state.rows for state in store.durable_states()) == (1 if no_flush else 2)
    dataset = made(tmp_path / "other", [3], buffer_capacity=10)

    def fail_syncs(kind: str, _path: Path) -> None:
        if kind == "sync":
            raise OSError(errno.EIO, "made to fail")

    with observed(fail_syncs), pytest.raises(roboreel.CapacityError) as caught:
        dataset.add_episodes(several([4, 8]), no_flush=no_flush)
    assert len(caught.value.__notes__) == (1 if no_flush else 2)
    assert no_flush or "that they survive a power cut failed, too" in caught.value.__notes__[1]
