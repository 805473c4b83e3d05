"""One dataset object in several threads: a learner samples while an actor adds."""

from __future__ import annotations

import os
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
from roboreel.format.files import observed
from roboreel.store import verify
from roboreel.store.episodes import EpisodeTable

ADDED = 120


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _episode(number: int) -> dict[str, np.ndarray]:
    length = 1 + number % 7
    return {"action": np.full((length, 2), number, np.float32), "number": np.full(length, number)}


@pytest.mark.parametrize("capacity", [None, 60])
def test_readers_in_threads_see_whole_episodes_while_one_adds(tmp_path: Path, capacity: int | None) -> None:
    dataset = LeRobotDatasetV2(
        tmp_path / "dataset",
        fps=10,
        buffer_capacity=capacity,
        use_as_fifo_buffer=capacity is not None,
        delta_timestamps={"number": [-0.2, 0, 0.2], "episode_index": [-0.2, 0, 0.2]},
    )
    dataset.add_episodes(_episode(0))
    done = threading.Event()
    found: list[object] = []
    batches = [0, 0]

    def add() -> None:
        try:
            for number in range(1, ADDED):
                dataset.add_episodes(_episode(number), no_flush=True)
                time.sleep(0.0005)  # locks are not fair: whoever takes one again at once may keep all others out
        except Exception as error:  # noqa: BLE001 - what a thread raises is what the test looks for
            found.append(error)
        finally:
            done.set()

    def sample(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not done.is_set() or not batches[seed]:
                batch = dataset.get_batch(rng.integers(len(dataset), size=16))
                if not (batch["number"] == batch["episode_index"]).all():
                    found.append(batch)
                if len(dataset.get_unique_episode_indices()) > ADDED:
                    found.append("more episodes than were added")
                batches[seed] += 1
        except Exception as error:  # noqa: BLE001 - what a thread raises is what the test looks for
            found.append(error)

    threads = [threading.Thread(target=add), *(threading.Thread(target=sample, args=(seed,)) for seed in (0, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found
    assert min(batches) > 0
    with LeRobotDatasetV2(tmp_path / "dataset", readonly=True) as fresh:
        assert dataset.num_episodes == fresh.num_episodes
        assert fresh.get_unique_episode_indices()[-1] == ADDED - 1


def run_all(*works: Callable[[], None]) -> list[BaseException]:
    """Run each in a thread of its own; return what they raised."""
    raised: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - what a thread raises is what the test looks for
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_threads_that_change_one_dataset_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    root, copies = tmp_path / "dataset", [tmp_path / f"copy {k}" for k in range(6)]
    dataset = LeRobotDatasetV2(root, fps=10, buffer_capacity=60, use_as_fifo_buffer=True)
    edits = 0

    def add() -> None:
        for number in range(40):
            dataset.add_episodes(_episode(number), no_flush=number % 5 > 0)

    def edit() -> None:
        nonlocal edits
        while dataset.num_episodes < 3:
            pass
        for _ in range(25):
            with dataset.edit("action") as actions:
                actions[:] += 1000  # kept: (action - number) is a multiple of 1000
            edits += 1

    def snapshot() -> None:
        while not len(dataset):
            pass
        for copy in copies:
            dataset.snapshot(copy)

    def flush() -> None:
        for _ in range(40):
            dataset.flush()

    assert run_all(add, add, edit, snapshot, flush) == []
    assert edits == 25
    dataset.close()
    for path in (root, *copies):
        assert verify(path).problems == []
        batch = LeRobotDatasetV2(path, readonly=True)
        values = batch.get_data_by_key("action")[:, 0] - batch.get_data_by_key("number")
        assert (values % 1000 == 0).all()
    assert LeRobotDatasetV2(root).get_unique_episode_indices()[-1] == 79


def test_two_threads_begin_one_dataset(tmp_path: Path) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10)
    assert run_all(*(lambda number=number: dataset.add_episodes(_episode(number)) for number in range(4))) == []
    assert dataset.num_episodes == 4


def test_a_change_of_another_thread_waits_for_the_edit(tmp_path: Path) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, buffer_capacity=8, use_as_fifo_buffer=True)
    dataset.add_episodes(_episode(6))
    with dataset.edit("number") as numbers:
        adding = threading.Thread(target=dataset.add_episodes, args=(_episode(5),))
        adding.start()
        numbers[0] = -1
        assert dataset.get_data_by_key("number").tolist() == [6] * 7
    adding.join()
    assert dataset.get_data_by_key("number").tolist() == [5] * 6 + [6]


@pytest.mark.parametrize("what", ["add_episodes", "edit", "close", "reload"])
def test_inside_an_edit_nothing_else_can_be_changed(tmp_path: Path, what: str) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, buffer_capacity=8, use_as_fifo_buffer=True)
    dataset.add_episodes(_episode(3))

    def change() -> None:
        if what == "add_episodes":
            dataset.add_episodes(_episode(5))
        elif what == "edit":
            with dataset.edit("action"):
                pass
        else:
            getattr(dataset, what)()

    with dataset.edit("number") as numbers:
        numbers[0] = 7
        with pytest.raises(roboreel.EditOpenError, match=r"inside `with dataset.edit\('number'\)`.* leave the block"):
            change()
        numbers[1] = 8
        dataset.snapshot(tmp_path / "copy")
    assert dataset.get_data_by_key("number").tolist() == [7, 8, 3, 3]
    assert LeRobotDatasetV2(tmp_path / "copy").get_data_by_key("number").tolist() == [3] * 4
    change()
    assert verify(tmp_path / "dataset").problems == []


def test_readers_in_threads_go_on_while_one_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roboreel.dataset.opening._LOOK_S", 0.0)  # each read looks whether it was converted
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="memmap", image_dtype="uint8")
    for number in range(4):
        images = np.full((5, 8, 8, 3), number, np.uint8)
        dataset.add_episodes({"observation.image": images, "number": np.full(5, number)})
    dataset.get_batch([0])  # torch is there: an import that another thread waits for is no part of this
    done = threading.Event()

    def convert() -> None:
        try:
            for mode in ("png", "memmap"):
                dataset.convert(mode)
        finally:
            done.set()

    def read() -> None:
        rng = np.random.default_rng(0)
        while not done.is_set():
            batch = dataset.get_batch(rng.integers(20, size=4))
            assert (batch["observation.image"].flatten(1) == batch["number"][:, None]).all()

    assert run_all(convert, read, read) == []


def test_a_writer_waits_for_the_snapshot_that_another_thread_takes(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    with LeRobotDatasetV2(root, fps=10) as dataset:
        dataset.add_episodes(_episode(3))
    dataset = LeRobotDatasetV2(root)  # which has no lock yet: the snapshot takes it for itself
    adding = threading.Thread(target=dataset.add_episodes, args=(_episode(5),))

    def begin(kind: str, path: Path) -> None:
        if adding.ident is None and ".copy.snapshot" in path.parts:
            adding.start()
            adding.join(0.4)  # longer than a writer is waited for

    with observed(begin):
        dataset.snapshot(tmp_path / "copy")
    adding.join()
    assert dataset.get_data_by_key("number").tolist() == [3] * 4 + [5] * 6
    assert LeRobotDatasetV2(tmp_path / "copy").get_data_by_key("number").tolist() == [3] * 4


@pytest.mark.parametrize("readonly", [True, False])
def test_readers_in_threads_go_on_while_one_closes_and_reloads(tmp_path: Path, readonly: bool) -> None:
    root = tmp_path / "dataset"
    with LeRobotDatasetV2(root, fps=10) as dataset:
        for number in range(4):
            dataset.add_episodes(_episode(number))
    dataset = LeRobotDatasetV2(root, readonly=readonly)
    length = len(dataset)
    done, reads = threading.Event(), [0, 0]

    def reload() -> None:
        try:
            while min(reads) < 100:
                dataset.reload()
                dataset.close()
                time.sleep(0.001)  # locks are not fair: whoever takes one again at once may keep all others out
        finally:
            done.set()

    def read(reader: int) -> None:
        while not done.is_set():
            assert len(dataset) == length
            batch = dataset.get_batch(range(length))
            assert (batch["number"] == batch["episode_index"]).all()
            assert dataset.get_unique_episode_indices().tolist() == [0, 1, 2, 3]
            assert dataset.get_episode(2)["number"].tolist() == [2] * 3
            reads[reader] += 1

    assert run_all(reload, lambda: read(0), lambda: read(1)) == []


def test_close_lets_go_of_every_file_that_nobody_reads(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    dataset = LeRobotDatasetV2(root, fps=10, image_mode="png", decoded_cache="1MB")
    dataset.add_episodes({**_episode(3), "observation.image": np.zeros((4, 8, 8, 3), np.uint8)})
    dataset[0]
    assert open_in(root)
    dataset.close()
    assert open_in(root) == []


def open_in(root: Path) -> list[str]:
    targets = [str(link.readlink()) for link in Path("/dev/fd").iterdir() if link.is_symlink()]
    return [target for target in targets if target.startswith(str(root))]


def test_a_process_forked_while_a_thread_follows_the_writer_reads_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "ring"
    ring = LeRobotDatasetV2(root, fps=10, buffer_capacity=20, use_as_fifo_buffer=True)
    for number in range(8):
        ring.add_episodes(_episode(number), no_flush=True)
    reader = LeRobotDatasetV2(root, readonly=True)
    reader[0]
    ring.add_episodes(_episode(8), no_flush=True)
    half_way, go_on = threading.Event(), threading.Event()
    append, parent = EpisodeTable.append, os.getpid()

    def halting(table: EpisodeTable, new: Any) -> None:
        if os.getpid() == parent:
            table._rows[0], table._count = new[0], 1  # anything: the child must not go on with it
            half_way.set()
            go_on.wait(60)
        append(table, new)

    monkeypatch.setattr(EpisodeTable, "append", halting)
    following = threading.Thread(target=reader.get_unique_episode_indices)
    following.start()
    assert half_way.wait(60)
    child = os.fork()
    if not child:
        right = reader.get_unique_episode_indices().tolist() == ring.get_unique_episode_indices().tolist()
        numbers = reader.get_data_by_key("number").tolist()
        os._exit(0 if right and numbers == ring.get_data_by_key("number").tolist() else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    following.join()
    assert os.waitstatus_to_exitcode(status) == 0
