"""Batches of numbers while nobody writes: read a shorter way, and the same to the last bit."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from roboreel import FrameIndexError, LeRobotDatasetV2, MultiLeRobotDatasetV2, StorageDirCorruptError
from roboreel.dataset import places
from roboreel.dataset.quick import Quick
from roboreel.format.paths import column_path

DELTAS = {"number": [-0.1, 0, 0.1, 0.2], "state": [0, 0.3], "pair": [0, 0.3]}
LENGTHS = (5, 1, 7, 12)


def episode(length: int, first: int) -> dict[str, Any]:
    numbers = np.arange(first, first + length)
    return {
        "number": numbers.astype(np.float32),
        "state": np.stack([numbers, -numbers], 1).astype(np.float32),
        "pair": numbers.astype(np.int16),
        "done": numbers % 3 == 0,
        "task": [f"task {number // 4}" for number in numbers],
        "timestamp": np.arange(length) / 10,
    }


def made(root: Path, **options: Any) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(root, fps=10, delta_timestamps=DELTAS, **options)
    first = 0
    for length in LENGTHS:
        dataset.add_episodes(episode(length, first), no_flush=True)
        first += length
    return dataset


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each batch that was asked for the short way came by it."""
    seen: list[bool] = []
    batch, item = Quick.batch, Quick.item

    def told(of: Any, quick: Quick, asked: Any) -> Any:
        found = of(quick, asked)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(Quick, "batch", lambda quick, indices: told(batch, quick, indices))
    monkeypatch.setattr(Quick, "item", lambda quick, slot: told(item, quick, slot))
    return seen


def mapped(root: Path) -> list[str]:
    """The mappings of this process of files in a folder."""
    maps = Path("/proc/self/maps")
    return [line for line in maps.read_text().splitlines() if f"{root}/" in line] if maps.exists() else []


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert list(one) == list(other)
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert (value.dtype, value.shape, value.stride()) == (
                other[key].dtype,
                other[key].shape,
                other[key].stride(),
            ), key
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key
    return True


@pytest.mark.parametrize(("most_bytes", "most_blocks"), [(1 << 24, 1 << 21), (0, 1 << 21), (0, 8)])
def test_it_gives_what_the_other_way_gives(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch, most_bytes: int, most_blocks: int
) -> None:
    monkeypatch.setattr(places, "_MOST_BYTES", most_bytes)
    monkeypatch.setattr(places, "_MOST_BLOCKS", most_blocks)
    dataset = made(tmp_path / "dataset")
    rng = np.random.default_rng(0)
    for count in range(1, 40):
        indices = rng.integers(0, sum(LENGTHS), count).tolist()
        other = LeRobotDatasetV2(tmp_path / "dataset", readonly=True, delta_timestamps=DELTAS)
        assert same(dataset.get_batch(indices), other.get_batch(indices))
    assert taken == [True] * 31
    assert same(dataset.get_batch([-1, 3]), other.get_batch([-1, 3]))
    assert same(dataset.get_batch(np.array([2, 9])), other.get_batch([2, 9]))
    with pytest.raises(FrameIndexError, match="index 25 is beyond the ends"):
        dataset.get_batch([3, 25])
    taken.clear()
    for index in (*range(sum(LENGTHS)), -1, np.int64(3)):
        other = LeRobotDatasetV2(tmp_path / "dataset", readonly=True, delta_timestamps=DELTAS)
        assert same(dataset[index], other[index])
    assert taken == [True] * sum(LENGTHS) + [False] * 2
    first = dataset[4]
    for value in first.values():
        if isinstance(value, torch.Tensor):
            value.zero_()  # its own memory
    assert same(dataset[4], other[4])
    with pytest.raises(FrameIndexError, match="index 25 is beyond the ends"):
        dataset[25]


@pytest.mark.parametrize("code", [99, -1])
@pytest.mark.parametrize("tasks", [1, 7])
def test_a_damaged_column_of_strings_is_told(tmp_path: Path, taken: list[bool], code: int, tasks: int) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10)
    dataset.add_episodes(episode(25, 0) | {"task": [f"task {k % tasks}" for k in range(25)]})
    dataset.close()
    reader = LeRobotDatasetV2(tmp_path / "dataset", readonly=True, delta_timestamps=DELTAS)
    for _ in range(10):
        reader.get_batch([3, 4])
    assert taken[-1]
    path = column_path(tmp_path / "dataset", "task")
    path.write_bytes(np.int32(code).tobytes() + path.read_bytes()[4:])
    with pytest.raises(StorageDirCorruptError, match=f"codes from .*{code}"):
        reader.get_batch([0, 3])
    assert reader.get_batch([3, 4])["task"] == [f"task {3 % tasks}", f"task {4 % tasks}"]


def test_episodes_of_a_frame_or_two_go_the_other_way_where_there_are_many(
    tmp_path: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_MOST_BYTES", 0)
    monkeypatch.setattr(places, "_MOST_BLOCKS", 4)
    asked: list[Any] = []

    def told(*about: Any) -> Any:
        asked.append(places.places_of(*about))
        return asked[-1]

    monkeypatch.setattr("roboreel.dataset.quick.places_of", told)
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, delta_timestamps={"number": [0, 0.1]})
    for first in range(24):
        dataset.add_episodes(episode(1, first), no_flush=True)
    for _ in range(12):
        batch = dataset.get_batch([0, 7, 23])
    assert batch["number"].tolist() == [[0, 0], [7, 7], [23, 23]]
    assert (asked, taken) == ([None], [])


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_what_was_read_that_way_is_pickled_and_copied(tmp_path: Path, taken: list[bool], start: str) -> None:
    dataset = made(tmp_path / "dataset")
    joined = MultiLeRobotDatasetV2([dataset])
    for _ in range(10):
        whole = dataset.get_batch([0, 7])
    assert taken[-1]
    for shown in (dataset, dataset.view([0, 2]), joined):
        before = shown.get_batch([0, 5])
        loader = DataLoader(shown, batch_sampler=[[0, 5]], num_workers=1, multiprocessing_context=start)
        assert same(before, next(iter(loader)))
        for again in (copy.deepcopy(shown), pickle.loads(pickle.dumps(shown))):
            assert same(before, again.get_batch([0, 5]))
    assert same(whole, dataset.get_batch([0, 7]))


def test_what_comes_or_is_asked_for_meanwhile_is_seen_at_once(tmp_path: Path, taken: list[bool]) -> None:
    dataset = made(tmp_path / "dataset", buffer_capacity=26, use_as_fifo_buffer=True)
    reader = LeRobotDatasetV2(tmp_path / "dataset", readonly=True, delta_timestamps=DELTAS)

    def settled() -> dict[str, Any]:
        for _ in range(10):
            batch = reader.get_batch(range(len(reader)))
        assert taken[-1]
        return batch

    assert settled()["number"][:, 1].tolist() == list(range(25))
    dataset.add_episodes(episode(6, 100), no_flush=True)  # over the first two episodes
    batch = reader.get_batch(range(len(reader)))
    assert sorted(batch["number"][:, 1].tolist()) == [*range(6, 25), *range(100, 106)]
    assert batch["task"] == [f"task {int(number) // 4}" for number in batch["number"][:, 1]]
    settled()
    with dataset.edit("number") as numbers:
        numbers[numbers == 103] = -7
    del numbers  # a mapping
    assert -7 in reader.get_batch(range(len(reader)))["number"][:, 1].tolist()
    settled()
    assert mapped(tmp_path / "dataset") or not Path("/proc/self/maps").exists()
    reader.set_delta_timestamps({"number": [0.1]})
    assert reader.get_batch([8])["number"].shape == (1, 1)
    newest = int(reader.episode_data_index["episode_index"][-1])
    view = reader.view(episodes=[newest])
    assert view.get_batch(range(6))["number"].flatten().tolist()[:2] == [101, 102]
    settled_view = [view.get_batch([0])["number"].item() for _ in range(12)]
    assert settled_view == [101] * 12
    dataset.close()
    reader.close()
    view.close()
    assert not mapped(tmp_path / "dataset")
    assert reader.get_batch([8])["number"].shape == (1, 1)


def test_beside_a_writer_that_pauses_every_window_is_of_one_episode(tmp_path: Path, taken: list[bool]) -> None:
    root = tmp_path / "dataset"
    dataset = made(root, buffer_capacity=40, use_as_fifo_buffer=True)
    reader = LeRobotDatasetV2(root, readonly=True, delta_timestamps=DELTAS)
    done = threading.Event()

    def write() -> None:
        try:
            for k in range(60):
                dataset.add_episodes(episode(7, 1000 * (k + 1)), no_flush=True)
                time.sleep(0.004)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    batches = 0
    while not done.is_set():
        batch = reader.get_batch(range(len(reader)))
        now = batch["number"][:, 1:2]
        assert torch.equal(batch["state"][:, 0, 0], now[:, 0])
        assert torch.equal(batch["pair"][:, 0].float(), now[:, 0].to(torch.int16).float())
        assert ((batch["number"] - now).abs() <= 2).all()
        assert torch.equal(batch["number_is_pad"][:, 2], batch["number"][:, 2] == now[:, 0])
        batches += 1
    writer.join()
    assert any(taken), batches
    assert not all(taken), batches
