"""A conversion that fails, is killed, meets a full disk, a writer or readers: old or new, whole, and it goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format import clone
from roboreel.format.files import observed
from roboreel.store import put_back, verify
from tests.recordings import CAMERA, made, recording
from tests.test_convert import FAST, check_clean, check_same, frames
from tests.test_durability import Failing
from tests.test_full_disk import fill, small_disk  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


@pytest.mark.parametrize(
    ("before", "after", "swap", "for_good"),
    [("memmap", "png", True, False), ("png", "memmap", True, True), ("memmap", "video", True, True)]
    + [("png", "memmap", False, for_good) for for_good in (False, True)],
)
def test_whichever_effect_fails_the_old_or_the_new_is_there_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, swap: bool, for_good: bool
) -> None:
    if not swap:
        monkeypatch.setattr(clone, "_swap", lambda: None)
    source, options = tmp_path / "source", FAST if after == "video" else None
    made(source, [3, 2], camera=True, image_mode=before).close()
    wanted = frames(LeRobotDatasetV2(source))
    counting, failed, step = Failing(), 0, 11 if swap else 9
    for at in [-1, *range(2 * int(for_good) + int(swap), 300, step)]:
        root = tmp_path / f"fails at {at}" / "dataset"
        shutil.copytree(source, root)
        dataset = LeRobotDatasetV2(root)
        error = None
        try:
            with observed(counting if at < 0 else Failing(at, for_good=for_good)):
                dataset.convert(after, video_options=options)
        except roboreel.StorageError as raised:
            error, failed = raised, failed + 1
        if for_good and error is not None:
            dataset._opening._writer = None  # as if killed: nothing more is done to a file
        if not root.exists():  # between two renames, where the system cannot exchange
            assert not swap
            put_back(root)
        check_same(frames(LeRobotDatasetV2(root, readonly=True)), wanted, lossless=after != "video")
        del dataset
        with LeRobotDatasetV2(root) as again:
            again.convert(after, video_options=None if error is None else options)
            check_same(frames(again), wanted, lossless=after != "video")
        check_clean(root)
        shutil.rmtree(root.parent)
        if at > counting.seen:
            assert error is None
            break
    assert failed >= counting.seen // step // 2


CONVERTER = """
import sys
from roboreel import LeRobotDatasetV2
from roboreel.format.files import observed
left = int(sys.argv[2])
def watch(kind, path):
    global left
    left -= kind == "rename" and ".conversion" in str(path)
    if left == 0:
        print("ready", flush=True)
        sys.stdin.read()
with observed(watch):
    LeRobotDatasetV2(sys.argv[1]).convert("png")
"""


def killed_at(root: Path, episode: int) -> None:
    """Have a process convert to PNG, and kill it when it has written all files of that episode, nothing undone."""
    command = [sys.executable, "-c", CONVERTER, str(root), str(episode)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_killed_process_loses_nothing_and_what_it_did_is_not_done_again(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    made(root, [4, 3, 5], camera=True).close()
    wanted = frames(LeRobotDatasetV2(root))
    build = tmp_path / ".dataset.conversion" / "dataset" / "images" / CAMERA
    killed_at(root, 2)
    first = {path: path.stat().st_mtime_ns for path in build.glob("*/*.png") if path.parent.name.isdigit()}
    assert len(first) == 4
    assert verify(root).problems == []
    check_same(frames(LeRobotDatasetV2(root, readonly=True)), wanted)
    killed_at(root, 2)
    assert len(list(build.glob("00000000?/*.png"))) == 7
    with LeRobotDatasetV2(root) as dataset:
        check_same(frames(dataset), wanted)
        report = dataset.convert("png")
        check_same(frames(dataset), wanted)
    assert (report.episodes_resumed, report.episodes_converted) == (2, 1)
    kept = {root / path.relative_to(build.parents[1]): changed for path, changed in first.items()}
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    check_clean(root)


def test_another_state_or_another_mode_begins_anew_and_says_so(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    made(root, [4, 3, 5], camera=True).close()
    killed_at(root, 3)
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(2, 12, camera=True))
        wanted = frames(dataset)
        with pytest.warns(roboreel.RoboreelWarning, match="before it changed; this one begins anew"):
            report = dataset.convert("png")
        assert (report.episodes_resumed, report.episodes_converted) == (0, 4)
        check_same(frames(dataset), wanted)
        dataset.convert("memmap")
    killed_at(root, 3)
    with LeRobotDatasetV2(root) as dataset:
        with pytest.warns(roboreel.RoboreelWarning, match="other image modes"):
            dataset.convert("video", video_options=FAST)
        check_same(frames(dataset), wanted, lossless=False)
    check_clean(root)


def test_a_full_disk_leaves_the_old_one_and_nothing_else(small_disk: Path) -> None:  # noqa: F811
    root = small_disk / "dataset"
    dataset = made(root, [100], camera=True, image_mode="png")
    wanted = frames(dataset)
    blocker = fill(small_disk, 60_000)
    assert not dataset.forecast_conversion("memmap").fits
    with pytest.raises(roboreel.DiskSpaceError, match="--force"):
        dataset.convert("memmap")
    with pytest.raises(roboreel.DiskSpaceError, match="no space left"):
        dataset.convert("memmap", force=True)
    check_same(frames(dataset), wanted)
    check_clean(root)
    blocker.unlink()
    dataset.convert("memmap")
    check_same(frames(dataset), wanted)
    dataset.close()


def test_a_writer_elsewhere_and_a_capacity_in_bytes(tmp_path: Path) -> None:
    writing = made(tmp_path / "dataset", [4], camera=True)
    with pytest.raises(roboreel.DatasetLockedError, match="is being written by"):
        LeRobotDatasetV2(tmp_path / "dataset").convert("png")
    writing.close()
    small = ring_in_bytes(tmp_path / "small")
    wanted, capacity = frames(small), small._need_store().state.capacity
    with pytest.raises(roboreel.CapacityError, match="raise it to that"):
        small.convert("memmap")
    small.convert("memmap", force=True)
    check_same(frames(small), wanted)
    assert small._need_store().state.capacity == capacity
    small.add_episodes(recording(4, 8, camera=True))
    small.close()
    check_clean(tmp_path / "small")


def ring_in_bytes(root: Path) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(root, 10, "20kB", True, "png")
    for first in (0, 4):
        dataset.add_episodes(recording(4, first, camera=True))
    return dataset


READER = """
import time
import sys
import numpy as np
from roboreel import LeRobotDatasetV2
from tests.recordings import numbers_of, pictures
dataset = LeRobotDatasetV2(sys.argv[1], readonly=True)
dataset.set_delta_timestamps({"observation.image": [-0.1, 0], "observation.state": [-0.1, 0]})
rng, known = np.random.default_rng(0), -1
while len(dataset) < 20:
    time.sleep(0.01)
    batch = dataset.get_batch(rng.integers(0, 12, 8))
    found = batch["observation.image"].numpy().transpose(0, 1, 3, 4, 2) * 255
    assert np.abs(found - pictures(np.array(numbers_of(batch)))).max() <= 5
    if dataset.generation != known:
        known = dataset.generation
        print(known, flush=True)
print(numbers_of(dataset.get_batch([19])))
"""


def test_readers_elsewhere_follow(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    dataset = made(root, [6, 6], camera=True, image_mode="video", video_options=FAST)
    with subprocess.Popen([sys.executable, "-c", READER, str(root)], stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == f"{dataset.generation}\n"
        for mode in ("memmap", "png", "memmap"):
            dataset.convert(mode)
            assert reader.stdout.readline() == f"{dataset.generation}\n"
        dataset.add_episodes(recording(8, 12, camera=True))
        assert reader.stdout.read().splitlines()[-1] == "[[18, 19]]"
        assert reader.wait() == 0
