"""Chosen episodes, views and splits: what they show, share, refuse, and keep when a ring goes over them."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripts.telling_frames import DELTAS, episode_data, problems
from torch.utils.data import DataLoader

import roboreel
from roboreel import LeRobotDatasetV2, compute_sampler_weights
from roboreel.dataset.choice import part_sizes
from tests.recordings import CAMERA, made, numbers_of, recording

WINDOW = {"observation.state": [-0.1, 0, 0.1]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def ends(dataset: Any) -> list[tuple[int, int]]:
    ranges = dataset.episode_data_index
    return list(zip(ranges["from"].tolist(), ranges["to"].tolist(), strict=True))


def episodes_of(*datasets: Any) -> list[list[int]]:
    return [dataset.get_unique_episode_indices().tolist() for dataset in datasets]


# How much each part gets


@pytest.mark.parametrize(
    ("count", "parts", "sizes"),
    [
        (206, [0.9], [185, 21]),
        (206, [0.9, 0.1], [185, 21]),
        (10, [0.8, 0.1], [8, 1, 1]),
        (10, [0.8, 0.1, 0.1], [8, 1, 1]),
        (10, [0.7, 0.2, 0.1], [7, 2, 1]),  # together 0.9999999999999999
        (100, [0.29], [29, 71]),  # 28.999999999999996
        (5, [0.5], [3, 2]),  # of two halves the first
        (10, [1 / 3, 1 / 3], [4, 3, 3]),
        (3, [1 / 3, 1 / 3], [1, 1, 1]),
        (10, [np.float32(0.7), np.float32(0.3)], [7, 3]),
        (10, [7], [7, 3]),
        (10, [7, 2], [7, 2, 1]),
        (10, [7, 3], [7, 3]),
        (10, [np.int64(9)], [9, 1]),
        (2, [0.5], [1, 1]),
    ],
)
def test_sizes_of_parts(count: int, parts: list[float], sizes: list[int]) -> None:
    assert part_sizes(count, parts) == sizes


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], r"split\(\): the parts are all fractions, as split\(0.8, 0.1\), or all numbers of episodes"),
        ([0.5, 2], "all fractions.*or all numbers"),
        (["most"], "all fractions"),
        ([True], "all fractions"),
        ([0.0], "all fractions"),
        ([-0.5], "all fractions"),
        ([float("nan")], "all fractions"),
        ([0], "all fractions"),
        ([0.8, 0.3], r"split\(0.8, 0.3\): that is 1.1 together, and there is 1 \(5 episodes\)"),
        ([4, 2], r"that is 6 together, and there is 5 \(5 episodes\)"),
        ([1.0], r"split\(1.0\) leaves nothing for another part; type split\(0.9\)"),
        ([5], "leaves nothing"),
        ([0.95], r"split\(0.95\) of 5 episodes gives \[5, 0\]: a part without an episode; .* split\(4\)"),
        ([0.01], r"gives \[0, 5\]"),
    ],
)
def test_parts_that_cannot_be(parts: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        part_sizes(5, parts)
    assert isinstance(caught.value, roboreel.InvalidArgumentError)


@given(count=st.integers(1, 300), parts=st.lists(st.floats(0.01, 1), min_size=1, max_size=5), scale=st.floats(0.3, 1))
def test_fractions_are_rounded_by_less_than_an_episode_and_add_up(count: int, parts: list[float], scale: float) -> None:
    shares = [part * scale / sum(parts) for part in parts]
    wanted = [*shares, *([1 - sum(shares)] if sum(shares) < 1 - 1e-6 else [])]
    try:
        sizes = part_sizes(count, shares)
    except ValueError as error:
        assert len(wanted) == 1 or "without an episode" in str(error)  # noqa: PT017
        assert len(wanted) == 1 or min(np.array(wanted) * count) < 1
        return
    assert sum(sizes) == count
    assert len(sizes) == len(wanted)
    assert all(abs(size - share * count) < 1 for size, share in zip(sizes, wanted, strict=True))


# Splitting


def test_each_episode_is_in_one_part_and_its_frames_and_windows_are_there(root: Path) -> None:
    dataset = made(root, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3], task="push")
    dataset.set_delta_timestamps(WINDOW)
    parts = dataset.split(0.6, 0.2)
    assert [part.num_episodes for part in parts] == [6, 2, 2]
    assert sorted(n for numbers in episodes_of(*parts) for n in numbers) == list(range(10))
    whole = [dataset[i] for i in range(len(dataset))]
    for part in parts:
        numbers = [n for episode in episodes_of(part)[0] for n in dataset.get_episode(episode)["index"].tolist()]
        assert len(part) == len(numbers) == part.num_frames
        for item, number in zip(part, numbers, strict=True):
            assert item["index"].item() == number
            assert numbers_of(item) == numbers_of(whole[number])
            assert torch.equal(item["observation.state_is_pad"], whole[number]["observation.state_is_pad"])
        assert part.get_data_by_key("index").tolist() == numbers
        assert part.get_data_by_key("task") == ["push"] * len(part)
        assert [stop - start for start, stop in ends(part)] == [
            len(part.get_episode(episode)["index"]) for episode in episodes_of(part)[0]
        ]
        assert part.stats["index"]["count"].tolist() == [len(part)]
        assert part.stats["index"]["mean"] == pytest.approx(np.mean(numbers))
        assert compute_sampler_weights(part, 1).count_nonzero() == sum(max(0, b - a - 1) for a, b in ends(part))


def test_a_split_is_a_function_of_seed_and_episodes(root: Path) -> None:
    dataset = made(root, [1] * 10)
    first = episodes_of(*dataset.split(0.7))
    assert first == [[0, 1, 2, 4, 5, 8, 9], [3, 6, 7]]  # on every machine and with every numpy
    assert episodes_of(*dataset.split(0.7, 0.3)) == first
    assert episodes_of(*LeRobotDatasetV2(root).split(7)) == first
    assert episodes_of(*dataset.split(0.7, seed=np.int64(1))) != first
    assert episodes_of(*dataset.split(0.7, shuffle=False)) == [[0, 1, 2, 3, 4, 5, 6], [7, 8, 9]]
    with pytest.raises(roboreel.InvalidArgumentError, match=r"split\(0.99\) of 10 episodes gives \[10, 0\]"):
        dataset.split(0.99)
    for wrong in (-1, 1.0, None, True, 1 << 63):
        with pytest.raises(ValueError, match=rf"seed={wrong}; give an integer from 0"):
            dataset.split(0.7, seed=wrong)


def test_views_of_views(root: Path) -> None:
    dataset = made(root, [2, 3, 4, 1])
    chosen = dataset.view([3, 0, 2])
    assert episodes_of(*chosen.split(2, shuffle=False)) == [[0, 3], [2]]  # in the order of the view, not of the numbers
    assert chosen.split(2, shuffle=False)[0].get_data_by_key("index").tolist() == [9, 0, 1]
    assert chosen.view([2, 3]).get_data_by_key("index").tolist() == [5, 6, 7, 8, 9]
    with pytest.raises(IndexError, match=r"episodes \[1\] are not in the dataset, which holds 3 episodes: 0 to 3"):
        chosen.view([1])
    opened = LeRobotDatasetV2(root, episodes=[1, 2])
    assert episodes_of(*opened.split(0.5, shuffle=False)) == [[1], [2]]


def test_a_dataset_without_episodes_cannot_be_split(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10)
    with pytest.raises(IndexError, match="holds no episode yet; add one with add_episodes"):
        dataset.split(0.9)
    with pytest.raises(IndexError, match="holds no episode yet"):
        dataset.view([0])
    assert not root.exists()


# What is given as `episodes`


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDatasetV2:
    """Episodes of 2, 3 and 1 frames."""
    dataset: LeRobotDatasetV2 = made(tmp_path_factory.mktemp("three") / "dataset", [2, 3, 1])
    return dataset


@pytest.mark.parametrize(
    "episodes", [[2, 0], (2, 0), np.array([2, 0]), [np.int32(2), np.uint8(0)], torch.tensor([2, 0]), range(2, -1, -2)]
)
def test_episodes_are_any_sequence_of_integers(three: LeRobotDatasetV2, episodes: Any) -> None:
    for chosen in (three.view(episodes), LeRobotDatasetV2(three.storage_dir, episodes=episodes)):
        assert chosen.get_data_by_key("index").tolist() == [5, 0, 1]


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([0, 0], r"episodes= names episode 0 twice; name each once"),
        ([0.5], r"episodes=\[0.5\]; a list of episode numbers, such as \[0, 3, 4\], would do"),
        (1, "episodes=1; a list"),
        ("01", "episodes='01'; a list"),
        ([[0], [1]], "a list of episode numbers"),
        ([True, False], "a list of episode numbers"),
        ([-1], r"episodes \[-1\] are not in the dataset, which holds 3 episodes: 0 to 2"),
        ([1, 7, 9], r"episodes \[7, 9\] are not in the dataset"),
    ],
)
def test_episodes_that_cannot_be(three: LeRobotDatasetV2, episodes: Any, message: str) -> None:
    with pytest.raises(roboreel.RoboreelError, match=message) as caught:
        three.view(episodes)
    assert isinstance(caught.value, ValueError | IndexError)
    with pytest.raises(roboreel.RoboreelError, match=message):
        LeRobotDatasetV2(three.storage_dir, episodes=episodes)


def test_a_view_of_no_episodes_is_empty(root: Path) -> None:
    view = made(root, [2]).view([])
    assert (len(view), view.num_episodes, ends(view), list(view)) == (0, 0, [], [])
    assert view.get_data_by_key("action").shape == (0,)
    assert view.stats["action"]["count"].tolist() == [0]


# What a view shares


def test_a_view_shares_files_and_has_windows_and_transforms_of_its_own(root: Path) -> None:
    dataset = made(root, [3, 3], camera=True, delta_timestamps=WINDOW, image_transform=torch.neg)
    train, rest = dataset.split(0.5)
    rest.image_transform = None
    rest.set_delta_timestamps(None)
    assert train[0]["observation.state"].shape == (3, 2)
    assert rest[0]["observation.state"].shape == (2,)
    assert train[0][CAMERA].max() <= 0 < rest[0][CAMERA].max()
    assert dataset[0]["observation.state"].shape == (3, 2)
    assert train._opening.store() is rest._opening.store() is dataset._opening.store()
    dataset.close()
    assert numbers_of(train[0]) == numbers_of(dataset[ends_of_first(train, dataset)])


def ends_of_first(view: Any, dataset: Any) -> int:
    return ends(dataset)[episodes_of(view)[0][0]][0]


def test_episodes_that_come_are_in_the_dataset_and_not_in_the_view(root: Path) -> None:
    dataset = made(root, [3, 2])
    view, chosen = dataset.view([1]), LeRobotDatasetV2(root, episodes=[1])
    dataset.add_episodes(recording(4, 5))
    for part in (view, chosen):
        assert (len(part), part.num_episodes, ends(part)) == (2, 1, [(0, 2)])
        assert numbers_of(part.get_batch([0, 1, -1])) == [3, 4, 4]
        with pytest.raises(IndexError, match="index 2 is beyond the ends: the dataset has 2 frames"):
            part[2]
        with pytest.raises(IndexError, match="episode 2 is not in the dataset, which holds 1 episodes: 1 to 1"):
            part.get_episode(2)
    assert len(dataset) == 9
    assert "1 episodes, 2 frames, 10 Hz" in repr(view)


def test_a_view_refuses_what_would_concern_all_episodes(root: Path, tmp_path: Path) -> None:
    dataset = made(root, [3, 2], camera=True)
    view: LeRobotDatasetV2 = dataset.view([1])
    calls: dict[str, Callable[[], object]] = {
        "add_episodes": lambda: view.add_episodes(recording(1)),
        "edit": lambda: view.edit("action").__enter__(),
        "snapshot": lambda: view.snapshot(tmp_path / "copy"),
        "convert": lambda: view.convert("png"),
    }
    for what, call in calls.items():
        with pytest.raises(PermissionError, match=rf"{what} of a view of .*, which shows 1 episodes of it; call it on"):
            call()
    assert (len(dataset), dataset.generation) == (5, view.generation)
    with dataset.edit("action") as actions:
        actions[3] = 99
    assert view[0]["action"] == 99


def test_a_view_follows_a_conversion_and_a_reload(root: Path) -> None:
    dataset = made(root, [3, 2, 2], camera=True)
    view = dataset.view([2, 0])
    before = view.get_batch(range(5))
    dataset.convert("png")
    assert torch.equal(view.get_batch(range(5))[CAMERA], before[CAMERA])
    view.reload()
    assert numbers_of(view.get_batch(range(5))) == numbers_of(before)


def test_a_reload_chooses_anew_where_another_dataset_has_taken_the_place(root: Path) -> None:
    dataset = made(root, [3, 2])
    view = dataset.view([1])
    dataset.close()
    root.rename(root.parent / "old")
    made(root, [1, 4]).close()
    view.reload()
    assert (len(view), numbers_of(view.get_batch(range(4)))) == (4, [1, 2, 3, 4])
    view.close()
    root.rename(root.parent / "older")
    made(root, [1]).close()
    with pytest.raises(IndexError, match=r"episodes \[1\] are not in the dataset"):
        view.reload()


# Rings


def test_a_view_of_a_ring_by_hand(root: Path) -> None:
    ring = made(root, [4, 3, 3], buffer_capacity=10, use_as_fifo_buffer=True, delta_timestamps=WINDOW)
    view, chosen = ring.view([2, 0]), LeRobotDatasetV2(root, episodes=[2, 0], delta_timestamps=WINDOW)

    def check(numbers: list[int], is_pad: list[list[bool]], where: list[tuple[int, int]], episodes: list[int]) -> None:
        copies = [pickle.loads(pickle.dumps(part)) for part in (view, chosen)]
        for part in (view, chosen, *copies):
            batch = part.get_batch(range(7))
            assert [row[1] for row in numbers_of(batch)] == numbers
            assert batch["observation.state_is_pad"].tolist() == is_pad
            assert part.get_data_by_key("index").tolist() == numbers
            assert (len(part), ends(part), episodes_of(part)) == (7, where, [episodes])
            held = [i for start, stop in where for i in range(start, stop)]
            assert part.stats["index"]["count"].tolist() == [len(held)]
            assert part.stats["index"]["mean"] == pytest.approx(np.mean([numbers[i] for i in held]))
            assert np.flatnonzero(compute_sampler_weights(part)).tolist() == held
            assert numbers_of(part[-1]) == numbers_of(batch)[-1]

    first, middle, last = [True, False, False], [False, False, False], [False, False, True]
    check([7, 8, 9, 0, 1, 2, 3], [first, middle, last, first, middle, middle, last], [(0, 3), (3, 7)], [0, 2])
    ring.add_episodes(recording(2, 10))  # over frames 0 and 1: index 3 has 9 as near as 2, index 4 has 2
    check([7, 8, 9, 9, 2, 2, 3], [first, middle, last, last, first, first, last], [(0, 3), (5, 7)], [0, 2])
    ring.add_episodes(recording(3, 12))  # over the others of episode 0, and the first of episode 1
    check([7, 8, 9, 9, 9, 9, 9], [first, middle, *[last] * 5], [(0, 3)], [2])
    assert numbers_of(view.get_episode(2)) == [7, 8, 9]
    with pytest.raises(IndexError, match="episode 0 is not in the dataset, which holds 1 episodes: 2 to 2"):
        view.get_episode(0)
    ring.add_episodes(recording(3, 15))  # episode 1, and the first of episode 2
    check([8, 8, 9, 9, 9, 9, 9], [first, first, *[last] * 5], [(1, 3)], [2])
    view.reload()
    assert (len(view), view.num_episodes) == (7, 1)
    ring.add_episodes(recording(10, 18))
    assert (len(view), view.num_episodes, ends(view)) == (7, 0, [])
    for part in (view, chosen, pickle.loads(pickle.dumps(view))):
        with pytest.raises(
            roboreel.EpisodeNotFoundError, match="all 2 episodes that were chosen have been overwritten"
        ):
            part[0]
    with pytest.raises(IndexError, match=r"episodes \[0\] are not in the dataset, which holds 1 episodes: 6 to 6"):
        ring.view([6, 0])


def test_a_half_overwritten_episode_is_chosen_as_what_is_left_of_it(root: Path) -> None:
    ring = made(root, [4, 4], buffer_capacity=8, use_as_fifo_buffer=True, delta_timestamps=WINDOW)
    ring.add_episodes(recording(3, 8))
    view = ring.view([0, 2])
    assert (len(view), ends(view)) == (4, [(0, 1), (1, 4)])
    assert numbers_of(view.get_batch(range(4))) == [[3, 3, 3], [8, 8, 9], [8, 9, 10], [9, 10, 10]]
    assert episodes_of(*ring.split(2, shuffle=False)) == [[0, 1], [2]]


def test_workers_of_a_view_whose_ring_goes_on(root: Path) -> None:
    ring = made(root, [4, 3, 3], buffer_capacity=10, use_as_fifo_buffer=True)
    view = ring.view([2, 0])

    def batches() -> Any:
        yield [0, 3, 6]
        ring.add_episodes(recording(2, 10))  # before the worker has opened it, or after
        yield [0, 3, 6]
        ring.add_episodes(recording(3, 12))
        yield [0, 3, 6]

    loader = DataLoader(view, batch_sampler=batches(), num_workers=1, multiprocessing_context="fork", prefetch_factor=1)
    got = [numbers_of(batch) for batch in loader]
    assert got[-1] == [7, 9, 9]
    assert set(map(tuple, got[:2])) <= {(7, 0, 3), (7, 9, 3), (7, 9, 9)}


def test_a_view_gives_its_own_episodes_only_while_another_process_overwrites_them(root: Path) -> None:
    ring = LeRobotDatasetV2(root, fps=10, buffer_capacity=240, use_as_fifo_buffer=True, image_mode="memmap")
    for number in range(20):
        ring.add_episodes(episode_data(number, 12, "memmap"), no_flush=True)
    ring.close()
    view = LeRobotDatasetV2(root, readonly=True, image_dtype="uint8").view(range(0, 20, 2))
    view.set_delta_timestamps(DELTAS)
    writer = multiprocessing.get_context("fork").Process(target=overwrite, args=(root,))
    rng = np.random.default_rng(0)
    writer.start()
    seen = set()
    try:
        while writer.is_alive() or not writer.exitcode:
            batch = {key: np.asarray(value) for key, value in view.get_batch(rng.integers(0, 120, 64)).items()}
            assert set(batch["episode_index"].tolist()) <= set(range(0, 20, 2))
            assert problems(batch, "memmap") == []
            seen.add(len(set(batch["episode_index"].tolist())))
    except roboreel.EpisodeNotFoundError as error:
        assert re.search("all 10 episodes that were chosen have been overwritten", str(error))  # noqa: PT017
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 3
    assert view.num_episodes == 0


def overwrite(root: Path) -> None:
    with LeRobotDatasetV2(root) as ring:
        for number in range(20, 41):
            ring.add_episodes(episode_data(number, 12, "memmap"), no_flush=True)
            time.sleep(0.02)  # that there is something to be read in between
