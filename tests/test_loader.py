"""`make_loader`: batches read ahead, on the device, and taken up where they were left."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset

from roboreel import (
    EpisodeAwareSampler,
    EpisodeBlocks,
    InvalidArgumentError,
    LeRobotDatasetV2,
    WeightedSampler,
    make_loader,
)
from tests.recordings import made

CAMERA, DEPTH = "observation.images.top", "observation.depth"
EPISODES, LENGTH = 5, 8
FRAMES = EPISODES * LENGTH


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader") / "dataset"
    random = np.random.default_rng(0)
    with LeRobotDatasetV2(folder, fps=10, image_mode="memmap") as dataset:
        dataset.add_episodes(
            {
                "action": np.arange(FRAMES, dtype=np.float32),
                CAMERA: random.integers(0, 256, (FRAMES, 6, 8, 3), np.uint8),
                DEPTH: random.integers(0, 2**16, (FRAMES, 6, 8, 1), np.uint16),
                "task": [f"task {frame // LENGTH}" for frame in range(FRAMES)],
                "episode_index": np.repeat(range(EPISODES), LENGTH),
            },
            no_flush=True,
        )
    return folder


@pytest.fixture
def dataset(root: Path) -> LeRobotDatasetV2:
    return LeRobotDatasetV2(root, readonly=True, delta_timestamps={CAMERA: [-0.1, 0], "action": [0, 0.1]})


def indices_of(batches: Any) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


def joined(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert list(one) == list(other)
    return all(
        torch.equal(value, other[key]) and value.dtype == other[key].dtype
        if isinstance(value, torch.Tensor)
        else value == other[key]
        for key, value in one.items()
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_where_an_epoch_is_taken_up_near_its_end_is_told(tmp_path: Path, num_workers: int) -> None:
    dataset = made(tmp_path / "dataset", [20])
    loader = make_loader(dataset, batch_size=4, num_workers=num_workers, seed=1)
    loader.set_epoch(0, start=3)  # workers draw both batches that are left at once
    next(iter(loader))
    assert loader.state_dict()["position"] == 16


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_batches_are_those_of_the_dataset_in_the_samplers_order(
    dataset: LeRobotDatasetV2, workers: int, prefetch: int
) -> None:
    loader = make_loader(dataset, 6, seed=4, num_workers=workers, prefetch=prefetch)
    order = EpisodeAwareSampler(dataset, batch_size=6, shuffle=True, seed=4)
    for epoch in range(2):
        wanted = list(order)
        assert len(loader) == len(wanted) == 7
        batches = list(loader)
        assert indices_of(batches) == wanted, epoch
        for batch, indices in zip(batches, wanted, strict=True):
            assert type(batch) is dict
            assert same(batch, dataset.get_batch(indices))


def test_each_frame_comes_once_an_epoch_and_another_order_follows(dataset: LeRobotDatasetV2) -> None:
    loader = make_loader(dataset, 7)
    first, second = indices_of(loader), indices_of(loader)
    assert sorted(joined(first)) == sorted(joined(second)) == list(range(FRAMES))
    assert first != second
    assert indices_of(make_loader(dataset, 7)) == first
    assert indices_of(make_loader(dataset, 7, seed=1)) != first
    assert joined(indices_of(make_loader(dataset, 7, shuffle=False))) == list(range(FRAMES))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_with_the_batch_after_the_last_one_that_was_taken(dataset: LeRobotDatasetV2, workers: int) -> None:
    whole = make_loader(dataset, 4, num_workers=workers)
    wanted = indices_of(whole) + indices_of(whole)
    loader = make_loader(dataset, 4, num_workers=workers)
    seen = []
    for batch in loader:
        seen.append(batch["index"].tolist())
        if len(seen) == 3:
            state = loader.state_dict()  # though more are read by now
            break
    other = make_loader(dataset, 4, num_workers=workers)
    other.load_state_dict(state)
    assert len(other) == 7
    assert seen + indices_of(other) + indices_of(other) == wanted
    other.set_epoch(0, start=9)
    assert indices_of(other) == wanted[9:10]
    assert other.state_dict()["epoch"] == 1


def test_any_sampler_and_any_dataset_of_torchs(dataset: LeRobotDatasetV2, root: Path) -> None:
    weighted = WeightedSampler(dataset, batch_size=5, weights=np.arange(FRAMES) == 11)
    assert set(joined(indices_of(make_loader(dataset, sampler=weighted)))) == {11}
    singles = EpisodeAwareSampler(dataset, episodes=[3])
    assert indices_of(make_loader(dataset, 5, sampler=singles)) == [[24, 25, 26, 27, 28], [29, 30, 31]]
    first, rest = dataset.split(1, shuffle=False)
    assert indices_of(make_loader(first, 100, shuffle=False)) == [list(range(LENGTH))]
    together: Dataset[Any] = ConcatDataset([first, rest])
    assert indices_of(make_loader(together, 30, shuffle=False)) == [list(range(30)), list(range(30, FRAMES))]
    blocks = EpisodeBlocks(dataset, batch_size=8, episodes=2)
    loader = make_loader(blocks)
    assert sorted(joined(indices_of(loader))) == list(range(FRAMES))
    loader.set_epoch(1, 2)
    assert len(indices_of(loader)) == 3


# The device


def test_on_another_device_images_travel_as_bytes_and_come_as_floats(dataset: LeRobotDatasetV2) -> None:
    loader = make_loader(dataset, 4, device="meta")  # a device that computes nothing, and is always there
    batches = list(loader)
    wanted = dataset.get_batch([0, 1, 2, 3])
    assert loader.dataset.get_batch([0])[CAMERA].dtype == torch.uint8
    assert dataset.get_batch([0])[CAMERA].dtype == torch.float32  # the caller's is as it was
    for key, value in batches[0].items():
        if isinstance(value, torch.Tensor):
            assert value.device.type == "meta"
            assert (value.shape, value.dtype) == (wanted[key].shape, wanted[key].dtype), key
    assert len(batches[0]["task"]) == 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.gpu
def test_on_cuda_every_value_is_what_the_dataset_gives(dataset: LeRobotDatasetV2, workers: int) -> None:
    order = list(EpisodeAwareSampler(dataset, batch_size=6, shuffle=True))
    loader = make_loader(dataset, 6, num_workers=workers, device="cuda")
    kept = list(loader)
    for batch, indices in zip(kept, order, strict=True):
        assert batch[CAMERA].is_cuda
        there = {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        assert same(there, dataset.get_batch(indices))


def test_bytes_that_were_asked_for_stay_bytes_and_a_transform_gets_what_it_expects(root: Path) -> None:
    seen: list[torch.dtype] = []

    def transform(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.dtype)
        return images

    as_bytes = LeRobotDatasetV2(root, readonly=True, image_dtype="uint8")
    assert next(iter(make_loader(as_bytes, 4, device="meta")))[CAMERA].dtype == torch.uint8
    transformed = LeRobotDatasetV2(root, readonly=True, image_transform=transform)
    assert next(iter(make_loader(transformed, 4, device="meta")))[CAMERA].dtype == torch.float32
    assert set(seen) == {torch.float32}


# Reading ahead


class Told(Dataset[Any]):
    """A dataset that tells what it was asked for, and fails where it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.asked: list[int] = []
        self.changed = threading.Condition()

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        if index == self.fails_at:
            raise ValueError(f"{index} cannot be read")
        with self.changed:
            self.asked.append(index)
            self.changed.notify_all()
        return index

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, timeout=60)


@pytest.mark.parametrize(("prefetch", "ahead"), [(1, 3), (2, 4)])
def test_so_many_batches_are_read_ahead_and_no_more(prefetch: int, ahead: int) -> None:
    told = Told()
    batches = iter(make_loader(told, 1, shuffle=False, prefetch=prefetch))
    next(batches)
    told.wait_for(ahead - 1)  # one is taken, `prefetch` lie ready, one waits for room
    for taken in range(2, 6):
        next(batches)
        told.wait_for(min(20, taken + ahead - 2))
        assert len(told.asked) <= taken + ahead - 1
    assert told.asked == list(range(len(told.asked)))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_comes_where_its_batch_would_have_and_says_what_it_said(workers: int) -> None:
    batches = iter(make_loader(Told(fails_at=3), 1, shuffle=False, num_workers=workers))
    numbers: Any = [next(batches) for _ in range(3)]
    assert [int(number) for number in numbers] == [0, 1, 2]
    with pytest.raises(ValueError, match="3 cannot be read"):
        next(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_who_leaves_early_leaves_no_thread_behind(dataset: LeRobotDatasetV2, workers: int) -> None:
    def threads() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "roboreel-prefetch"]

    loader = make_loader(dataset, 2, num_workers=workers)
    for _ in range(3):
        for batch in loader:
            assert len(batch["index"]) == 2
            break
        gc.collect()
        assert threads() == []
    assert len(list(loader)) == FRAMES // 2
    assert threads() == []


def test_epochs_over_a_ring_that_is_written_meanwhile_hold_what_there_is(tmp_path: Path) -> None:
    ring = LeRobotDatasetV2(tmp_path / "ring", fps=10, buffer_capacity=12, use_as_fifo_buffer=True)
    ring.add_episodes({"action": np.arange(6)}, no_flush=True)
    loader = make_loader(ring, 3, num_workers=1)
    for epoch in range(1, 4):
        seen = sorted(joined(indices_of(loader)))
        assert seen == sorted(ring.get_batch(range(len(ring)))["index"].tolist())
        ring.add_episodes({"action": np.arange(6) + 6 * epoch}, no_flush=True)


# Bad input


def bad(dataset: LeRobotDatasetV2) -> Iterator[tuple[dict[str, Any], str]]:
    sampler = EpisodeAwareSampler(dataset, batch_size=4)
    yield {}, "batch_size=None; a number of samples"
    yield {"batch_size": 0}, "batch_size=0; a number of samples"
    yield {"batch_size": 2.0}, "batch_size=2.0; a number of samples"
    yield {"batch_size": 4, "sampler": sampler}, "the sampler makes batches; leave one of them out"
    yield {"batch_size": 4, "num_workers": -1}, "num_workers=-1; 0 or more would do"
    yield {"batch_size": 4, "prefetch": 1.5}, "prefetch=1.5; 0 or more would do"
    yield {"batch_size": 4, "device": "gpu"}, "device='gpu' cannot be used"
    yield {"batch_size": 4, "seed": -1}, "seed=-1"


def test_arguments_that_cannot_be_are_refused_at_once(dataset: LeRobotDatasetV2) -> None:
    for options, message in bad(dataset):
        with pytest.raises(InvalidArgumentError, match=message):
            make_loader(dataset, **options)
    with pytest.raises(InvalidArgumentError, match="give make_loader a sampler that has"):
        make_loader(Told(), 2).set_epoch(1)
    with pytest.raises(InvalidArgumentError, match="has an order of its own; leave it out"):
        make_loader(EpisodeBlocks(dataset, batch_size=4), 2, sampler=range(4))


def test_another_form_of_images_is_a_dataset_beside_this_one(dataset: LeRobotDatasetV2) -> None:
    as_bytes = dataset.images_as("uint8")
    assert (dataset.image_dtype, as_bytes.image_dtype) == ("float32", "uint8")
    wanted = dataset.get_batch([3, 4])[CAMERA]
    assert torch.equal(as_bytes.get_batch([3, 4])[CAMERA].float() / 255, wanted)
    assert torch.equal(as_bytes[3][DEPTH], dataset[3][DEPTH])
    with pytest.raises(InvalidArgumentError, match="image_dtype='int8'; 'float32' and 'uint8' would do"):
        dataset.images_as("int8")
