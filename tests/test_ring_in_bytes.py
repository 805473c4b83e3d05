"""A ring with a capacity in bytes whose images come to take more than those of its first episode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from tests.recordings import made, recording
from tests.test_capacity import FRAME, image_bytes, metadata, noise
from tests.test_durability import Failing


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


GROWING = [(4, False), (4, False), (4, True), (6, True), (3, True), (6, True), (5, True), (4, False), (3, True)]
"""Lengths of episodes, and whether they are noise, which takes several times what one colour does."""


def growing(number: int, length: int, *, is_noise: bool) -> dict[str, Any]:
    return noise(length, number) if is_noise else recording(length, number, camera=True)


@pytest.mark.parametrize(("mode", "limit"), [("png", 20_000), ("video", 9000)])
def test_a_ring_overwrites_earlier_where_images_take_more_than_the_first_ones(
    root: Path, mode: str, limit: int
) -> None:
    dataset = made(root, [4], camera=True, image_mode=mode, buffer_capacity=f"{limit}B", use_as_fifo_buffer=True)
    reader = LeRobotDatasetV2(root, readonly=True)
    room, number, held = metadata(root)["capacity"], 4, [0]
    for length, is_noise in GROWING:
        dataset.add_episodes(growing(number, length, is_noise=is_noise), no_flush=True)
        newest = dataset.get_unique_episode_indices().tolist()
        assert newest == list(range(newest[0], held[-1] + 2))  # the oldest go first, and the new one stays
        numbers = dataset.get_episode(newest[-1])["index"].tolist()
        assert numbers == list(range(number, number + length))
        assert reader.get_data_by_key("index").tolist() == dataset.get_data_by_key("index").tolist()
        assert set(reader.get_data_by_key("episode_index").tolist()) == set(newest)
        assert room * (FRAME + (8 if mode == "png" else 0)) + image_bytes(root) <= limit
        number, held = number + length, newest
    assert len(held) < len(GROWING) // 2
    assert (
        len(dataset) == 20 < sum(length for length, _ in GROWING)
    )  # rather over the oldest than into slots that nothing was in yet
    dataset.close()
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def pairs(dataset: LeRobotDatasetV2) -> set[tuple[int, int]]:
    """(index, episode) of what is held."""
    return set(zip(*(dataset.get_data_by_key(key).tolist() for key in ("index", "episode_index")), strict=True))


def test_whichever_effect_fails_while_a_ring_gives_up_what_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)

    def begun(root: Path) -> LeRobotDatasetV2:
        dataset: LeRobotDatasetV2 = made(
            root, [4, 4, 6], camera=True, image_mode="png", buffer_capacity="20kB", use_as_fifo_buffer=True
        )
        dataset.add_episodes(noise(5, 14))
        return dataset

    counting, whole = Failing(), begun(tmp_path / "whole")
    before = pairs(whole)
    with counting.observing():
        whole.add_episodes(noise(7, 19), no_flush=True)
    after = pairs(whole)
    given_up = {episode for _, episode in before} - {episode for _, episode in after}
    assert len(given_up) > 2
    assert max(given_up) == 3
    told = 0
    for at in counting.moments:
        root = tmp_path / f"fails at {at}"
        dataset = begun(root)
        reader = LeRobotDatasetV2(root, readonly=True)
        with Failing(at, half=True).observing():
            try:
                dataset.add_episodes(noise(7, 19), no_flush=True)
            except roboreel.StorageError:
                told += 1
        left = pairs(dataset)
        assert pairs(reader) == left
        assert left == before or {(number, 4) for number in range(19, 26)} <= left
        if left == before:
            dataset.add_episodes(noise(7, 19), no_flush=True)
        dataset.add_episodes(noise(2, 26))
        assert {(27, 5), (26, 5)} <= pairs(reader)
        assert metadata(root)["capacity"] * (FRAME + 8) + image_bytes(root) <= 20_000
        dataset.close()
        LeRobotDatasetV2.check_storage_dir_integrity(root)
    assert told > len(counting.moments) // 3
