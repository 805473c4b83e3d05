"""A disk that is really full, a small tmpfs of our own: an error says so, nothing is lost, with space it goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from roboreel import DiskSpaceError, LeRobotDatasetV2, RoboreelWarning
from roboreel.cli import main
from tests.recordings import CAMERA, Data, recording
from tests.test_power_loss import contents

MEBIBYTES = 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted file system of `MEBIBYTES`."""
    place = tmp_path / "small"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={MEBIBYTES}m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount program here")
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def fill(place: Path, leave: int) -> Path:
    """Take what is free, less `leave` bytes, with a file that is not ours."""
    blocker = place / "blocker"
    stats = os.statvfs(place)
    with blocker.open("wb") as file:
        file.write(bytes(max(0, stats.f_bavail * stats.f_frsize - leave)))
    return blocker


def refused(dataset: LeRobotDatasetV2, data: Data) -> DiskSpaceError | None:
    """Add an episode; return the error if there is no room for it."""
    try:
        dataset.add_episodes(data)
    except DiskSpaceError as error:
        return error
    return None


@pytest.mark.parametrize("mode", ["memmap", "png", "video"])
def test_a_full_disk_is_an_error_and_no_loss(small_disk: Path, mode: str) -> None:
    root, length, number, failed = small_disk / "dataset", 20, 0, 0
    dataset = LeRobotDatasetV2(root, fps=10, image_mode=mode)
    while number < 3 * length:
        dataset.add_episodes(recording(length, number, camera=True, task="push"))
        number += length
    for leave in (0, 4096, 12288, 40960, 90000):
        before = contents(dataset)
        blocker = fill(small_disk, leave)
        for _ in range(40):
            error = refused(dataset, recording(length, number, camera=True, task="push"))
            if error is None or contents(dataset) != before:  # it is in; at most that it survives a power cut failed
                assert error is None or error.__notes__
                number += length
                before = contents(dataset)
            if error is not None:
                failed += 1
                break
        assert contents(LeRobotDatasetV2(root, readonly=True)) == contents(dataset)
        blocker.unlink()
    assert failed >= 3
    dataset.add_episodes(recording(length, number, camera=True, task="push"))
    assert len(contents(dataset)) == number + length
    dataset.close()
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_a_full_disk_makes_no_dataset(small_disk: Path) -> None:
    for leave in (0, 8192, 65536, 200_000):
        blocker = fill(small_disk, leave)
        with pytest.raises(DiskSpaceError):
            LeRobotDatasetV2(small_disk / "dataset", fps=10, image_mode="memmap").add_episodes(
                recording(400, camera=True)
            )
        assert not (small_disk / "dataset").exists()
        blocker.unlink()


def test_a_ring_and_an_edit_go_on_in_the_room_that_they_have(small_disk: Path) -> None:
    dataset = LeRobotDatasetV2(small_disk / "ring", 10, 60, True, "memmap")
    for first in range(0, 120, 10):
        dataset.add_episodes(recording(10, first, camera=True, task="push"))
    blocker = fill(small_disk, 4096)
    for first in range(120, 180, 10):
        dataset.add_episodes(recording(10, first, camera=True, task="push"))
    before = contents(dataset)
    assert len(before) == 60
    blocker.unlink()
    blocker = fill(small_disk, 0)
    with pytest.raises(DiskSpaceError), dataset.edit(CAMERA) as images:
        images[:] = 0
    assert contents(dataset) == before
    blocker.unlink()
    with dataset.edit("action") as actions:
        actions *= -1
    assert np.all(dataset.get_data_by_key("action") <= 0)


def test_a_cache_of_decoded_frames_on_a_full_disk_ends_in_decoding(small_disk: Path, tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    with LeRobotDatasetV2(root, fps=10, image_mode="png", buffer_capacity=2000) as dataset:
        for first in range(0, 800, 200):
            dataset.add_episodes(recording(200, first, camera=True), no_flush=True)
    plain = LeRobotDatasetV2(root, readonly=True).get_batch(range(800))[CAMERA]
    cached = LeRobotDatasetV2(root, readonly=True, decoded_cache=("1MB", small_disk))
    cached.get_batch(range(100))
    fill(small_disk, leave=0)
    with pytest.warns(RoboreelWarning, match="no space left"):
        batches = [cached.get_batch(range(at, at + 100))[CAMERA] for at in range(0, 800, 100)]
    assert (np.concatenate(batches) == plain.numpy()).all()  # and no SIGBUS from a hole in the cache's table
    main(["cache", str(root), "--place", str(small_disk), "--clear"])
    assert [path.name for path in small_disk.iterdir()] == ["blocker"]


def test_a_cache_keeps_what_fits_when_its_disk_fills_up_and_takes_no_more(small_disk: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    with LeRobotDatasetV2(tmp_path / "dataset", 10, image_mode="png") as dataset:
        dataset.add_episodes({CAMERA: images})
    dataset = LeRobotDatasetV2(tmp_path / "dataset", decoded_cache=("2MB", small_disk / "cache"), image_dtype="uint8")
    dataset[0]
    blocker = fill(small_disk, 400_000)
    with pytest.warns(RoboreelWarning, match="decoded frames are not kept any more"):
        batch = dataset.get_batch(range(64))
    assert np.array_equal(batch[CAMERA].movedim(1, -1), images)
    kept = dataset.decoded_cache
    assert kept is not None
    assert 20 < kept.frames < 40
    assert kept.bytes < (kept.frames + 2) * images[0].nbytes + 16_384
    blocker.unlink()
