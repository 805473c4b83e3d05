"""Readers beside a writer: never a mixed window, also while it grows, edits and dies. See `make windows`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.telling_frames import DELTAS, EPISODE_FRAMES, Mode, episode_data, problems
from scripts.torn_windows import Args, run

from roboreel import LeRobotDatasetV2
from roboreel.dataset.quick import Quick
from roboreel.errors import DatasetBusyError
from roboreel.format.files import observed
from tests.recordings import made, numbers_of, recording
from tests.stepping import ALL, Stepping


def reading(mode: Mode, start: Any) -> tuple[int, Any, int]:
    """Workers, how they begin, and batch size; numbers alone are read in this process, where the way is shorter."""
    return (0, start, 32) if mode == "none" else (2, start, 64)


@pytest.mark.parametrize(
    ("mode", "start", "windows", "kill_s"),
    [
        ("memmap", "fork", 12_000, 0.3),
        ("memmap", "spawn", 1000, 0.2),
        ("png", "fork", 1000, 1.0),
        ("video", "fork", 400, 1.0),
        ("none", "fork", 100_000, 0.3),
    ],
)
def test_no_window_is_torn_while_writers_overwrite_grow_edit_and_die(
    tmp_path: Path, mode: Mode, start: Any, windows: int, kill_s: float
) -> None:
    figures = run(Args(windows, mode, *reading(mode, start), 200, kill_s, minutes=1.5), tmp_path / "ring")
    assert (figures.torn, figures.examples) == (0, [])
    assert figures.windows >= windows
    assert figures.padded > 0
    assert min(figures.kills, figures.growths, figures.edits) >= 1
    assert figures.times_round >= 1
    assert figures.episodes_written >= 200 // EPISODE_FRAMES[1]


@pytest.mark.parametrize(("mode", "windows"), [("memmap", 8000), ("none", 100_000)])
def test_without_the_protocol_the_same_run_finds_torn_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Mode, windows: int
) -> None:
    from roboreel.store import store

    monkeypatch.setattr(store.Store, "read_once", store.Store.read_once)  # so that it is put back
    monkeypatch.setattr(Quick, "__init__", Quick.__init__)
    torn = 0
    for seed in range(8):  # how often a write falls into a read depends on how busy the machine is
        args = Args(windows, mode, *reading(mode, "fork"), 200, 2.0, minutes=1.0, seed=seed, broken=True)
        torn += run(args, tmp_path / f"ring{seed}").torn
        if torn:
            break
    assert torn > 0


def test_the_check_of_windows_sees_each_kind_of_damage(tmp_path: Path) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="memmap", image_dtype="uint8")
    for number in range(2):
        dataset.add_episodes(episode_data(number, 12, "memmap"))
    dataset.set_delta_timestamps(DELTAS)
    batch = {key: np.asarray(value) for key, value in dataset.get_batch(range(24)).items()}
    assert problems(batch, "memmap") == []
    for key in DELTAS:
        pad = f"{key}_is_pad"
        for damaged in (
            {key: np.roll(batch[key], 12, axis=0)},  # another episode's
            {key: np.roll(batch[key], 1, axis=0)},  # another frame's
            {key: batch[key] ^ (np.arange(batch[key].shape[-1]) == 1).astype(batch[key].dtype)},  # a byte of each
            {pad: ~batch[pad]},
        ):
            assert len(problems({**batch, **damaged}, "memmap")) >= 12, (key, list(damaged))


# How long is waited for whom


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeRobotDatasetV2]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)
    dataset = made(tmp_path / "ring", [4, 4, 4], buffer_capacity=12, use_as_fifo_buffer=True)
    yield dataset
    dataset.close()


def test_frames_that_a_living_writer_is_replacing_are_waited_for_and_not_for_ever(
    ring: LeRobotDatasetV2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roboreel.store.store.WAIT_FOR_WRITER_S", 0.2)
    reader = LeRobotDatasetV2(ring.storage_dir, readonly=True)
    writing = Stepping(lambda: ring.add_episodes(recording(4, 12), no_flush=True))
    while reader._opening.store() and not published(reader):
        writing.step(1)
    writing.step(2)
    with pytest.raises(DatasetBusyError, match=f"process {os.getpid()} was writing the wanted frames"):
        reader[0]
    assert numbers_of(reader[7]) == 7  # others are not waited for
    writing.step(ALL)
    assert numbers_of(reader[0]) == 12


def published(reader: LeRobotDatasetV2) -> bool:
    store = reader._opening.store()
    assert store is not None
    store.refresh()
    return store.state.busy_start < store.state.busy_stop


def test_after_a_writer_died_in_mid_overwrite_readers_go_on_at_once_with_what_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    made(tmp_path / "ring", [4, 4, 4], buffer_capacity=12, use_as_fifo_buffer=True).close()
    reader = LeRobotDatasetV2(tmp_path / "ring", readonly=True, delta_timestamps={"observation.state": [-0.1, 0.0]})
    assert reader[1]["observation.state"][:, 0].tolist() == [0, 1]
    child = os.fork()
    if not child:
        dataset = LeRobotDatasetV2(tmp_path / "ring")

        def die(_kind: str, path: Path) -> None:
            if path.name == "action.bin":
                os.kill(os.getpid(), 9)

        with observed(die):
            dataset.add_episodes(recording(2, 12), no_flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    assert reader[0]["observation.state"][:, 0].tolist() == [2, 2]
    assert reader[0]["observation.state_is_pad"].tolist() == [True, False]
    assert reader[3]["observation.state"][:, 0].tolist() == [2, 3]
    assert numbers_of(reader.get_episode(0)) == [2, 3]
    assert reader.get_data_by_key("index").tolist() == [2, 2, *range(2, 12)]
    assert len(reader) == 12
    assert len(pauses) < 20  # and not as for a writer that lives
