"""Writes that end half way: on a disk that fails once, and on one that fails for good."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format import paths
from tests.recordings import made, recording
from tests.test_durability import SCENARIOS, Failing, contents


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


@pytest.mark.parametrize("name", ["growing", "over the start of a ring"])
@pytest.mark.parametrize("for_good", [False, True])
def test_a_write_that_ends_half_way_costs_nothing_that_was_committed_and_not_flushed(
    tmp_path: Path, name: str, for_good: bool
) -> None:
    lengths, length, options = SCENARIOS[name]
    first, flushed = sum(lengths), len(lengths) - 1

    def begun(root: Path) -> LeRobotDatasetV2:
        dataset: LeRobotDatasetV2 = made(root, lengths[:flushed], camera=True, task="push", **options)
        for k in range(flushed, len(lengths)):
            episode = recording(lengths[k], sum(lengths[:k]), camera=True, task=f"push {k}")
            dataset.add_episodes(episode, no_flush=True)
        return dataset

    def add(dataset: LeRobotDatasetV2) -> None:
        dataset.add_episodes(recording(length, first, camera=True, task="pull"), no_flush=True)

    counting, whole = Failing(), begun(tmp_path / "whole")
    before = contents(whole)
    sure = {(number, episode) for number, episode in before if episode < flushed and not (options and number < length)}
    with counting.observing():
        add(whole)
    after = contents(whole)
    torn = 0
    for at in range(counting.seen):
        root = tmp_path / f"fails at {at}"
        dataset, reader = begun(root), LeRobotDatasetV2(root, readonly=True)
        with Failing(at, for_good=for_good, half=True).observing(), contextlib.suppress(roboreel.StorageError):
            add(dataset)
        for follower in (dataset, reader):
            left = contents(follower)
            assert left in (before, after) or (for_good and options and set(before) & set(after) <= set(left))
        later = contents(LeRobotDatasetV2(root, readonly=True))
        if later != contents(reader):  # the record is torn, and cannot be written any more
            assert for_good
            assert set(later) >= sure
            torn += 1
            if (writer := dataset._opening._writer) is not None:
                writer.let_go()  # as a process that dies
            with LeRobotDatasetV2(root) as again:  # once the disk works
                again.add_episodes(recording(2, first + 100, camera=True, task="again"))
            LeRobotDatasetV2.check_storage_dir_integrity(root)
            opened = LeRobotDatasetV2(root, readonly=True)
            for key in opened.data_keys:  # and so does who has looked at what no longer counts
                assert np.array_equal(reader.get_data_by_key(key), opened.get_data_by_key(key)), key
            assert reader.get_unique_episode_indices().tolist() == opened.get_unique_episode_indices().tolist()
        if not for_good and later == before:
            add(dataset)
        if not for_good:
            dataset.close()
            assert contents(LeRobotDatasetV2(root)) == after
            LeRobotDatasetV2.check_storage_dir_integrity(root)
    assert (torn > 0) == for_good


def test_a_reader_notices_other_episodes_before_slots_that_are_lost_again(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    made(root, [2, 2], buffer_capacity=8, use_as_fifo_buffer=True).close()
    record = (root / paths.STATE).read_bytes()
    reader = LeRobotDatasetV2(root, readonly=True)
    for first in (50, 90):
        with (root / paths.STATE).open("r+b") as file:
            file.write(record)  # as where a failing disk has only this one left
        with LeRobotDatasetV2(root) as dataset:
            dataset.add_episodes(recording(3, first), no_flush=True)
            writer = dataset._opening.writer()
            writer.give_up(0, 2)
            if first == 90:
                writer._put_live(writer.store.state)  # a process of another number would write another record, too
            for key in ("observation.state", "index", "episode_index"):
                assert np.array_equal(reader.get_data_by_key(key), dataset.get_data_by_key(key)), key
            assert reader.get_episode(2)["observation.state"][0, 0] == first
            assert bytes(reader._opening.follow().table.rows) == bytes(writer.store.table.rows)
