"""Samplers over what is written meanwhile: rings that go on, datasets that grow, frames that a dead writer has lost."""

from __future__ import annotations

import contextlib
import gc
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

from roboreel import (
    EpisodeAwareSampler,
    InvalidArgumentError,
    LeRobotDatasetV2,
    MultiLeRobotDatasetV2,
    PrioritizedSampler,
    WeightedSampler,
)
from roboreel.format.files import observed
from tests.recordings import made, numbers_of, recording, ring


class KilledError(BaseException):
    """What no error handling of the library may mistake for a failure that it can mend."""


def die_recording(dataset: LeRobotDatasetV2, length: int) -> Path:
    """Have the writer of a dataset end as a kill ends it, in the middle of an episode."""
    root, dying = dataset.storage_dir, False

    def kill(kind: str, path: Path) -> None:
        nonlocal dying
        dying = dying or path.parent.name == "columns"
        if dying:
            raise KilledError

    with contextlib.suppress(KilledError), observed(kill):
        dataset.add_episodes(recording(length, 90))
    assert dying
    dataset._opening._writer = None
    gc.collect()
    return root


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        # 4 and 4 frames, then 3 over the first: frame 3 at slot 3 is what is left of episode 0
        ({}, [3, 4, 5, 6, 7, 0, 1, 2]),
        ({"drop_n_last_frames": 1}, [4, 5, 6, 0, 1]),
        ({"drop_n_first_frames": 1}, [5, 6, 7, 1, 2]),
        ({"max_age": 7}, [4, 5, 6, 7, 0, 1, 2]),
        ({"max_age": 5}, [6, 7, 0, 1, 2]),
        ({"max_age": 2}, [1, 2]),
        ({"episodes": [0, 2]}, [3, 0, 1, 2]),
    ],
)
def test_what_is_left_of_an_overwritten_episode(tmp_path: Path, options: dict[str, Any], drawn: list[int]) -> None:
    assert list(EpisodeAwareSampler(ring(tmp_path / "ring", [4, 4, 3], 8), **options)) == drawn


def test_old_frames_at_the_end_that_no_episode_fits_over_age_out(tmp_path: Path) -> None:
    buffer = ring(
        tmp_path / "ring", [4, 4, 3, 3, 3, 3, 3], 8
    )  # slots 6 and 7 hold frames 6 and 7 since the first round
    assert set(EpisodeAwareSampler(buffer)) == set(range(8))
    assert set(EpisodeAwareSampler(buffer, max_age=8)) == set(range(6))


def test_a_lost_frame_is_never_drawn(tmp_path: Path) -> None:
    root = die_recording(ring(tmp_path / "ring", [4, 4], 8), 3)
    for wait in (True, False):  # before and after the next writer has come
        reader = LeRobotDatasetV2(root, readonly=wait)
        assert len(reader) == 8
        assert list(EpisodeAwareSampler(reader)) == [3, 4, 5, 6, 7]
        assert set(WeightedSampler(reader, weights=np.ones(8), num_samples=200)) == {3, 4, 5, 6, 7}
        if not wait:
            reader.add_episodes(recording(2, 8))
            assert list(EpisodeAwareSampler(reader)) == [3, 4, 5, 6, 7, 0, 1]


def test_a_frame_lost_in_the_middle_of_an_epoch_is_not_drawn_in_its_rest(tmp_path: Path) -> None:
    buffer = ring(tmp_path / "ring", [4, 4], 8)
    reader = LeRobotDatasetV2(buffer.storage_dir, readonly=True)
    samplers: list[Any] = [
        WeightedSampler(reader, 4, weights=np.ones(8), num_samples=400),
        WeightedSampler(reader, 4, weights=lambda dataset: np.ones(len(dataset)), num_samples=400),
        PrioritizedSampler(reader, 4, num_samples=400),
        PrioritizedSampler(MultiLeRobotDatasetV2([reader]), 4, num_samples=400),
    ]
    begun = [iter(sampler) for sampler in samplers]
    assert all(set(chain(*(next(batches) for _ in range(20)))) == set(range(8)) for batches in begun)
    generation = reader.generation
    die_recording(buffer, 3)
    assert reader.generation == generation
    for batches in begun:
        assert set(chain(*batches)) == {3, 4, 5, 6, 7}
    assert np.flatnonzero(samplers[2].probabilities()).tolist() == [3, 4, 5, 6, 7]


def test_an_epoch_keeps_to_the_frames_that_there_were_when_it_began(tmp_path: Path) -> None:
    growing = made(tmp_path / "new", [4, 3])
    sampler = EpisodeAwareSampler(growing, 2, shuffle=True)
    whole = list(EpisodeAwareSampler(growing, 2, shuffle=True))
    iteration = iter(sampler)
    begun = [next(iteration)]
    growing.add_episodes(recording(5, 7))
    state = sampler.state_dict()
    assert begun + list(iteration) == whole
    assert sorted(chain(*sampler)) == list(range(12))
    later = EpisodeAwareSampler(growing, 2, shuffle=True)
    later.load_state_dict(state)
    assert begun + list(later) == whole
    assert sorted(chain(*later)) == list(range(12))


def test_a_ring_that_went_on_is_drawn_from_by_the_same_places(tmp_path: Path) -> None:
    buffer = ring(tmp_path / "ring", [4, 4], 8)
    sampler = EpisodeAwareSampler(buffer, 2, shuffle=True, drop_n_last_frames=1)
    places = list(EpisodeAwareSampler(buffer, 2, shuffle=True, drop_n_last_frames=1))
    loader = DataLoader(buffer, batch_sampler=sampler)
    batches = iter(loader)
    assert numbers_of(next(batches)) == places[0]
    state = sampler.state_dict()
    assert state["drawable"]["generation"] == buffer.generation
    buffer.add_episodes(recording(3, 8))  # frames 8, 9, 10 over 0, 1, 2
    later = EpisodeAwareSampler(buffer, 2, shuffle=True, drop_n_last_frames=1)
    later.load_state_dict(state)
    now = {index: index + 8 if index < 3 else index for index in range(8)}
    wanted = [[now[index] for index in batch] for batch in places[1:]]
    assert [numbers_of(batch) for batch in batches] == wanted
    assert [numbers_of(batch) for batch in DataLoader(buffer, batch_sampler=later)] == wanted
    assert sorted(chain(*later)) == [0, 1, 4, 5, 6]  # the next epoch


def test_ranks_that_see_other_generations_are_told_which_counts(tmp_path: Path) -> None:
    buffer = ring(tmp_path / "ring", [4, 4], 20)
    ranks = [EpisodeAwareSampler(buffer, 2, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    state = ranks[0].state_dict()
    buffer.add_episodes(recording(6, 8))
    ranks[1].load_state_dict(state)
    given = [list(rank) for rank in ranks]
    assert sorted(chain(*given[0], *given[1])) == list(range(8))
    given = [list(rank) for rank in ranks]
    assert sorted(chain(*given[0], *given[1])) == list(range(14))


def test_a_buffer_may_be_empty_at_first(tmp_path: Path) -> None:
    buffer = LeRobotDatasetV2(tmp_path / "ring", 10, 20, use_as_fifo_buffer=True)
    samplers: list[Any] = [EpisodeAwareSampler(buffer, 2), WeightedSampler(buffer, 2, weights="action")]
    for sampler in samplers:
        with pytest.raises(InvalidArgumentError, match=r"no frame of .* may be drawn: it holds no episode yet"):
            iter(sampler)
    buffer.add_episodes(recording(4))
    assert list(samplers[0]) == [[0, 1], [2, 3]]
    assert set(chain(*samplers[1])) <= {1, 2, 3}
