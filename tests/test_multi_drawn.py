"""Datasets read as one, drawn from by samplers, in workers, and beside a process that writes one of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scripts.telling_frames import DELTAS, episode_data, problems
from torch.utils.data import ConcatDataset, DataLoader

from roboreel import (
    EpisodeAwareSampler,
    EpisodeBlocks,
    LeRobotDatasetV2,
    MultiLeRobotDatasetV2,
    PrioritizedSampler,
    WeightedSampler,
    compute_sampler_weights,
    make_loader,
)
from tests.recordings import CAMERA, assorted, made, numbers_of, recording, ring


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LeRobotDatasetV2]:
    return assorted(tmp_path_factory.mktemp("members"))


def test_every_sampler_draws_from_all_of_them(members: dict[str, LeRobotDatasetV2]) -> None:
    joined = MultiLeRobotDatasetV2([members["ring"], members["pushed"], members["pulled"]])
    ends = joined.episode_data_index
    shown = [i for first, stop in zip(ends["from"], ends["to"], strict=True) for i in range(first, stop)]
    assert sorted(EpisodeAwareSampler(joined, shuffle=True)) == sorted(shown)
    weights = np.array([0, 1, 3])
    sampler = WeightedSampler(
        joined, weights=lambda dataset: weights[dataset.get_data_by_key("dataset_index")], num_samples=400
    )
    drawn = joined.get_data_by_key("dataset_index")[list(sampler)]
    assert np.bincount(drawn, minlength=3) / 400 == pytest.approx([0, 8 / 29, 21 / 29], abs=0.06)
    only = WeightedSampler(joined, weights={int(ends["episode_index"][-1]): 1.0})
    assert set(only) == set(range(ends["from"][-1], ends["to"][-1]))
    expected = np.zeros(len(joined))
    for first, stop in zip(ends["from"], ends["to"] - 1, strict=True):
        expected[first:stop] = 1
    assert compute_sampler_weights(joined, 1).tolist() == pytest.approx(expected / expected.sum())
    for workers in (0, 1):
        blocks = EpisodeBlocks(joined, batch_size=5, episodes=2)
        loader: Any = DataLoader(blocks, batch_size=None, num_workers=workers)
        given = [batch["index"].tolist() for batch in loader]
        assert sorted(i for batch in given for i in batch) == sorted(
            joined.get_data_by_key("index")[list(EpisodeAwareSampler(joined))]
        )
    far: Any = next(iter(make_loader(joined, 4, shuffle=False, device="meta")))
    assert (far[CAMERA].device.type, far[CAMERA].dtype) == ("meta", torch.float32)
    loader = make_loader(joined, 4, shuffle=False, device="cpu")
    assert [i for batch in loader for i in batch["index"].tolist()] == joined.get_data_by_key("index")[
        list(EpisodeAwareSampler(joined))
    ].tolist()


def test_priorities_go_by_numbers_that_no_other_frame_has(tmp_path: Path) -> None:
    turning = ring(tmp_path / "ring", [3], 6)
    joined = MultiLeRobotDatasetV2([turning, made(tmp_path / "a", [2]), made(tmp_path / "b", [2])])
    sampler = PrioritizedSampler(joined, batch_size=8, alpha=1, eps=0)
    numbers = joined.get_batch(range(len(joined)))["index"]
    assert sampler.update(numbers, torch.tensor([0, 2, 0, 0, 0, 2, 0])) == 7
    assert sampler.probabilities().tolist() == [0, 0.5, 0, 0, 0, 0.5, 0]
    turning.add_episodes(recording(3, 3))  # not seen yet: as urgent as the most urgent
    assert sampler.probabilities().tolist() == [0, 0.2, 0, 0, 0, 0.2, 0, 0.2, 0.2, 0.2]
    turning.add_episodes(recording(6, 6))
    assert sampler.update(numbers, np.ones(7)) == 4  # the ring's are gone
    assert sampler.probabilities().tolist() == pytest.approx([1 / 16] * 4 + [2 / 16] * 6)


def test_torchs_own_concatenation_gives_the_same_frames(members: dict[str, LeRobotDatasetV2]) -> None:
    datasets = [members["pushed"], members["view"], members["pulled"]]
    concatenated: Any = ConcatDataset(datasets)
    joined = MultiLeRobotDatasetV2(datasets)
    given = [numbers_of(batch) for batch in DataLoader(concatenated, 4)]
    assert given == [numbers_of(batch) for batch in DataLoader(joined, 4)]
    assert [n for batch in given for n in batch] == numbers_of(joined.get_batch(range(len(joined))))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_kept_stay_as_they_are_and_memory_is_used_again(
    members: dict[str, LeRobotDatasetV2], workers: int
) -> None:
    joined = MultiLeRobotDatasetV2([members["pushed"].images_as("uint8"), members["ring"].images_as("uint8")])
    order = [np.random.default_rng(k).integers(0, len(joined), 200).tolist() for k in range(8)]
    loader: Any = DataLoader(joined, batch_sampler=order, num_workers=workers)
    batches = list(loader)
    for indices, batch in zip(order, batches, strict=True):
        assert type(batch) is dict
        assert torch.equal(batch[CAMERA], torch.stack([joined[i][CAMERA] for i in indices]))
    places, pointers = 0, set()
    for batch in DataLoader(joined, batch_sampler=order * 3, num_workers=workers):
        pointers.add(batch[CAMERA].data_ptr())
        places += 1
        del batch
    assert (places, len(pointers) <= 12) == (24, True)


# A ring that another process writes


def record(root: Path, episodes: int) -> None:
    with LeRobotDatasetV2(root) as dataset:
        for number in range(1, episodes):
            dataset.add_episodes(episode_data(number, 2 + number % 38, "memmap"), no_flush=True)


class Endless:
    """Batches from all that there is by then, until the writer has ended."""

    def __init__(self, joined: MultiLeRobotDatasetV2, writer: Any, batches: int) -> None:
        self.joined, self.writer, self.batches = joined, writer, batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        while self.writer.is_alive() or self.batches > 0:
            self.batches -= 1
            yield rng.integers(0, len(self.joined), 48).tolist()


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_beside_a_writer_and_no_frame_is_anothers(tmp_path: Path, start: str) -> None:
    options: dict[str, Any] = {"fps": 10, "image_mode": "memmap", "image_dtype": "uint8"}
    offline = LeRobotDatasetV2(tmp_path / "offline", **options)
    for number in (1_000_000, 1_000_001):
        offline.add_episodes(episode_data(number, 30, "memmap"))
    online = LeRobotDatasetV2(tmp_path / "ring", buffer_capacity=400, use_as_fifo_buffer=True, **options)
    online.add_episodes(episode_data(0, 20, "memmap"))
    online.close()
    joined = MultiLeRobotDatasetV2([online, offline])
    joined.set_delta_timestamps(DELTAS)
    writer = multiprocessing.get_context("fork").Process(target=record, args=(tmp_path / "ring", 200))
    writer.start()
    loader: Any = DataLoader(
        joined, batch_sampler=Endless(joined, writer, 20), num_workers=2, multiprocessing_context=start
    )
    newest, most = 0, 0
    for batch in loader:
        found = {key: np.asarray(value) for key, value in batch.items()}
        assert problems(found, "memmap") == []
        episode = found["tag"][:, DELTAS["tag"].index(0.0), 0]
        assert np.array_equal(episode >= 1_000_000, found["dataset_index"] == 1)
        assert np.array_equal(found["episode_index"], np.where(episode >= 1_000_000, episode - 1_000_000, episode + 2))
        newest, most = max(newest, int(episode[episode < 1_000_000].max())), max(most, int(found["index"].max()))
    writer.join()
    assert writer.exitcode == 0
    assert newest > 100
    assert most > 60 + 2 * 400
    assert len(MultiLeRobotDatasetV2([online, offline])) == len(joined)
