"""A ring with a capacity in bytes whose images come to take more than those of its first episode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format.files import Effect, recorded
from tests.power import Disk
from tests.recordings import CAMERA, made, recording
from tests.test_capacity import FRAME, image_bytes, metadata, noise
from tests.test_durability import Failing
from tests.test_power_loss import Boots, machine


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> Boots:
    return machine(monkeypatch)


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


def test_a_video_of_several_episodes_counts_once(tmp_path: Path, root: Path) -> None:
    made(tmp_path / "recorded", [4] * 6, camera=True, task="push", image_mode="video").to_lerobot(tmp_path / "lerobot")
    (video,) = (tmp_path / "lerobot").rglob("*.mp4")
    limit = f"{int(4.3 * video.stat().st_size)}B"
    dataset = LeRobotDatasetV2.from_lerobot(tmp_path / "lerobot", root, buffer_capacity=limit, use_as_fifo_buffer=True)
    assert metadata(root)["capacity"] > 27
    assert dataset.get_data_by_key("index").tolist() == list(range(24))
    dataset.add_episodes({**recording(3, 24, camera=True, task="push"), "task_index": np.zeros(3, np.int64)})
    assert dataset.get_data_by_key("index").tolist() == list(range(27))


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
    tried = counting.moments[::2]
    for at in tried:
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
    assert told > len(tried) // 3


def faint(length: int, first: int) -> dict[str, Any]:
    """Noise of a quarter of the bits."""
    data = noise(length, first)
    return {**data, CAMERA: data[CAMERA] & 3}


def test_power_is_cut_while_a_ring_gives_up_what_is_too_much(tmp_path: Path, boots: Boots) -> None:
    """What was flushed and neither overwritten nor given up since is there; of the rest no file is missed."""
    root = tmp_path / "disk" / "new" / "dataset"
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk")
    cuts: list[Path] = []
    seen = 0

    def cut(effect: Effect) -> None:
        nonlocal seen
        seen += 1
        if seen % 7 == 0:
            cuts.append(tmp_path / f"cut {len(cuts)}")
            disk.cut(len(cuts), cuts[-1])
        disk(effect)

    with recorded(disk):
        dataset = LeRobotDatasetV2(root, 10, "40kB", use_as_fifo_buffer=True, image_mode="png")
        for first in range(0, 48, 4):
            dataset.add_episodes(faint(4, first), no_flush=True)
        dataset.flush()
    flushed = pairs(dataset)
    with recorded(cut):
        for first, length in ((48, 3), (51, 3), (54, 3)):
            dataset.add_episodes(noise(length, first), no_flush=True)
    gone = {episode for _, episode in flushed - pairs(dataset)}
    assert len(gone) > 1
    margin = metadata(root)["capacity"] // 16  # which is taken ahead, because each lengthening waits for the device
    kept = set(sorted(flushed & pairs(dataset))[margin:])
    assert len(kept) > margin
    dataset.close()
    boots.number += 1
    for folder in cuts:
        copy = folder / "new" / "dataset"
        with LeRobotDatasetV2(copy, readonly=True) as reader:
            held = pairs(reader)
            assert kept <= held <= flushed
            batch = reader.get_batch(range(len(reader)))
            assert batch["observation.state"][:, 0].tolist() == batch["index"].tolist()
            assert set(batch["index"].tolist()) == {number for number, _ in held}
        with LeRobotDatasetV2(copy) as writer:
            writer.add_episodes(noise(3, 100))
            assert writer.get_data_by_key("index").max() == 50  # numbers go on from what was flushed
            assert held & pairs(writer)
        LeRobotDatasetV2.check_storage_dir_integrity(copy)
        assert metadata(copy)["capacity"] * (FRAME + 8) + image_bytes(copy) <= 40_000
    assert len(cuts) > 8
