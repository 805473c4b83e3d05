"""Links, pipes and directories in the place of files: nothing outside is touched, and nothing waits for ever."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2, RoboreelError, StorageDirCorruptError
from roboreel.format import paths
from roboreel.format.records import episode_dtype, seal_row
from roboreel.store import Store, repair, verify
from roboreel.store.episodes import lost_row
from roboreel.store.records import StateFile
from tests.recordings import CAMERA, recording

SHARED = (
    "metadata.json",
    "state.bin",
    "episodes.bin",
    "strings.jsonl",
    "strings.bin",
    "owners.bin",
    "writer.lock",
    "writer.json",
)
FILES = (*SHARED, "redo.bin", "metadata.json.tmp", "columns/action.bin", "checksums/action.bin")
DIRECTORIES = ("columns", "checksums", "images", "requests", f"images/{CAMERA}")
VIDEO_DIRECTORIES = ("videos", f"videos/{CAMERA}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    for mode in ("png", "video"):
        with LeRobotDatasetV2(folder / mode, fps=10, image_mode=mode) as dataset:
            for number, length in enumerate((3, 2)):
                dataset.add_episodes(recording(length, 3 * number, camera=True, task=f"task {number}"))
    return {mode: folder / mode for mode in ("png", "video")}


def read(root: Path) -> None:
    with LeRobotDatasetV2(root, readonly=True) as dataset:
        for index in range(len(dataset)):
            dataset[index]


def add(root: Path) -> None:
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(30, 5, camera=True, task="new"))


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


def put_link(path: Path, outside: Path) -> None:
    """Move what is there out of the dataset, and have a link lead to it; strangers' things lie beside it."""
    target = outside / path.name
    if path.exists():
        shutil.move(path, target)
    elif path.suffix:
        target.write_bytes(b"a thesis")
    else:
        target.mkdir()
    if target.is_dir():
        (target / "000000777").mkdir()
        (target / "000000777" / "thesis.tex").write_text("chapter 1")
        (target / "thesis.reply").write_text("chapter 2")
    path.symlink_to(target)


def put_pipe(path: Path, _: Path) -> None:
    _clear(path)
    os.mkfifo(path)


def put_directory(path: Path, _: Path) -> None:
    _clear(path)
    path.mkdir()


def put_file(path: Path, _: Path) -> None:
    _clear(path)
    path.write_bytes(b"x")


def _clear(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


CASES: list[tuple[str, str, Callable[[Path, Path], None]]] = [
    *(("png", name, put) for name in FILES for put in (put_link, put_pipe, put_directory)),
    *(("png", name, put) for name in DIRECTORIES for put in (put_link, put_file)),
    *(("video", name, put) for name in VIDEO_DIRECTORIES for put in (put_link, put_file)),
]


@pytest.mark.parametrize(("mode", "name", "put"), CASES, ids=[f"{name}-{put.__name__}" for _, name, put in CASES])
def test_what_is_no_file_of_ours_is_refused_by_who_writes(
    whole: dict[str, Path], tmp_path: Path, mode: str, name: str, put: Callable[[Path, Path], None]
) -> None:
    root, outside = shutil.copytree(whole[mode], tmp_path / "dataset"), tmp_path / "outside"
    outside.mkdir()
    put(root / name, outside)
    before = contents(outside)
    with contextlib.suppress(RoboreelError):
        read(root)
    for problem in verify(root).problems:
        assert "\n" not in str(problem)
    for attempt in (add, repair):
        with pytest.raises(StorageDirCorruptError, match=r"is not a (regular file|directory)") as caught:
            attempt(root)
        assert str(root) in str(caught.value)
    assert contents(outside) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "outside"]


@pytest.mark.parametrize("name", ["images/{}/000000001/000000.png", "images/{}/000000001"])
def test_a_pipe_for_an_image_is_read_by_nobody(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = shutil.copytree(whole["png"], tmp_path / "dataset")
    path = root / name.format(CAMERA)
    put_pipe(path, tmp_path)
    with pytest.raises(StorageDirCorruptError, match="not a regular file"):
        read(root)
    assert str(verify(root).problems[0]).split(": ")[1] == "episode 1"
    repair(root)
    assert verify(root).problems == []
    assert LeRobotDatasetV2(root, readonly=True).get_unique_episode_indices().tolist() == [0]


@pytest.mark.parametrize("name", ["videos/{}/000001.mp4", "videos/{}/000001.frames"])
def test_a_pipe_for_a_video_is_read_by_nobody(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = shutil.copytree(whole["video"], tmp_path / "dataset")
    put_pipe(root / name.format(CAMERA), tmp_path)
    with pytest.raises(RoboreelError, match="not a regular file"):
        read(root)
    assert verify(root).problems
    repair(root)
    assert verify(root).problems == []


@pytest.mark.parametrize("name", ["strings.bin", "strings.jsonl", "owners.bin"])
def test_a_pipe_is_not_copied_by_who_only_reads(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = shutil.copytree(whole["png"], tmp_path / "dataset")
    reader = LeRobotDatasetV2(root, readonly=True)
    reader[0]
    put_pipe(root / name, tmp_path)
    with pytest.raises(StorageDirCorruptError, match="not a regular file"):
        reader.snapshot(tmp_path / "copy", timeout_s=1)


@pytest.mark.parametrize("name", ["episodes.bin", "strings.jsonl"])
def test_a_hole_larger_than_the_memory_is_told_of(whole: dict[str, Path], tmp_path: Path, name: str) -> None:
    root = shutil.copytree(whole["png"], tmp_path / "dataset")
    size = 1 << 43
    try:
        os.truncate(root / name, size)
    except OSError as error:
        pytest.skip(f"no file of 8 TiB can be made here: {error}")
    with contextlib.closing(StateFile(root)) as record, contextlib.closing(Store.open(whole["png"])) as store:
        rows = size // store.table.rows.dtype.itemsize
        is_rows = name == "episodes.bin"
        record.put_live(replace(store.state, rows=rows) if is_rows else replace(store.state, string_bytes=size))
    for attempt in (read, add, repair):
        with pytest.raises(StorageDirCorruptError, match=r"does not match its checksum|has zeros|than there is memory"):
            attempt(root)
    assert len(verify(root).problems) == 1


def test_leftovers_that_are_links_are_not_written_through(whole: dict[str, Path], tmp_path: Path) -> None:
    victim = tmp_path / "thesis.tex"
    victim.write_text("chapter 1")
    for mode, name in (
        ("video", f"videos/{CAMERA}/new.mp4"),
        ("video", f"videos/{CAMERA}/000002.frames"),
        ("png", f"images/{CAMERA}/000000002.tmp"),
        ("png", f"images/{CAMERA}/000000002"),
    ):
        root = shutil.copytree(whole[mode], tmp_path / name.replace("/", "-"))
        (root / name).symlink_to(victim)
        add(root)
        assert verify(root).problems == []
    for name in ("state.bin.bak", "redo.bin.tmp"):
        root = shutil.copytree(whole["png"], tmp_path / name)
        (root / name).symlink_to(victim)
        raw = bytearray((root / paths.STATE).read_bytes())
        raw[4096 + 20] ^= 1
        (root / paths.STATE).write_bytes(raw)
        with contextlib.suppress(RoboreelError):
            repair(root)
    assert victim.read_text() == "chapter 1"


@pytest.mark.parametrize("mode", ["png", "video"])
def test_names_that_only_look_like_ours_are_left_alone(whole: dict[str, Path], tmp_path: Path, mode: str) -> None:
    root = shutil.copytree(whole[mode], tmp_path / "dataset")
    folder = root / ("images" if mode == "png" else "videos") / CAMERA
    names = ["00000000\u00b2", "0" * 8 + "\u0663", "9" * 25, "7.mp4", "000002.txt", "thesis.000003"]
    for name in names:
        (folder / name).mkdir()
        (folder / name / "chapter").write_text("1")
    add(root)
    assert verify(root).problems == []
    assert set(verify(root).notes) == {
        f"{folder.relative_to(root)}/{name}: not a part of the dataset" for name in names
    }
    repair(root)
    assert sorted(path.name for path in folder.iterdir() if (path / "chapter").exists()) == sorted(names)


@pytest.mark.parametrize("busy", [False, True])
def test_more_lost_slots_than_memory_could_count(tmp_path: Path, busy: bool) -> None:
    root, capacity = tmp_path / "dataset", 1 << 34
    with LeRobotDatasetV2(root, fps=10, buffer_capacity=20, use_as_fifo_buffer=True) as dataset:
        dataset.add_episodes(recording(5))
        state = dataset._need_store().state
    try:
        for path in (*(root / "columns").iterdir(), *(root / "checksums").iterdir(), root / paths.OWNERS):
            os.truncate(path, capacity * 8)
    except OSError as error:
        pytest.skip(f"no file of 128 GiB can be made here: {error}")
    document = json.loads((root / paths.METADATA).read_text())
    (root / paths.METADATA).write_text(json.dumps({**document, "capacity": capacity}))
    row = lost_row(episode_dtype(0), 5, capacity)
    with (root / paths.EPISODES).open("ab") as rows:
        rows.write(seal_row(row))
    state = replace(state, capacity=capacity, frames=capacity, rows=2, generation=9, seq=9)
    with contextlib.closing(StateFile(root)) as record:
        record.put_durable(state)
        record.put_live(state.with_busy(5, capacity) if busy else state)
    with LeRobotDatasetV2(root, readonly=True) as reader:
        assert reader.get_batch([2, 10**6, capacity - 1])["index"].tolist() == [2, 4, 4]
        assert len(reader.get_episode(0)["index"]) == 5


def test_requests_of_strangers_are_not_swept(whole: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(whole["png"], tmp_path / "dataset")
    (root / paths.REQUESTS).mkdir()
    (root / paths.REQUESTS / "thesis.tex").write_text("chapter 1")
    os.mkfifo(root / paths.REQUESTS / "0.request")
    add(root)
    assert (root / paths.REQUESTS / "thesis.tex").exists()


def test_a_storage_dir_that_is_a_link_is_as_good_as_any(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "dataset").symlink_to(tmp_path / "disk")
    with LeRobotDatasetV2(tmp_path / "dataset", fps=10) as dataset:
        dataset.add_episodes({"action": np.zeros(2, np.float32)})
    with LeRobotDatasetV2(tmp_path / "dataset") as dataset:
        dataset.add_episodes({"action": np.zeros(2, np.float32)})
        assert len(dataset) == 4
    roboreel.LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "dataset")
