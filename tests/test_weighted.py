"""`WeightedSampler`: by frames, episodes and keys, against a list of numbers; also from a ring."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from roboreel import EpisodeNotFoundError, InvalidArgumentError, LeRobotDatasetV2, UnknownKeyError, WeightedSampler
from roboreel.sampling.order import uniforms
from tests.recordings import made, numbers_of, recording, ring

LENGTHS = [4, 2, 5]
FRAMES = sum(LENGTHS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDatasetV2:
    """Frame n has the action n / 2."""
    dataset: LeRobotDatasetV2 = made(tmp_path_factory.mktemp("weighted") / "dataset", LENGTHS)
    return dataset


def squared(dataset: Any) -> Any:
    return dataset.get_data_by_key("action") ** 2


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"weights": [0, 1, 0, 0, 3, 0, 0, 0, 0, 0, 4]}, {1: 1 / 8, 4: 3 / 8, 10: 1 / 2}),
        ({"weights": {0: 1, 2: 3}}, {k: 1 / 16 if k < 4 else 3 / 20 for k in (0, 1, 2, 3, 6, 7, 8, 9, 10)}),
        ({"weights": {0: 1, 1: 1, 2: 0}, "drop_n_last_frames": 1}, {0: 1 / 6, 1: 1 / 6, 2: 1 / 6, 4: 1 / 2}),
        ({"weights": "action"}, {k: k / 55 for k in range(1, FRAMES)}),
        ({"weights": "next.done"}, {3: 1 / 3, 5: 1 / 3, 10: 1 / 3}),
        ({"weights": squared, "episodes": [0]}, {1: 1 / 14, 2: 4 / 14, 3: 9 / 14}),
        ({"weights": np.ones(FRAMES), "max_age": 4, "drop_n_last_frames": 1}, {7: 1 / 3, 8: 1 / 3, 9: 1 / 3}),
    ],
)
def test_frames_come_as_often_as_they_weigh(
    dataset: LeRobotDatasetV2, options: dict[str, Any], shares: dict[int, float]
) -> None:
    drawn = list(WeightedSampler(dataset, num_samples=20_000, **options))
    counts = Counter(drawn)
    assert set(counts) == set(shares)  # what weighs nothing never comes
    for index, share in shares.items():
        spread = np.sqrt(20_000 * share * (1 - share))
        assert abs(counts[index] - 20_000 * share) < 4 * spread  # the seed is fixed: this is no chance


@given(data=st.data(), size=st.none() | st.integers(1, 7), world_size=st.integers(1, 3), epoch=st.integers(0, 2))
def test_it_draws_as_a_list_would_on_all_ranks_and_from_anywhere(
    dataset: LeRobotDatasetV2, data: st.DataObject, size: int | None, world_size: int, epoch: int
) -> None:
    weights = data.draw(st.lists(st.integers(0, 4), min_size=FRAMES, max_size=FRAMES).filter(any))
    samples = data.draw(st.integers(1, 30))
    step = (size or 1) * world_size
    sums = list(accumulate(weights))
    stream = [
        next(index for index, reached in enumerate(sums) if reached > share * sums[-1])
        for share in uniforms(-(-samples // step) * step, 7, epoch)
    ]
    for rank in range(world_size):
        options: dict[str, Any] = {"weights": weights, "num_samples": samples, "seed": 7, "epoch": epoch}
        sampler = WeightedSampler(dataset, size, rank=rank, world_size=world_size, **options)
        given = list(sampler)
        assert (given if size is None else list(chain(*given))) == stream[rank::world_size]
        start = data.draw(st.integers(0, len(given) - 1))
        sampler.set_epoch(epoch, start)
        assert list(sampler) == given[start:]
        running = WeightedSampler(dataset, size, rank=rank, world_size=world_size, **options)
        iteration = iter(running)
        [next(iteration) for _ in range(start + 1)]
        sampler.load_state_dict(running.state_dict(start))
        assert list(sampler) == given[start:]


def test_an_epoch_is_as_long_as_asked_for_in_whole_batches(dataset: LeRobotDatasetV2) -> None:
    for samples, drop, batches in ((None, False, 3), (None, True, 2), (8, False, 2), (9, False, 3), (9, True, 2)):
        sampler = WeightedSampler(dataset, 4, weights="action", num_samples=samples, drop_last=drop)
        assert len(sampler) == batches
        assert [len(batch) for batch in sampler] == [4] * batches


def test_a_loader_with_workers(dataset: LeRobotDatasetV2) -> None:
    whole = list(WeightedSampler(dataset, 4, weights="action"))
    loader = DataLoader(
        dataset,
        batch_sampler=WeightedSampler(dataset, 4, weights="action"),
        num_workers=2,
        multiprocessing_context="fork",
    )
    assert [numbers_of(batch) for batch in loader] == whole


def test_weights_follow_a_ring_within_an_epoch(tmp_path: Path) -> None:
    buffer = ring(tmp_path / "ring", [4, 4], 8)
    sampler = WeightedSampler(buffer, 64, weights="next.done", num_samples=640)  # the last frame of each episode
    batches = iter(sampler)
    assert set(next(batches)) == {3, 7}
    state = sampler.state_dict()
    buffer.add_episodes(recording(3, 8))
    assert set(next(batches)) == {2, 3, 7}
    buffer.add_episodes(recording(5, 11))
    assert set(next(batches)) == {2, 7}
    buffer.add_episodes(recording(4, 16))
    assert set(next(batches)) == {3, 7}
    later = WeightedSampler(buffer, 64, weights="next.done", num_samples=640)
    later.load_state_dict(state)
    given = list(later)
    assert len(given) == 9
    assert given[3:] == list(batches)  # the position it was at, and what the ring holds now
    with buffer.edit("next.done") as done:
        done[:] = np.arange(8) == 5
    assert set(chain(*sampler)) == {5}


def test_an_array_weighs_places_and_nothing_beyond_its_end(tmp_path: Path) -> None:
    growing = made(tmp_path / "new", [3])
    sampler = WeightedSampler(growing, weights=np.array([0, 1, 1]), num_samples=50)
    growing.add_episodes(recording(4, 3))
    assert set(sampler) == {1, 2}
    sampler.weights = np.arange(7) == 6
    assert set(sampler) == {6}


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (np.ones(3), InvalidArgumentError, r"weights of shape \(3,\) for a dataset of 11 frames; one weight a frame"),
        ("nothing", UnknownKeyError, "no key 'nothing'"),
        (
            "observation.state",
            InvalidArgumentError,
            r"weights of shape \(11, 2\) and dtype float32; one",
        ),
        ({0: 1, 7: 1}, EpisodeNotFoundError, r"episodes \[7\] are not in the dataset"),
        ({0: -1}, InvalidArgumentError, "episode 0 weighs -1; weights are finite and 0 or more"),
        (lambda dataset: dataset.get_data_by_key("action") - 2, InvalidArgumentError, "index 0 weighs -2"),
        ([1.0] * 10 + [np.nan], InvalidArgumentError, "index 10 weighs nan"),
        (np.full(FRAMES, 1e308), InvalidArgumentError, "the weights add up to more than a float64 holds"),
        (np.zeros(FRAMES), InvalidArgumentError, "nothing to draw from .*: every weight is 0"),
    ],
)
def test_what_cannot_be_is_refused(
    dataset: LeRobotDatasetV2, weights: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        WeightedSampler(dataset, weights=weights)


def test_a_number_of_samples_that_cannot_be_is_refused(dataset: LeRobotDatasetV2) -> None:
    with pytest.raises(InvalidArgumentError, match="num_samples=0; 1 or more, or None"):
        WeightedSampler(dataset, weights="action", num_samples=0)
    with pytest.raises(InvalidArgumentError, match=r"num_samples=2\.5; an integer would do"):
        WeightedSampler(dataset, weights="action", num_samples=2.5)  # type: ignore[arg-type]
