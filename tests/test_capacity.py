"""`buffer_capacity`: in frames and in bytes, stored, raised, never lowered; space is taken before it is needed."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format import files
from roboreel.store.capacity import parse_capacity
from tests.lerobot_folders import write_v3
from tests.recordings import CAMERA, HEIGHT, WIDTH, made, numbers_of, pictures, recording

FRAME = 8 * 4 + 8 + 4 + 1 + 7 * 8 + 8
"""Bytes of a frame of `recording`: index keys, state, action, done; seven checksums; the owner."""
PIXELS = HEIGHT * WIDTH * 3 + 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def metadata(root: Path) -> Any:
    return json.loads((root / "metadata.json").read_text())


# What can be given


@pytest.mark.parametrize(
    ("given", "amount"),
    [
        ("500B", 500),
        ("20GB", 20 * 10**9),
        ("500MB", 500 * 10**6),
        ("1.5TB", 1_500 * 10**9),
        ("0.1kB", 100),
        ("20GiB", 20 * 2**30),
        ("1.5 MiB", 3 * 2**19),
        ("2pb", 2 * 10**15),
    ],
)
def test_sizes(given: str, amount: int) -> None:
    parsed = parse_capacity(given)
    assert parsed is not None
    assert (parsed.in_bytes, parsed.amount) == (True, amount)


@pytest.mark.parametrize(
    "given", ["20", "20G", "GB", "-1GB", "0MB", "0.5B", "1e3MB", "5iB", "1,5GB", "", "20 0GB", 0, -3, 2.5, True, b"1GB"]
)
def test_anything_else_is_refused_with_what_would_do(root: Path, given: Any) -> None:
    with pytest.raises(ValueError, match=r"buffer_capacity=.*a positive number of frames would do, or .*'20GB'"):
        LeRobotDatasetV2(root, fps=10, buffer_capacity=given)


# Bytes


def test_bytes_become_frames_at_the_first_episode_and_are_stored(root: Path) -> None:
    dataset = made(root, [3], buffer_capacity=f"{20 * FRAME + 7}B")
    assert metadata(root)["capacity"] == 20
    assert metadata(root)["byte_capacity"] == {"bytes": 20 * FRAME + 7, "frame_bytes": FRAME}
    dataset.add_episodes(recording(17, 3))
    with pytest.raises(roboreel.CapacityError, match="exceeds buffer_capacity=20 by 1"):
        dataset.add_episodes(recording(1, 20))
    dataset.close()
    columns = sum(path.stat().st_size for folder in ("columns", "checksums") for path in (root / folder).iterdir())
    assert columns + (root / "owners.bin").stat().st_size == 20 * FRAME
    for again in (LeRobotDatasetV2(root), LeRobotDatasetV2(root, buffer_capacity=f"{20 * FRAME + 7}B")):
        with pytest.raises(roboreel.CapacityError):
            again.add_episodes(recording(1, 20))
        again.close()


def test_a_capacity_in_bytes_can_be_a_ring(root: Path) -> None:
    dataset = made(root, [3], buffer_capacity=f"{8 * FRAME}B", use_as_fifo_buffer=True)
    dataset.add_episodes(recording(4, 3))
    dataset.add_episodes(recording(2, 7))
    assert dataset.get_data_by_key("index").tolist() == [7, 8, 2, 3, 4, 5, 6]


def test_a_first_episode_longer_than_the_bytes_is_refused_and_nothing_made(root: Path) -> None:
    with pytest.raises(roboreel.CapacityError, match=rf"5 frames is longer than the 4 .*'{5 * FRAME}B' or more"):
        made(root, [5], buffer_capacity=f"{5 * FRAME - 1}B")
    assert not root.exists()
    made(root, [5], buffer_capacity=f"{5 * FRAME}B")


def image_bytes(root: Path) -> int:
    found = (path for name in ("images", "videos") for path in (root / name).rglob("*"))
    return sum(path.stat().st_size for path in found if path.is_file())


@pytest.mark.parametrize("mode", ["png", "video"])
def test_encoded_cameras_count_at_a_quarter_more_than_the_first_episode_took(root: Path, mode: str) -> None:
    made(root, [4], camera=True, image_mode=mode, buffer_capacity="100kB").close()
    raw = FRAME + (8 if mode == "png" else 0)
    a_frame = raw + int(np.ceil(image_bytes(root) / 4 * 1.25))
    assert metadata(root)["byte_capacity"] == {"bytes": 100_000, "frame_bytes": a_frame}
    assert metadata(root)["capacity"] == 100_000 // a_frame


def noise(length: int, first: int) -> dict[str, Any]:
    images = np.random.default_rng(first).integers(0, 256, (length, HEIGHT, WIDTH, 3), np.uint8)
    return {**recording(length, first), CAMERA: images}


@pytest.mark.parametrize("ring", [False, True])
def test_images_beyond_the_bytes_are_a_disk_space_error_and_the_episode_is_not_there(root: Path, ring: bool) -> None:
    dataset = made(root, [4], camera=True, image_mode="png", buffer_capacity="20kB", use_as_fifo_buffer=ring)
    room = metadata(root)["capacity"]
    before = image_bytes(root)
    which = "this episode's image files alone" if ring else "with this episode the image files"
    with pytest.raises(roboreel.DiskSpaceError, match=rf"{which} take .* buffer_capacity is 20,000 bytes"):
        dataset.add_episodes(noise(room - 4, 4))  # noise takes far more than one colour
    assert (len(dataset), image_bytes(root)) == (4, before)
    dataset.add_episodes(recording(room - 4, 4, camera=True))
    assert len(dataset) == room
    dataset.close()
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    columns = room * (FRAME + 8)
    assert columns + image_bytes(root) <= 20_000


@pytest.mark.parametrize("mode", ["png", "video"])
def test_in_a_ring_the_files_of_evicted_episodes_count_no_more(root: Path, mode: str) -> None:
    dataset = made(root, [4], camera=True, image_mode=mode, buffer_capacity="30kB", use_as_fifo_buffer=True)
    room, number = metadata(root)["capacity"], 4
    columns = room * (FRAME + (8 if mode == "png" else 0))
    for step in range(3 * room // 4):
        if step == room // 4:  # also with sizes that are read from what is on disk
            dataset.close()
            dataset = LeRobotDatasetV2(root)
        dataset.add_episodes(recording(4, number, camera=True), no_flush=True)
        number += 4
        assert columns + image_bytes(root) <= 30_000
    assert number > 2 * room
    dataset.add_episodes(recording(3, number, camera=True))
    assert (
        np.abs(dataset.get_episode(number // 4)[CAMERA].astype(int) - pictures(np.arange(number, number + 3))).max() < 6
    )


def test_an_import_takes_bytes_too(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "folder", camera="video")
    options: Any = {"buffer_capacity": "1MB", "use_as_fifo_buffer": True, "progress": False}
    dataset = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "ring", **options)
    assert len(dataset) == 15
    stored = metadata(tmp_path / "ring")
    assert stored["byte_capacity"]["bytes"] == 1_000_000
    assert stored["capacity"] == 1_000_000 // stored["byte_capacity"]["frame_bytes"]


# Raised on reopening, never lowered


@pytest.mark.parametrize(
    ("before", "after", "room"),
    [
        (6, 9, 9),
        (6, f"{10 * FRAME}B", 10),
        (f"{6 * FRAME}B", f"{11 * FRAME}B", 11),
        (f"{6 * FRAME}B", 12, 12),
        (None, f"{13 * FRAME}B", 13),
        (None, 14, 14),
    ],
)
def test_a_capacity_is_raised_on_reopening_and_stays_so(root: Path, before: Any, after: Any, room: int) -> None:
    made(root, [5], buffer_capacity=before).close()
    LeRobotDatasetV2(root, buffer_capacity=after).close()
    dataset = LeRobotDatasetV2(root)
    dataset.add_episodes(recording(room - 5, 5))
    with pytest.raises(roboreel.CapacityError, match=f"exceeds buffer_capacity={room} by 1"):
        dataset.add_episodes(recording(1, room))
    assert ("byte_capacity" in metadata(root)) == isinstance(after, str)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (6, 5, r"buffer_capacity=5 is less than the 6 frames .* cannot shrink"),
        (6, f"{6 * FRAME - 1}B", rf"buffer_capacity='.*B', 5 frames of {FRAME} bytes, is less than the 6 frames"),
        (f"{6 * FRAME}B", f"{6 * FRAME - 1}B", rf"is less than the {6 * FRAME} bytes with which .* cannot shrink"),
        (f"{6 * FRAME}B", 5, "buffer_capacity=5 is less than the 6 frames"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
def test_it_cannot_shrink(root: Path, before: Any, after: Any, message: str, readonly: bool) -> None:
    made(root, [5], buffer_capacity=before).close()
    sizes = {path: path.stat().st_size for path in root.rglob("*.bin")}
    with pytest.raises(roboreel.CapacityError, match=message):
        LeRobotDatasetV2(root, buffer_capacity=after, readonly=readonly)
    assert {path: path.stat().st_size for path in root.rglob("*.bin")} == sizes
    assert len(LeRobotDatasetV2(root)) == 5


def test_a_little_more_in_bytes_costs_nothing_where_the_first_episode_took_more_than_its_share(root: Path) -> None:
    with LeRobotDatasetV2(root, 10, "24kB", image_mode="png") as dataset:
        dataset.add_episodes(noise(16, 0))
    known = metadata(root)
    assert known["capacity"] == 16 > known["byte_capacity"]["bytes"] // known["byte_capacity"]["frame_bytes"]
    with LeRobotDatasetV2(root, buffer_capacity="24100B") as dataset:
        assert dataset.get_data_by_key("index").tolist() == list(range(16))
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    with LeRobotDatasetV2(root, buffer_capacity="48kB") as dataset:
        dataset.add_episodes(noise(3, 16))
        assert len(dataset) == 19


# Space


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Say how much is free. The disk is not ours to fill; a really full one is in the tests of durability."""

    def set_free(count: int) -> None:
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 0, 0, count, 0, 0, 0, 0, 255)))

    return set_free


def test_growing_doubles_and_where_that_is_too_much_takes_what_the_episode_needs(
    root: Path, free: Callable[[int], None]
) -> None:
    dataset = made(root, [4])
    free(10 * FRAME)  # doubling twice takes 12 of 10, once 4
    dataset.add_episodes(recording(2, 4))
    assert metadata(root)["capacity"] == 8
    dataset.add_episodes(recording(7, 6))  # 16 would take 8 of 10 frames: just 80 %
    assert metadata(root)["capacity"] == 16
    dataset.add_episodes(recording(4, 13))  # 32 would take 16
    assert metadata(root)["capacity"] == 17
    with pytest.raises(roboreel.DiskSpaceError, match=r"needs .* bytes and .* are free"):
        dataset.add_episodes(recording(11, 17))
    assert (len(dataset), metadata(root)["capacity"]) == (17, 17)
    dataset.add_episodes(recording(10, 17))
    assert len(dataset) == 27


@pytest.mark.parametrize("amount", [13, f"{13 * FRAME}B"])
def test_a_fixed_capacity_is_made_and_raised_only_within_four_fifths_of_what_is_free(
    root: Path, free: Callable[[int], None], amount: Any
) -> None:
    free(13 * FRAME)
    with pytest.raises(roboreel.DiskSpaceError, match="at most 80%"):
        made(root, [2], buffer_capacity=amount)
    assert not root.exists()
    made(root, [2], buffer_capacity=10).close()
    free(3 * FRAME)
    with pytest.raises(roboreel.DiskSpaceError, match="at most 80%"):
        LeRobotDatasetV2(root, buffer_capacity=amount)
    assert metadata(root)["capacity"] == 10
    free(4 * FRAME)
    LeRobotDatasetV2(root, buffer_capacity=amount).close()  # the lock was let go of, too
    assert metadata(root)["capacity"] == 13


def test_space_is_taken_before_it_is_needed_so_that_no_file_has_a_hole(root: Path) -> None:
    made(root, [2], camera=True, buffer_capacity=500).close()
    LeRobotDatasetV2(root, buffer_capacity=1000).close()
    columns = [*(root / "columns").iterdir(), *(root / "checksums").iterdir(), root / "owners.bin"]
    assert (root / "columns" / f"{CAMERA}.bin").stat().st_size == 1000 * HEIGHT * WIDTH * 3
    probe = root.with_name("probe")
    probe.write_bytes(b"")
    os.truncate(probe, 1 << 20)
    if probe.stat().st_blocks:
        pytest.skip("this file system does not tell holes")
    for path in columns:
        assert path.stat().st_blocks * 512 >= path.stat().st_size, path


def test_no_room_for_an_allocation_is_told_before_anything_changed(root: Path) -> None:
    dataset = made(root, [3])

    def full(kind: str, path: Path) -> None:
        if kind == "allocate" and path.name == "observation.state.bin":
            raise OSError(28, "no space left")

    sizes = {path: path.stat().st_size for path in root.rglob("*.bin")}
    with files.observed(full), pytest.raises(roboreel.DiskSpaceError, match="no space left on the device"):
        dataset.add_episodes(recording(3, 3))
    assert {path: path.stat().st_size for path in root.rglob("*.bin")} == sizes
    dataset.add_episodes(recording(3, 3))
    assert len(dataset) == 6


def test_two_failures_in_a_row_do_not_cost_the_dataset(root: Path) -> None:
    dataset = made(root, [10])
    renamed: list[bool] = []

    def fail_after_the_rename(kind: str, path: Path) -> None:
        if kind == "rename" and path.name == "metadata.json":
            renamed.append(True)
        elif kind == "sync" and renamed:
            raise OSError(errno.EIO, "made to fail")

    with files.observed(fail_after_the_rename), pytest.raises(roboreel.StorageError, match="sync of"):
        dataset.add_episodes(recording(5, 10))

    def full(kind: str, path: Path) -> None:
        if kind == "allocate":
            raise OSError(errno.ENOSPC, "made to fail")

    with files.observed(full), pytest.raises(roboreel.DiskSpaceError):
        dataset.add_episodes(recording(25, 10))
    dataset.close()
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    with files.observed(full), pytest.raises(roboreel.DiskSpaceError):  # nor can what the metadata promise be made
        LeRobotDatasetV2(root).add_episodes(recording(25, 10))
    with LeRobotDatasetV2(root) as again:
        again.add_episodes(recording(5, 10))
        assert numbers_of(again.get_batch(range(15))) == list(range(15))
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_what_the_metadata_promise_and_the_disk_has_not_is_promised_no_more(root: Path) -> None:
    made(root, [10]).close()
    path = root / "metadata.json"
    path.write_text(path.read_text().replace('"capacity": 10', f'"capacity": {1 << 40}'))
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(5, 10))
        assert numbers_of(dataset.get_batch(range(15))) == list(range(15))
    assert metadata(root)["capacity"] == 20


def test_what_was_asked_once_does_not_stand_against_what_another_process_has_given_since(root: Path) -> None:
    dataset = made(root, [3], buffer_capacity=5)
    dataset.close()
    asked = LeRobotDatasetV2(root, buffer_capacity=7)
    asked.close()
    LeRobotDatasetV2(root, buffer_capacity=9).close()
    assert len(asked) == len(dataset) == 3
    dataset.add_episodes(recording(6, 3))
    assert numbers_of(asked.get_batch(range(9))) == list(range(9))


@pytest.mark.parametrize(("given", "frames"), [(12, 12), (f"{12 * FRAME + FRAME - 1}B", 12), (None, None)])
def test_the_room_in_frames_is_told(root: Path, given: Any, frames: int | None) -> None:
    assert LeRobotDatasetV2(root, fps=10, buffer_capacity=given).buffer_capacity is None, "there is none yet"
    with LeRobotDatasetV2(root, fps=10, buffer_capacity=given) as dataset:
        dataset.add_episodes(recording(5))
        assert dataset.buffer_capacity == frames
    reader = LeRobotDatasetV2(root, readonly=True)
    assert reader.buffer_capacity == frames
    LeRobotDatasetV2(root, buffer_capacity=20).close()
    if frames is None:
        reader.reload()  # that it is of a fixed size now stands in the metadata, which is read once
    assert reader.buffer_capacity == 20
