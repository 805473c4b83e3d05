"""torch's own DataLoader over the dataset, with no argument of ours: any number of workers, any way to start them."""

from __future__ import annotations

import multiprocessing
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from roboreel import LeRobotDatasetV2
from tests.recordings import CAMERA, HEIGHT, VIDEO_ERROR, WIDTH, made, numbers_of, pictures, recording

MODES = ["memmap", "png", "video"]
DELTAS: dict[str, list[float]] = {"observation.state": [0], "action": [-0.1, 0, 0.1], CAMERA: [-0.1, 0]}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """In each image mode the same 12 frames, in two episodes."""
    folder = tmp_path_factory.mktemp("datasets")
    for mode in MODES:
        made(folder / mode, [7, 5], camera=True, image_mode=mode, task="push").close()
    return {mode: folder / mode for mode in MODES}


def check_batch(batch: dict[str, Any], size: int) -> list[int]:
    """Check a windowed batch against what was recorded; return its frame numbers."""
    numbers: list[int] = np.array(numbers_of(batch))[:, 0].tolist()
    assert batch["action"].shape == (size, 3)
    assert batch["action"][:, 1].tolist() == [number * 0.5 for number in numbers]
    assert batch[CAMERA].shape == (size, 2, 3, HEIGHT, WIDTH)
    shown = batch[CAMERA][:, 1].movedim(-3, -1).numpy() * 255
    assert np.abs(shown - pictures(np.array(numbers))).max() <= VIDEO_ERROR
    assert batch["action_is_pad"].dtype == torch.bool
    assert batch["task"] == ["push"] * size
    return numbers


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("workers", [0, 2])
def test_every_frame_once_also_after_the_main_process_has_read(roots: dict[str, Path], mode: str, workers: int) -> None:
    dataset = LeRobotDatasetV2(roots[mode], delta_timestamps=DELTAS)
    assert numbers_of(dataset[5]) == [5]  # in video mode: a decoder with threads is open when the workers fork
    for shuffle in (False, True):
        loader = DataLoader(
            dataset,
            batch_size=5,
            shuffle=shuffle,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        batches = list(loader)
        assert [len(batch["index"]) for batch in batches] == [5, 5, 2]
        numbers = [number for batch in batches for number in check_batch(batch, len(batch["index"]))]
        assert sorted(numbers) == list(range(12))
        assert shuffle or numbers == list(range(12))
    assert numbers_of(dataset[6]) == [6]  # and the main process reads on


class EveryMode(Dataset[Any]):
    """The same frames of several datasets side by side, so that one start of a worker tries all of them."""

    def __init__(self, datasets: list[LeRobotDatasetV2]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, i: int) -> Any:
        return [dataset[i] for dataset in self.datasets]


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_that_are_not_forked(roots: dict[str, Path], start: str) -> None:
    datasets = [LeRobotDatasetV2(roots[mode], delta_timestamps=DELTAS) for mode in MODES]
    assert numbers_of(datasets[-1][5]) == [5]
    loader = DataLoader(EveryMode(datasets), batch_size=6, shuffle=True, num_workers=1, multiprocessing_context=start)
    seen: list[int] = []
    for batches in loader:
        numbers = [check_batch(batch, 6) for batch in batches]
        assert numbers[0] == numbers[1] == numbers[2]
        seen += numbers[0]
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_collate_fn_of_the_users_own_is_given_samples(roots: dict[str, Path], workers: int) -> None:
    dataset = LeRobotDatasetV2(roots["memmap"])
    loader = DataLoader(
        dataset, 4, num_workers=workers, collate_fn=describe, multiprocessing_context="fork" if workers else None
    )
    described = list(loader)
    assert described == [(4, "Sample", [4 * k + i for i in range(4)], (3, HEIGHT, WIDTH)) for k in range(3)]


def describe(samples: Any) -> tuple[int, str, list[int], tuple[int, ...]]:
    assert all(isinstance(sample, dict) for sample in samples)
    return (
        len(samples),
        type(samples[0]).__name__,
        [s["index"].item() for s in samples],
        tuple(samples[0][CAMERA].shape),
    )


def test_the_default_collate_takes_the_assembled_batch_as_it_is(roots: dict[str, Path]) -> None:
    dataset = LeRobotDatasetV2(roots["memmap"])
    samples: Any = dataset.__getitems__([3, 1])
    batch = torch.utils.data.default_collate(samples)
    assert batch["observation.state"].data_ptr() == samples[0]["observation.state"].data_ptr()  # no copy
    assert batch["index"].tolist() == [3, 1]


class Scaled(Dataset[Any]):
    """A user's dataset around ours, which changes the samples that it is given."""

    def __init__(self, dataset: LeRobotDatasetV2) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> Any:
        samples = self.dataset.__getitems__(indices)
        for sample in samples:
            sample["doubled"] = sample["index"] * 2
            del sample["action"]
        samples[0]["index"] = samples[0]["index"] - 100
        return samples


@pytest.mark.parametrize("workers", [0, 1])
def test_what_samples_were_changed_to_is_collated(roots: dict[str, Path], workers: int) -> None:
    scaled = Scaled(LeRobotDatasetV2(roots["memmap"]))
    for batch in DataLoader(scaled, 4, num_workers=workers, multiprocessing_context="fork" if workers else None):
        first = int(batch["doubled"][0]) // 2
        assert batch["doubled"].tolist() == [2 * (first + k) for k in range(4)]
        assert batch["index"].tolist() == [first - 100, first + 1, first + 2, first + 3]
        assert "action" not in batch


def test_a_loader_without_batches_gives_single_items(roots: dict[str, Path]) -> None:
    dataset = LeRobotDatasetV2(roots["memmap"])
    assert [numbers_of(item) for item in DataLoader(dataset, batch_size=None)] == list(range(12))


@pytest.mark.parametrize("workers", [0, 1])
def test_subsets_splits_and_concatenations(roots: dict[str, Path], tmp_path: Path, workers: int) -> None:
    dataset = LeRobotDatasetV2(roots["memmap"])
    other = made(tmp_path / "other", [3], camera=True, task="push")

    def indices(part: Dataset[Any]) -> list[int]:
        loader = DataLoader(part, 4, num_workers=workers, multiprocessing_context="fork" if workers else None)
        return [i for batch in loader for i in batch["index"].tolist()]

    assert indices(Subset(dataset, [5, 2, 11])) == [5, 2, 11]
    left, right = random_split(dataset, [0.5, 0.5], torch.Generator().manual_seed(0))
    assert sorted(indices(left) + indices(right)) == list(range(12))
    assert indices(ConcatDataset([dataset, other])) == [*range(12), 0, 1, 2]
    assert indices(ConcatDataset([Subset(dataset, [1]), left])) == [1, *indices(left)]


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_sees_episodes_added_after_it_started(tmp_path: Path, mode: str) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "new", fps=10, image_mode=mode, delta_timestamps={"action": [0, 0.1]})

    def batches() -> Iterator[list[int]]:  # asked for one by one once the worker runs
        for first in (0, 3, 6):
            dataset.add_episodes(recording(3, first, camera=True))  # the first makes it; others make it grow
            yield [first, first + 2, -1]

    loader = DataLoader(dataset, batch_sampler=batches(), num_workers=1, multiprocessing_context="fork")
    for first, batch in zip((0, 3, 6), loader, strict=True):
        assert numbers_of(batch)[:2] == [first, first + 2]
        assert batch["action_is_pad"].tolist()[1] == [False, True]
        error = np.abs(batch[CAMERA].movedim(-3, -1).numpy() * 255 - pictures(np.array(numbers_of(batch))))
        assert error.max() <= VIDEO_ERROR


def test_a_forked_child_reads_and_must_not_write(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [3])
    fork = multiprocessing.get_context("fork")
    answers: Any = fork.SimpleQueue()
    child = fork.Process(target=read_and_write, args=(dataset, answers))
    child.start()
    child.join()
    assert answers.get() == 2
    assert re.search(rf"being written by process {os.getpid()}, from which this one was forked", answers.get())
    dataset.add_episodes(recording(1, 3))  # the lock is still ours
    assert len(dataset) == 4


def read_and_write(dataset: LeRobotDatasetV2, answers: Any) -> None:
    answers.put(numbers_of(dataset[2]))
    try:
        dataset.add_episodes(recording(1))
    except OSError as error:
        answers.put(str(error))


def test_the_error_of_a_worker_names_the_index(roots: dict[str, Path]) -> None:
    loader = DataLoader(
        LeRobotDatasetV2(roots["memmap"]), sampler=[0, 99], num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(IndexError, match="index 99 is beyond the ends: the dataset has 12 frames") as caught:
        list(loader)
    traceback.clear_frames(caught.tb)  # else the loader ends with a garbage collection, and waits 5 s for its worker


def test_an_image_transform_runs_in_the_workers(roots: dict[str, Path]) -> None:
    dataset = LeRobotDatasetV2(roots["png"], image_transform=lambda images: images[..., ::4, ::4], image_dtype="uint8")
    loader = DataLoader(dataset, 12, num_workers=1, multiprocessing_context="fork")
    (batch,) = list(loader)
    assert torch.equal(batch[CAMERA], torch.from_numpy(pictures(np.arange(12))[:, ::4, ::4]).movedim(-1, 1))
