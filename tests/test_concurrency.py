"""Readers beside a writer: never a mixed window, also while it grows, edits and dies. See `make windows`."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.telling_frames import DELTAS, Mode, episode_data, problems
from scripts.torn_windows import Args, run

from roboreel import LeRobotDatasetV2, StorageError
from roboreel.errors import DatasetBusyError
from roboreel.format.files import observed
from roboreel.store import Store, Touched
from tests.recordings import made, numbers_of, recording


@pytest.mark.parametrize(
    ("mode", "start", "windows"),
    [("memmap", "fork", 12_000), ("memmap", "spawn", 1500), ("png", "fork", 1500), ("video", "fork", 600)],
)
def test_no_window_is_torn_while_writers_overwrite_grow_edit_and_die(
    tmp_path: Path, mode: Mode, start: Any, windows: int
) -> None:
    figures = run(Args(windows, mode, 2, start, 64, 200, 0.3, 1.0), tmp_path / "ring")
    assert (figures.torn, figures.examples) == (0, [])
    assert figures.windows >= windows
    assert figures.padded > 0
    assert figures.episodes_written > 0 or mode == "video"  # encoding takes longer than all the reading


def test_without_the_protocol_the_same_run_finds_torn_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roboreel.store import store

    monkeypatch.setattr(store.Store, "read", store.Store.read)  # so that it is put back
    torn = 0
    for seed in range(8):  # how often a write falls into a read depends on how busy the machine is
        args = Args(8_000, "memmap", 2, "fork", 128, 200, 2.0, 1.0, seed=seed, broken=True)
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


# Every way in which a read and a write can interleave, effect by effect


class Stepping:
    """A write in a thread of its own that does one file effect at a time, when told to."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._write = write
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._done.acquire()  # it stands before its first effect

    def _run(self) -> None:
        with observed(self._before), contextlib.suppress(StorageError):
            self._write()
        self.ended = True
        self._done.release()

    def _before(self, _kind: str, _path: Path) -> None:
        if threading.current_thread() is self._thread:
            self._done.release()
            self._turn.acquire()

    def step(self, effects: int) -> None:
        for _ in range(effects):
            if self.ended:
                return
            self._turn.release()
            self._done.acquire()


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LeRobotDatasetV2]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    dataset = made(tmp_path / "ring", [4, 4, 4], buffer_capacity=12, use_as_fifo_buffer=True)
    yield dataset
    dataset.close()


def interleaved(root: Path, write: Callable[[], None], before: int, during: int) -> list[list[int]]:
    """Read all slots while a write goes on: so many effects before the attempt, so many between its two halves."""
    store = Store.open(root)
    writing = Stepping(write)
    writing.step(before)
    seen: list[list[int]] = []

    def attempt() -> tuple[list[list[int]], Touched]:
        if seen:
            writing.step(1)  # a reader that waits lets the writer go on
        slots = store.surviving(np.arange(4))
        rows, words = store.rows_of(slots)
        index = store.memmap("index")[slots].tolist()
        writing.step(during)
        seen.append(index)
        return [index, store.memmap("observation.state")[slots, 0].tolist(), rows.tolist()], Touched(slots, words)

    def patient() -> Any:
        try:
            return attempt()
        except Exception:
            writing.step(1)
            raise

    found: list[list[int]] = store.read(patient)
    writing.step(10_000)
    store.close()
    return found


def test_a_read_that_meets_an_overwrite_at_any_effect_sees_the_old_or_the_new(ring: LeRobotDatasetV2) -> None:
    number = 12
    for before in range(0, 24, 2):
        for during in (1, 2, 3, 5, 8, 13, 21):
            held = ring.get_data_by_key("index")[:4].tolist()
            new = list(range(number, number + 4))

            def write(first: int = number) -> None:
                ring.add_episodes(recording(4, first), no_flush=True)

            index, state, rows = interleaved(ring.storage_dir, write, before, during)
            assert index == state
            assert index in (held, new), (before, during, index)
            assert len(set(rows)) == 1
            number += 4
            for _ in range(2):  # come round to the first slots again
                ring.add_episodes(recording(4, number), no_flush=True)
                number += 4


def test_a_read_that_meets_an_overwrite_which_fails_and_is_undone_sees_the_old(ring: LeRobotDatasetV2) -> None:
    held = ring.get_data_by_key("index")[:4].tolist()

    def fail(_kind: str, path: Path) -> None:
        if path.name == "episodes.bin":
            raise OSError(5, "made to fail")

    def write() -> None:
        with observed(fail):
            ring.add_episodes(recording(4, 12), no_flush=True)

    for before in range(0, 16, 2):
        for during in (1, 4, 10, 20, 30, 40):
            index, state, _ = interleaved(ring.storage_dir, write, before, during)
            assert index == state == held, (before, during)


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
    writing.step(10_000)
    assert numbers_of(reader[0]) == 12


def published(reader: LeRobotDatasetV2) -> bool:
    store = reader._opening.store()
    assert store is not None
    store.refresh()
    return store.state.busy_start < store.state.busy_stop


def test_after_a_writer_died_in_mid_overwrite_readers_go_on_at_once_with_what_survives(tmp_path: Path) -> None:
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
    began = time.monotonic()
    assert reader[0]["observation.state"][:, 0].tolist() == [2, 2]
    assert reader[0]["observation.state_is_pad"].tolist() == [True, False]
    assert reader[3]["observation.state"][:, 0].tolist() == [2, 3]
    assert numbers_of(reader.get_episode(0)) == [2, 3]
    assert reader.get_data_by_key("index").tolist() == [2, 2, *range(2, 12)]
    assert time.monotonic() - began < 5  # and not the 10 s of a writer that lives
    assert len(reader) == 12
