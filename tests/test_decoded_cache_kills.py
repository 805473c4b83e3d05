"""Several processes fill one cache, clear it, change its size, and are killed: no frame is ever a wrong one."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from roboreel import LeRobotDatasetV2
from roboreel.columns.cache_file import CacheFile
from roboreel.format import paths
from roboreel.format.files import observed
from tests.recordings import CAMERA, HEIGHT, WIDTH, made, pictures

FRAMES = 120
FRAME_BYTES = HEIGHT * WIDTH * 3
LARGE = 1 << 18
"""Bytes of a frame that takes long enough to copy for somebody to come in between."""
SIZES = [f"{frames * FRAME_BYTES + 600 + FRAMES * 24}B" for frames in (FRAMES, FRAMES // 2, FRAMES // 3)]


def check(dataset: LeRobotDatasetV2, indices: list[int]) -> None:
    """Compare every pixel with what was recorded."""
    images = dataset.get_batch(indices)[CAMERA].movedim(-3, -1).numpy()
    wrong = np.flatnonzero(np.any(images != pictures(np.array(indices)), axis=(1, 2, 3)))
    assert not len(wrong), f"frames {np.array(indices)[wrong].tolist()} are wrong"


def fill_for_ever(root: Path, seed: int) -> None:
    """Read, and now and then open with another size or clear the cache; says `ok` once it has read all."""
    from roboreel.store import clear_cache

    rng = random.Random(seed)
    told = False
    while True:
        dataset = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache=rng.choice(SIZES))
        for _ in range(rng.randrange(1, 12)):
            check(dataset, rng.sample(range(FRAMES), 30))
        if not told:
            check(dataset, list(range(FRAMES)))
            sys.stdout.write("ok\n")
            sys.stdout.flush()
            told = True
        if rng.random() < 0.2:
            clear_cache(root / paths.CACHE)


def started(root: Path, seed: int) -> subprocess.Popen[str]:
    program = (
        "import sys; from pathlib import Path; from tests.test_decoded_cache_kills import fill_for_ever; "
        f"fill_for_ever(Path(sys.argv[1]), {seed})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_fillers_that_are_killed_again_and_again_leave_right_frames(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    made(root, [FRAMES // 3] * 3, camera=True, image_mode="png", buffer_capacity=FRAMES).close()
    reader = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache=SIZES[0])
    rng = random.Random(3)
    fillers = [started(root, seed) for seed in range(3)]
    try:
        for filler in fillers:
            assert filler.stdout is not None
            assert filler.stdout.readline() == "ok\n", filler.communicate()[1]
        for filler in fillers:
            until = time.monotonic() + rng.uniform(0.1, 0.4)
            while time.monotonic() < until:
                check(reader, rng.sample(range(FRAMES), 40))
            assert filler.poll() is None, filler.communicate()[1]
            filler.kill()  # whatever it was doing
            assert filler.wait() == -signal.SIGKILL
    finally:
        for filler in fillers:
            filler.kill()
            filler.communicate()
    last = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache=SIZES[0])
    for _ in range(2):
        check(last, list(range(FRAMES)))
    report = last.decoded_cache
    assert report is not None
    assert report.frames == report.capacity == FRAMES


def test_killed_before_each_of_its_effects_a_filler_leaves_right_frames_and_no_lock(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    made(root, [8], camera=True, image_mode="png", buffer_capacity=8).close()
    size = f"{7 * FRAME_BYTES}B"

    def fill() -> None:
        dataset = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache=size)
        check(dataset, [1, 2, 5])
        check(dataset, [7, 0, 1, 3])

    effects: list[str] = []
    with observed(lambda kind, _: effects.append(kind)):
        fill()
    assert effects.count("write") > 10
    for at in range(len(effects)):
        for name in (root / paths.CACHE).iterdir():
            name.unlink()
        child = os.fork()
        if not child:
            seen: list[str] = []

            def kill(kind: str, _: Path, seen: list[str] = seen, at: int = at) -> None:
                seen.append(kind)
                if len(seen) > at:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                with observed(kill):
                    fill()
            finally:
                os._exit(0)
        died = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert died or at == len(effects) - 1  # the directory is there already, but for the first time
        dataset = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache=size)
        for _ in range(2):
            check(dataset, list(range(8)))
        report = dataset.decoded_cache
        assert report is not None
        assert report.frames == report.capacity == 6


def overwrite_for_ever(folder: Path, number: Any) -> None:
    """Fill the same four places with ever new images, each of which is its number over and over."""
    file = CacheFile(folder, CAMERA, LARGE)
    file.resize(4, 4)
    while True:
        images = number.value + 1 + np.arange(4)
        file.fill(np.arange(4), images.astype(np.uint64), np.repeat(images, LARGE // 8).view(np.uint8).reshape(4, -1))
        number.value += 4


def test_frames_that_are_overwritten_while_they_are_copied_are_no_hits(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    number = processes.Value("q", 4)
    writer = processes.Process(target=overwrite_for_ever, args=(tmp_path, number), daemon=True)
    writer.start()
    file, out = CacheFile(tmp_path, CAMERA, LARGE), np.empty((4, LARGE), np.uint8)
    file.resize(4, 4)
    hits = misses = 0
    try:
        while min(hits, misses) < 400:
            wanted = number.value - 3 + np.arange(4)
            hit = file.read(np.arange(4), wanted.astype(np.uint64), out)
            assert np.array_equal(np.unique(out.view(np.int64)[hit]), wanted[hit])
            hits, misses = hits + int(hit.sum()), misses + int((~hit).sum())
            assert writer.is_alive()
    finally:
        writer.kill()
        writer.join()


def test_who_cannot_have_the_lock_goes_on_without_and_no_descriptor_stays_open(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    made(root, [8], camera=True, image_mode="png").close()
    dataset = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache="1MB")
    lock = root / paths.CACHE / paths.CACHE_LOCK
    holding = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'r+b') as file:\n"
        "    fcntl.lockf(file, fcntl.LOCK_EX, 1)\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        check(dataset, list(range(4)))
        assert CacheFile(root / paths.CACHE, CAMERA, FRAME_BYTES).count()[1] == 0
        holder.kill()
    before = psutil.Process().num_fds()
    for _ in range(3):
        check(dataset, list(range(8)))
    assert CacheFile(root / paths.CACHE, CAMERA, FRAME_BYTES).count()[1] == 8
    assert psutil.Process().num_fds() == before
