"""Samplers: which indices, in which order, shared out how, and taken up where; also from a ring that is written."""

from __future__ import annotations

import json
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from roboreel import (
    EpisodeAwareSampler,
    EpisodeNotFoundError,
    InvalidArgumentError,
    LeRobotDatasetV2,
)
from roboreel.sampling.order import Share, uniforms
from tests.recordings import made, numbers_of

LENGTHS = [3, 1, 4, 2, 7, 5]
FRAMES = sum(LENGTHS)
EPISODE_OF = np.repeat(np.arange(len(LENGTHS)), LENGTHS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDatasetV2:
    dataset: LeRobotDatasetV2 = made(tmp_path_factory.mktemp("samplers") / "dataset", LENGTHS)
    return dataset


# Positions shared out among ranks


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_ranks_get_each_position_once_in_as_many_batches(frames: int, size: int, world_size: int, drop: bool) -> None:
    given, counts = [], []
    for rank in range(world_size):
        share = Share(frames, size, rank, world_size, drop)
        own = list(range(rank, frames, world_size))
        batches = [own[slice(*share.bounds(number))] for number in range(share.batches)]
        assert all(0 < len(batch) <= size for batch in batches)
        assert all(len(batch) == size for batch in (batches if drop else batches[:-2]))
        counts.append(len(batches))
        given += list(chain(*batches))
    whole = frames // (size * world_size) * size * world_size
    assert sorted(given) == list(range(whole if drop else frames))
    assert len(set(counts)) == 1 or (size == 1 and not drop) or frames < world_size


@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_before_each_batch_the_ranks_have_had_the_first_so_many(
    frames: int, size: int, world_size: int, drop: bool
) -> None:
    shares = [Share(frames, size, rank, world_size, drop) for rank in range(world_size)]
    for number in range(min(share.batches for share in shares)):
        had: list[int] = []
        for rank, share in enumerate(shares):
            own = list(range(rank, frames, world_size))
            had += chain(*(own[slice(*share.bounds(k))] for k in range(number)))
            assert share.used(number) == shares[0].used(number)
        assert sorted(had) == list(range(shares[0].used(number)))


def test_the_numbers_are_those_that_earlier_versions_drew() -> None:
    drawn = uniforms(3, seed=0, epoch=0, start=2)
    assert drawn.tolist() == pytest.approx([0.12032339173199624, 0.33854322414452953, 0.6835689629363473], abs=1e-15)
    assert np.array_equal(uniforms(9, 5, 6)[7:], uniforms(2, 5, 6, start=7))
    assert not np.array_equal(uniforms(3, 0, 1), uniforms(3, 1, 0))


# Which frames


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({}, list(range(FRAMES))),
        ({"drop_n_last_frames": 1}, [0, 1, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20]),
        ({"drop_n_first_frames": 2}, [2, 6, 7, 12, 13, 14, 15, 16, 19, 20, 21]),
        ({"drop_n_first_frames": 2, "drop_n_last_frames": 3}, [12, 13]),
        ({"episodes": [4, 0]}, [0, 1, 2, 10, 11, 12, 13, 14, 15, 16]),
        ({"episodes": [1, 3], "drop_n_last_frames": 1}, [8]),
        ({"max_age": 5}, [17, 18, 19, 20, 21]),
        ({"max_age": 8, "drop_n_first_frames": 1}, [14, 15, 16, 18, 19, 20, 21]),
        ({"max_age": 8, "drop_n_first_frames": 5}, [15, 16]),
        ({"max_age": 99}, list(range(FRAMES))),
        ({"batch_size": 4, "episodes": [4]}, [[10, 11, 12, 13], [14, 15, 16]]),
        ({"batch_size": 4, "episodes": [4], "drop_last": True}, [[10, 11, 12, 13]]),
        ({"batch_size": 3, "episodes": [4], "rank": 1, "world_size": 2}, [[11, 13], [15]]),
        ({"episodes": [4], "rank": 1, "world_size": 2}, [11, 13, 15]),
        ({"episodes": [4], "rank": 0, "world_size": 2, "drop_last": True}, [10, 12, 14]),
        ({"episodes": [4], "start": 5}, [15, 16]),
    ],
)
def test_frames_in_order(dataset: LeRobotDatasetV2, options: dict[str, Any], drawn: list[Any]) -> None:
    sampler = EpisodeAwareSampler(dataset, **options)
    assert len(sampler) == len(drawn)
    assert list(sampler) == drawn


# Order


@given(data=st.data(), size=st.none() | st.integers(1, 9), world_size=st.integers(1, 3), shuffle=st.booleans())
def test_ranks_share_an_epoch_out_and_it_is_taken_up_anywhere(
    dataset: LeRobotDatasetV2, data: st.DataObject, size: int | None, world_size: int, shuffle: bool
) -> None:
    first, last = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    chosen = data.draw(st.lists(st.sampled_from([0, 2, 3, 4, 5]), unique=True, min_size=1))
    bounds = zip(np.cumsum([0, *LENGTHS]).tolist(), np.cumsum(LENGTHS).tolist(), strict=False)
    kept = [list(range(a + first, b - last)) for k, (a, b) in enumerate(bounds) if k in chosen]
    wanted = list(chain(*kept))
    seed, epoch = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))

    def sampler(rank: int, **options: Any) -> EpisodeAwareSampler:
        options = {"seed": seed, "epoch": epoch, **options}
        ranked: dict[str, Any] = {"rank": rank, "world_size": world_size, "shuffle": shuffle}
        return EpisodeAwareSampler(
            dataset, size, episodes=chosen, drop_n_first_frames=first, drop_n_last_frames=last, **ranked, **options
        )

    if len(wanted) < world_size:
        with pytest.raises(InvalidArgumentError, match=r"may be drawn|make no batch"):
            [list(sampler(rank)) for rank in range(world_size)]
        return
    given: list[int] = []
    for rank in range(world_size):
        whole = list(sampler(rank))
        given += whole if size is None else list(chain(*whole))
        start = data.draw(st.integers(0, len(whole)))
        assert list(sampler(rank, start=start)) == whole[start:]
        running = sampler(rank)
        iteration = iter(running)
        assert [next(iteration) for _ in range(start)] == whole[:start]
        done = data.draw(st.integers(0, start))
        later = sampler(rank, seed=9, epoch=8)
        later.load_state_dict(json.loads(json.dumps(running.state_dict(done))))
        left = whole[done:] or list(sampler(rank, epoch=epoch + 1))
        assert len(later) == len(left)
        assert list(later) == left
    assert sorted(given) == wanted
    assert shuffle or world_size > 1 or given == wanted


def test_epochs_and_seeds_differ_and_one_follows_the_other(dataset: LeRobotDatasetV2) -> None:
    sampler = EpisodeAwareSampler(dataset, 5, shuffle=True, seed=3)
    epochs = [list(sampler) for _ in range(3)]
    assert sampler.epoch == 3
    assert len({str(batches) for batches in epochs}) == 3
    sampler.set_epoch(1)
    assert [list(sampler), list(sampler)] == epochs[1:]
    assert list(EpisodeAwareSampler(dataset, 5, shuffle=True, seed=4)) != epochs[0]


def test_an_iteration_that_was_broken_off_begins_again(dataset: LeRobotDatasetV2) -> None:
    sampler = EpisodeAwareSampler(dataset, 5, shuffle=True)
    first = next(iter(sampler))
    assert next(iter(sampler)) == first
    sampler.set_epoch(4)
    assert next(iter(sampler)) != first


def test_set_epoch_in_a_loop_does_not_undo_what_was_loaded(dataset: LeRobotDatasetV2) -> None:
    whole = list(EpisodeAwareSampler(dataset, 5, shuffle=True, epoch=2))
    running = EpisodeAwareSampler(dataset, 5, shuffle=True, epoch=2)
    iteration = iter(running)
    next(iteration)
    later = EpisodeAwareSampler(dataset, 5, shuffle=True)
    later.load_state_dict(running.state_dict())
    given = []
    for epoch in range(later.epoch, 4):
        later.set_epoch(epoch)
        given.append(list(later))
    assert given == [whole[1:], list(EpisodeAwareSampler(dataset, 5, shuffle=True, epoch=3))]
    later.set_epoch(2, start=0)
    assert list(later) == whole


def test_a_state_is_taken_up_by_another_number_of_ranks(dataset: LeRobotDatasetV2) -> None:
    alone = list(EpisodeAwareSampler(dataset, 6, shuffle=True))
    running = EpisodeAwareSampler(dataset, 6, shuffle=True)
    iteration = iter(running)
    next(iteration)
    state = running.state_dict()
    parts = []
    for rank in range(3):
        later = EpisodeAwareSampler(dataset, 2, shuffle=True, rank=rank, world_size=3)
        later.load_state_dict(state)
        parts.append(list(later))
    together = [sorted(chain(*batches)) for batches in zip(*parts, strict=True)]
    assert together == [sorted(batch) for batch in alone[1:]]
    with pytest.raises(InvalidArgumentError, match="6 frames into its epoch, in the middle of a step of 4"):
        EpisodeAwareSampler(dataset, 4).load_state_dict(state)


def test_no_frame_is_lost_or_doubled_by_ranks_that_take_up_the_last_step_of_others(tmp_path: Path) -> None:
    nine = made(tmp_path / "nine", [9])
    used: list[int] = []
    for rank in range(2):  # the second rank's last batch is the last frame of its second, for it has one fewer
        running = EpisodeAwareSampler(nine, 2, rank=rank, world_size=2)
        used += chain(*islice(running, 2))
        state = running.state_dict()
    assert (sorted(used), state["position"]) == (list(range(7)), 7)
    rest = []
    for rank in range(2):
        same = EpisodeAwareSampler(nine, 2, rank=rank, world_size=2)
        same.load_state_dict(state)
        rest += list(same)
    assert rest == [[8], [7]]
    alone = EpisodeAwareSampler(nine, 1)
    alone.load_state_dict(state)
    assert list(alone) == [[7], [8]]
    with pytest.raises(InvalidArgumentError, match="7 frames into its epoch, in the middle of a step of 4"):
        EpisodeAwareSampler(nine, 4).load_state_dict(state)
    eight = EpisodeAwareSampler(nine, 4, start=2).state_dict()
    with pytest.raises(InvalidArgumentError, match="8 frames into its epoch, in the middle of a step of 4"):
        EpisodeAwareSampler(nine, 2, rank=1, world_size=2).load_state_dict(eight)


@pytest.mark.parametrize("size", [None, 5])
def test_two_iterations_at_a_time_give_the_same(dataset: LeRobotDatasetV2, size: int | None) -> None:
    sampler = EpisodeAwareSampler(dataset, size, shuffle=True)
    whole = list(EpisodeAwareSampler(dataset, size, shuffle=True))
    one, other = iter(sampler), iter(sampler)
    pairs = list(zip(one, other, strict=True))
    assert pairs == [(batch, batch) for batch in whole]
    assert (sampler.epoch, sampler.state_dict()["position"]) == (1, 0)


# The DataLoader, workers, and whoever writes meanwhile


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_frames_and_its_state_is_what_was_used(dataset: LeRobotDatasetV2, workers: int) -> None:
    context: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
    options: dict[str, Any] = {"shuffle": True, "drop_n_last_frames": 1, "seed": 5}
    whole = list(EpisodeAwareSampler(dataset, 2, **options))
    sampler = EpisodeAwareSampler(dataset, 2, **options)
    loader = DataLoader(dataset, batch_sampler=sampler, **context)
    assert len(loader) == len(whole)
    batches = iter(loader)
    assert [numbers_of(next(batches)) for _ in range(2)] == whole[:2]
    state = sampler.state_dict(2)  # with workers more were asked for
    assert sampler.state_dict()["position"] == 2 * (6 if workers else 2)
    assert [numbers_of(batch) for batch in batches] == whole[2:]
    later = EpisodeAwareSampler(dataset, 2, **options)
    later.load_state_dict(state)
    assert [numbers_of(batch) for batch in DataLoader(dataset, batch_sampler=later, **context)] == whole[2:]
    single = EpisodeAwareSampler(dataset, **options)
    loader = DataLoader(dataset, batch_size=2, sampler=single, **context)
    assert [numbers_of(batch) for batch in loader] == whole


# Refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_size": 0}, InvalidArgumentError, "batch_size=0; an integer, 1 or more, or None"),
        ({"batch_size": 2.0}, InvalidArgumentError, r"batch_size=2\.0; an integer would do"),
        ({"batch_size": True}, InvalidArgumentError, "batch_size=True; an integer would do"),
        ({"seed": None}, InvalidArgumentError, "seed=None; an integer would do"),
        ({"epoch": 0.0}, InvalidArgumentError, r"epoch=0\.0; an integer would do"),
        ({"drop_n_last_frames": 1.5}, InvalidArgumentError, r"drop_n_last_frames=1\.5; an integer would do"),
        ({"drop_n_first_frames": 1.0}, InvalidArgumentError, r"drop_n_first_frames=1\.0; an integer would do"),
        ({"max_age": 3.5}, InvalidArgumentError, r"max_age=3\.5; an integer would do"),
        ({"episodes": {0, 2}}, InvalidArgumentError, r"episodes=\{0, 2\}; a list of episode numbers"),
        ({"episodes": [1.5]}, InvalidArgumentError, r"episodes=\[1\.5\]; a list of episode numbers"),
        ({"rank": 2, "world_size": 2}, InvalidArgumentError, "rank=2 of world_size=2; give 0 <= rank < world_size"),
        ({"seed": -1}, InvalidArgumentError, "seed=-1; give one from 0"),
        ({"start": -1}, InvalidArgumentError, "epoch=0, start=-1; both must be 0 or more"),
        ({"drop_n_last_frames": -1}, InvalidArgumentError, "drop_n_last_frames=-1; both must be 0 or more"),
        ({"max_age": 0}, InvalidArgumentError, "max_age=0; the newest 1 frame or more"),
        ({"episodes": [0, 9]}, EpisodeNotFoundError, r"episodes \[9\] are not in the dataset, which holds 6.*: 0 to 5"),
    ],
)
def test_what_cannot_be_is_refused(
    dataset: LeRobotDatasetV2, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        EpisodeAwareSampler(dataset, **options)


def test_integers_of_numpys_are_integers(dataset: LeRobotDatasetV2) -> None:
    many: dict[str, Any] = {"batch_size": 5, "seed": 3, "epoch": 2, "start": 1, "max_age": 20, "drop_n_last_frames": 1}
    numpys = {name: np.int64(value) for name, value in many.items()}
    one, other = (EpisodeAwareSampler(dataset, shuffle=True, **options) for options in (many, numpys))
    assert list(one) == list(other)
    assert type(other.state_dict()["position"]) is int
    seven: Any = np.int64(7)
    one.set_epoch(seven, start=seven)
    assert type(one.state_dict()["epoch"]) is int
    with pytest.raises(InvalidArgumentError, match=r"start=0\.5; an integer would do"):
        one.set_epoch(7, 0.5)  # type: ignore[arg-type]


def test_nothing_to_draw_is_refused(dataset: LeRobotDatasetV2, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"no episode has a frame left with drop_n_last_frames=7; let more"):
        iter(EpisodeAwareSampler(dataset, drop_n_last_frames=7))
    with pytest.raises(InvalidArgumentError, match="22 frames make no batch of 64 for each of world_size=1 ranks"):
        iter(EpisodeAwareSampler(dataset, 64, drop_last=True))
    sampler = EpisodeAwareSampler(dataset, 5)
    next(iter(sampler))
    with pytest.raises(InvalidArgumentError, match="done=2; 1 were given in this epoch"):
        sampler.state_dict(2)
    with pytest.raises(InvalidArgumentError, match="of a dataset of 22 frames or more, this one has 3"):
        EpisodeAwareSampler(made(tmp_path / "other", [3]), 5).load_state_dict(sampler.state_dict())
