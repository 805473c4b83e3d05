"""`add_episodes` until it is on disk, beside `numpy.memmap` flushed, and beside the encoder alone."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from benchmarks.benchmark import Benchmark, Contender, Run, Scene, Setup, rate_of
from benchmarks.recordings import FPS, moving_frames
from roboreel import LeRobotDatasetV2
from roboreel.columns.scheduling import ordinary_threads

CAMERA = "observation.images.cam0"
EPISODES = 4
"""Episodes until a file is full, and a new one is begun, which is not timed."""


def vga_episodes(scene: Scene) -> dict[str, Any]:
    """Episodes of 640×480."""
    return {"batch_size": scene.pick(4, 50, 50), "height": 480, "width": 640}


def small_episodes(scene: Scene) -> dict[str, Any]:
    """Episodes of 424×240, encoded as LeRobot does."""
    return {"batch_size": scene.pick(4, 50, 100), "height": 240, "width": 424}


def frames_of(setup: Setup) -> NDArray[np.uint8]:
    return np.concatenate(list(moving_frames(setup["batch_size"], setup["height"], setup["width"])))


def add_memmap(setup: Setup) -> Iterator[Run]:
    yield from _adding(setup, "memmap")


def add_video(setup: Setup) -> Iterator[Run]:
    yield from _adding(setup, "video")


def _adding(setup: Setup, mode: str) -> Iterator[Run]:
    frames = frames_of(setup)
    episode = {CAMERA: frames, "action": np.zeros((len(frames), 7), np.float32)}
    place = Path(setup["cache"]) / f"written_{mode}"
    dataset: LeRobotDatasetV2 | None = None

    def begin() -> None:
        nonlocal dataset
        if dataset is not None:
            dataset.close()
        shutil.rmtree(place, ignore_errors=True)
        dataset = LeRobotDatasetV2(place, FPS, (EPISODES + 1) * len(frames), image_mode=mode)
        dataset.add_episodes(episode)  # the first one makes the files

    def add() -> None:
        assert dataset is not None
        dataset.add_episodes(episode)

    yield own_time(begin, add)
    shutil.rmtree(place, ignore_errors=True)


def memmap(setup: Setup) -> Iterator[Run]:
    """The same bytes through a mapping of a file that has its room already, and `flush`."""
    frames = frames_of(setup)
    path = Path(setup["cache"]) / "written.bin"
    mapped = np.zeros((0,), np.uint8)
    at = 0

    def begin() -> None:
        nonlocal mapped, at
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (EPISODES + 1) * frames.nbytes)
        mapped = np.memmap(path, np.uint8, "r+", shape=((EPISODES + 1) * len(frames), *frames.shape[1:]))
        at = 0
        write()

    def write() -> None:
        nonlocal at
        mapped[at : at + len(frames)] = frames
        mapped.flush()  # type: ignore[attr-defined]
        at += len(frames)

    yield own_time(begin, write)
    path.unlink(missing_ok=True)


def encoder(setup: Setup) -> Iterator[Run]:
    """SVT-AV1 as LeRobot and we set it, its packets counted and let go."""
    frames = frames_of(setup)

    def encode() -> None:
        codec: Any = av.CodecContext.create("libsvtav1", "w")
        codec.height, codec.width = frames.shape[1:3]
        codec.pix_fmt, codec.framerate, codec.time_base = "yuv420p", Fraction(FPS), Fraction(1, FPS)
        codec.options = {"g": "2", "crf": "30"}
        with ordinary_threads():
            codec.open()
        packets = 0
        for k, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, FPS)
            packets += len(codec.encode(frame))
        packets += len(codec.encode(None))
        assert packets == len(frames)

    yield own_time(lambda: None, encode)


def own_time(begin: Callable[[], None], work: Callable[[], None]) -> Run:
    """Return what does `work` so often, `begin` every fourth time, and says how long `work` alone took."""
    done = 0

    def run(count: int) -> float:
        nonlocal done
        seconds = 0.0
        for _ in range(count):
            if done % EPISODES == 0:
                begin()
            done += 1
            began = time.perf_counter()
            work()
            seconds += time.perf_counter() - began
        return seconds

    return run


MEMMAP = Benchmark(
    "write_memmap",
    "`add_episodes`, raw 640×480 and an action, flushed",
    vga_episodes,
    (Contender("roboreel", add_memmap), Contender("numpy.memmap", memmap)),
    (rate_of("numpy.memmap", 0.6),),
)

VIDEO = Benchmark(
    "write_video",
    "`add_episodes`, AV1 of 424×240, flushed",
    small_episodes,
    (Contender("roboreel", add_video), Contender("encoder alone", encoder)),
    (rate_of("encoder alone", 0.9),),
)
