"""Several cameras of one episode, each in its own mode, stored at once: the same bytes, all of them or none."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2, VideoOptions
from roboreel.format.files import observed
from roboreel.format.threads import Stop, in_threads, mapped, unless_stopped
from roboreel.store import verify
from tests.recordings import VIDEO_ERROR, numbers_of, pictures, recording
from tests.test_durability import Failing

RAW, PNG, TOP, SIDE = (f"observation.images.{name}" for name in ("raw", "png", "top", "side"))
CAMERAS = (RAW, PNG, TOP, SIDE)
MODES = {RAW: "memmap", PNG: "png"}
OPTIONS = {SIDE: VideoOptions(codec="h264", gop=3, crf=20, preset="ultrafast")}
MIXED: dict[str, Any] = {"image_mode": MODES, "video_options": OPTIONS, "image_dtype": "uint8"}
RING: dict[str, Any] = {"buffer_capacity": 9, "use_as_fifo_buffer": True}


def shot(length: int, first: int = 0, cameras: tuple[str, ...] = CAMERAS) -> dict[str, Any]:
    numbers = np.arange(first, first + length)
    return recording(length, first) | {key: pictures(numbers + 9 * CAMERAS.index(key)) for key in cameras}


def seen(dataset: LeRobotDatasetV2) -> list[int]:
    """The frame numbers, after checking that every camera shows them."""
    batch = dataset.get_batch(range(len(dataset)))
    numbers = numbers_of(batch)
    for k, key in enumerate(CAMERAS):
        error = np.abs(batch[key].movedim(1, -1).numpy() - pictures(np.asarray(numbers) + 9 * k).astype(int))
        assert error.max() <= (0 if key in MODES else VIDEO_ERROR), key
    return list(numbers)


def image_files(root: Path) -> dict[str, bytes]:
    found = (path for folder in ("images", "videos") for path in (root / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


def test_cameras_stored_at_once_have_the_bytes_that_each_has_alone(tmp_path: Path) -> None:
    together: dict[str, bytes] = {}
    for name in ("a", "b"):
        with LeRobotDatasetV2(tmp_path / name, fps=10, **MIXED) as dataset:
            for first in (0, 40):
                dataset.add_episodes(shot(40, first))
        again = image_files(tmp_path / name)
        assert together in ({}, again)
        together = again
    assert len(together) == 80 + 2 * 2 * 2
    for key in (PNG, TOP, SIDE):
        options = {argument: {key: value} for argument, every in (("image_mode", MODES), ("video_options", OPTIONS))
                   if (value := every.get(key)) is not None}  # fmt: skip
        with LeRobotDatasetV2(tmp_path / key, fps=10, **options) as dataset:  # type: ignore[arg-type]
            for first in (0, 40):
                dataset.add_episodes(shot(40, first, (key,)))
        alone = image_files(tmp_path / key)
        assert alone == {path: data for path, data in together.items() if key in path}


def step_of(packet: Any) -> int:
    """From one frame at 10 Hz to the next, in units of the packet's clock."""
    return int(Fraction(1, 10) / packet.time_base)


class Leaky:
    """A real container that drops a packet on its way into the file, or writes one more."""

    def __init__(self, container: Any, *, drop: int = -1, twice: int = -1) -> None:
        self._container, self._drop, self._twice, self._count = container, drop, twice, 0

    def __enter__(self) -> Leaky:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def mux(self, packets: Any) -> None:
        for packet in packets:
            number, self._count = self._count, self._count + 1
            step = step_of(packet)
            if number >= self._twice >= 0:
                packet.pts, packet.dts = packet.pts + step, packet.dts + step
            if number == self._twice:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base = packet.stream, packet.time_base
                copy.pts, copy.dts = packet.pts - step, packet.dts - step
                copy.is_keyframe = packet.is_keyframe
                self._container.mux(copy)
            if number != self._drop:
                self._container.mux(packet)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"drop": 3}, "6 frames went into the encoder, and 5 are in the file"),
        ({"drop": 5}, "6 frames went into the encoder, and 5 are in the file"),
        ({"twice": 2}, "6 frames went into the encoder, and 7 are in the file"),
    ],
)
@pytest.mark.parametrize("key", [TOP, SIDE])
def test_an_encoder_that_drops_or_adds_a_frame_is_noticed_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, fault: dict[str, int], message: str
) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, **MIXED)
    dataset.add_episodes(shot(4))
    before = image_files(tmp_path / "dataset")
    opened = av.open

    def leaky(file: Any, mode: Any = "r", **options: Any) -> Any:
        container = opened(file, mode, **options)
        return Leaky(container, **fault) if mode == "w" and key in str(getattr(file, "name", file)) else container

    with monkeypatch.context() as patched:
        patched.setattr(av, "open", leaky)
        with pytest.raises(roboreel.VideoError, match=f"{key}.*{message}"):
            dataset.add_episodes(shot(6, 4))
        assert image_files(tmp_path / "dataset") == before
        assert seen(dataset) == [0, 1, 2, 3]
        with pytest.raises(roboreel.VideoError, match=message):
            LeRobotDatasetV2(tmp_path / "new", fps=10, **MIXED).add_episodes(shot(6))
        assert not (tmp_path / "new").exists()
    dataset.add_episodes(shot(6, 4))
    assert seen(dataset) == list(range(10))


def test_a_frame_that_the_encoder_moves_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = av.open

    class Late(Leaky):
        def mux(self, packets: Any) -> None:
            for packet in packets:
                packet.pts, packet.dts = packet.pts + step_of(packet), packet.dts + step_of(packet)
                self._container.mux(packet)

    def late(file: Any, mode: Any = "r", **options: Any) -> Any:
        container = opened(file, mode, **options)
        return Late(container) if mode == "w" else container

    monkeypatch.setattr(av, "open", late)
    with pytest.raises(roboreel.VideoError, match="the encoder moved frames off the times k / 10 s"):
        LeRobotDatasetV2(tmp_path / "new", fps=10).add_episodes(shot(6, 0, (TOP,)))
    assert not (tmp_path / "new").exists()


# A ring in which every mode is at work


def test_a_mixed_ring_overwrites_and_keeps_what_survives(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    dataset = LeRobotDatasetV2(root, fps=10, **MIXED, **RING)
    dataset.add_episodes(shot(4))
    dataset.add_episodes(shot(4, 4))
    reader = pickle.loads(pickle.dumps(dataset))
    for first in range(8, 32, 3):
        dataset.add_episodes(shot(3, first))
        for one in (dataset, reader):
            numbers = seen(one)
            assert set(range(first - 4, first + 3)) <= set(numbers)
            assert len(numbers) == len(set(numbers))
    numbers = seen(LeRobotDatasetV2(root, image_dtype="uint8"))
    assert len(numbers) == 9
    assert {path.split("/")[2].partition(".")[0] for path in image_files(root) if "mp4" in path} == {
        f"{row:06d}" for row in dataset._need_store().table.live.tolist()
    }
    assert verify(root).problems == []


def test_whichever_effect_fails_a_mixed_ring_has_the_old_or_the_new(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with LeRobotDatasetV2(source, fps=10, **MIXED, **RING) as dataset:
        for first, length in ((0, 4), (4, 3)):
            dataset.add_episodes(shot(length, first))
    before = seen(LeRobotDatasetV2(source, **MIXED))
    counting = Failing()

    def added(dataset: LeRobotDatasetV2, failing: Failing) -> bool:
        with observed(failing), contextlib.suppress(roboreel.StorageError):
            dataset.add_episodes(shot(3, 7), no_flush=True)
            return True
        return False

    whole = LeRobotDatasetV2(shutil.copytree(source, tmp_path / "whole"), **MIXED)
    assert added(whole, counting)
    after, files = seen(whole), len(image_files(tmp_path / "whole"))
    whole.close()
    assert counting.seen > 30
    failed = 0
    for at in range(0, counting.seen, 2):
        root = shutil.copytree(source, tmp_path / f"fails at {at}")
        dataset = LeRobotDatasetV2(root, **MIXED)
        if not added(dataset, Failing(at)):
            failed += 1
            assert seen(dataset) == before
            dataset.add_episodes(shot(3, 7))
        assert seen(dataset) == after
        dataset.close()
        assert len(image_files(root)) == files
        LeRobotDatasetV2.check_storage_dir_integrity(root, MODES)
        shutil.rmtree(root)
    assert failed > counting.seen // 4


CHILD = """
import sys
from roboreel import LeRobotDatasetV2
from tests.test_staging import MIXED, shot
dataset = LeRobotDatasetV2(sys.argv[1], 10, 40, True, **MIXED)
number = 1 + int(dataset.get_data_by_key("index").max()) if len(dataset) else 0
while True:
    dataset.add_episodes(shot(5, number), no_flush=True)
    number += 5
    print(number, flush=True)
"""


def test_a_mixed_ring_survives_kills(tmp_path: Path) -> None:
    root, repository = tmp_path / "dataset", Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{repository / 'src'}{os.pathsep}{repository}"}
    rng = np.random.default_rng(3)
    for rounds in (2, 9):
        command = [sys.executable, "-c", CHILD, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
            assert child.stdout is not None
            told = [int(child.stdout.readline()) for _ in range(rounds)]
            time.sleep(rng.random() * 0.05)
            child.send_signal(signal.SIGKILL)
            told += [int(line) for line in child.stdout if line.endswith("\n")]
        writer = LeRobotDatasetV2(root, **MIXED)
        newest = max(seen(writer))
        assert newest + 1 in (told[-1], told[-1] + 5)
        writer.add_episodes(shot(2, newest + 1))
        assert max(seen(writer)) == newest + 2
        writer.close()
        assert [problem for problem in verify(root).problems if "lost" not in str(problem)] == []
        assert not list(root.rglob("new.mp4")) + list(root.rglob("*.tmp"))


def test_a_capacity_in_bytes_counts_each_camera_as_it_is_stored(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    dataset = LeRobotDatasetV2(root, fps=10, buffer_capacity="150kB", use_as_fifo_buffer=True, **MIXED)
    for first in range(0, 400, 5):
        dataset.add_episodes(shot(5, first), no_flush=True)
    dataset.close()
    counted = ("columns", "checksums", "images", "videos", "owners.bin")
    total = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()
                and path.relative_to(root).parts[0] in counted)  # fmt: skip
    assert 50_000 < total <= 150_000
    assert max(seen(LeRobotDatasetV2(root, **MIXED))) == 399


# Threads


def test_jobs_run_at_once_and_give_their_results_in_order() -> None:
    meet = threading.Barrier(3, timeout=60)  # would break if one waited for the other
    assert in_threads([lambda k=k: (meet.wait(), k)[1] for k in range(3)], 3) == [0, 1, 2]  # type: ignore[misc]


def test_the_first_failure_stops_the_others_and_no_job_outlives_the_call() -> None:
    stop, running = Stop(), threading.Event()
    ended: list[str] = []

    def long() -> None:
        running.set()
        try:
            for _ in unless_stopped(range(50_000), stop):  # some minute, were it not stopped
                time.sleep(0.001)
            ended.append("by itself")
        except CancelledError:
            ended.append("stopped")
            raise

    def failing() -> None:
        assert running.wait(60)
        raise OSError("made to fail")

    with pytest.raises(OSError, match="made to fail"):
        in_threads([long, failing], 2, stop)
    assert ended == ["stopped"]


def test_an_error_does_not_keep_what_its_raiser_held() -> None:
    class Held:
        pass

    def fail() -> None:
        raise OSError("made to fail")

    def call() -> weakref.ref[Held]:
        held = Held()
        found.append(weakref.ref(held))
        in_threads([fail, fail, lambda: None], 2)
        return found[-1]

    found: list[weakref.ref[Held]] = []
    with pytest.raises(OSError, match="made to fail"):
        call()
    assert found[0]() is None


def test_what_is_closed_by_atexit_is_stored_all_the_same(tmp_path: Path) -> None:
    code = (
        "import atexit, sys; from roboreel import LeRobotDatasetV2; from tests.test_staging import MIXED, shot\n"
        "dataset = LeRobotDatasetV2(sys.argv[1], fps=10, **MIXED); dataset.add_episodes(shot(3), no_flush=True)\n"
        "atexit.register(lambda: (dataset.add_episodes(shot(3, 3)), dataset.close()))\n"
    )
    repository = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{repository / 'src'}{os.pathsep}{repository}"}
    command = [sys.executable, "-c", code, str(tmp_path / "dataset")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert done.stderr == ""
    assert seen(LeRobotDatasetV2(tmp_path / "dataset", image_dtype="uint8")) == list(range(6))


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_items_are_taken_no_further_ahead_than_a_few(threads: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(200):
            taken.append(item)
            yield item

    square: Callable[[int], int] = lambda item: item**2  # noqa: E731
    for k, result in enumerate(mapped(square, items(), threads)):
        assert result == k**2
        assert len(taken) <= k + 2 + 2 * threads
