"""A snapshot is one generation of a dataset, whole, whatever the dataset, its readers or a kill do meanwhile."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.cli import main
from roboreel.format import clone
from roboreel.format.files import observed
from roboreel.store import Store, Writer
from tests.recordings import CAMERA, made, recording
from tests.test_durability import contents

MODES = ["memmap", "png", "video"]
RING = {"buffer_capacity": 11, "use_as_fifo_buffer": True}


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on another file system than `tmp_path`."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is not there, or no file system of its own")
    folder = memory / f"roboreel-{os.getpid()}-{time.monotonic_ns()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def ring(root: Path, mode: str = "memmap") -> LeRobotDatasetV2:
    """A ring of 11 slots that has gone round once: frames 10–13 over 0–3, 4–9 left of what was there."""
    dataset: LeRobotDatasetV2 = made(root, [3, 4, 3], camera=True, task="push", image_mode=mode, **RING)
    dataset.add_episodes(recording(4, 10, camera=True, task="pull"))
    return dataset


def everything(root: Path) -> dict[str, bytes]:
    """The content of every file of a dataset, but for the lock."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith("writer.")
    }


def check_alone(place: Path) -> None:
    """There is nothing beside or in the place that does not belong there."""
    assert [path.name for path in place.parent.iterdir() if path.name.startswith(".")] == []
    assert {path.name for path in place.iterdir()} <= {
        *("metadata.json", "state.bin", "episodes.bin", "strings.jsonl", "strings.bin", "owners.bin"),
        *("columns", "checksums", "images", "videos"),
    }


# One process


@pytest.mark.parametrize("mode", MODES)
def test_a_snapshot_is_a_dataset_of_its_own(tmp_path: Path, mode: str) -> None:
    dataset = ring(tmp_path / "dataset", mode)
    before = contents(dataset)
    report = dataset.snapshot(tmp_path / "place")
    check_alone(tmp_path / "place")
    assert (report.bytes_linked > 0) == (mode != "memmap")
    assert report.bytes_written + report.bytes_cloned > 0
    LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "place")
    with LeRobotDatasetV2(tmp_path / "place") as copy:
        assert contents(copy) == before
        assert copy[0]["task"] == "pull"
        copy.add_episodes(recording(5, 14, camera=True, task="pick"))  # goes round where the ring was
        assert len(copy) == len(before)
    with dataset:
        assert contents(dataset) == before
        dataset.add_episodes(recording(5, 14, camera=True, task="pick"))
        assert contents(dataset) == contents(copy)


def test_what_it_says_of_itself(tmp_path: Path) -> None:
    dataset = ring(tmp_path / "dataset")
    report = dataset.snapshot(tmp_path / "place")
    stores = [Store.open(tmp_path / name) for name in ("dataset", "place")]
    source, copy = (store.manifest for store in stores)
    assert copy.uuid != source.uuid
    assert copy.provenance["snapshot"] == {"uuid": source.uuid, "generation": report.generation, "origin": source.uuid}
    assert (copy.capacity, copy.fixed_capacity, copy.ring) == (11, True, True)
    assert stores[1].state.generation == stores[0].state.generation == report.generation
    assert stores[1].durable_states()[0].generation == report.generation
    again = LeRobotDatasetV2(tmp_path / "place").snapshot(tmp_path / "third")
    third = Store.open(tmp_path / "third").manifest.provenance["snapshot"]
    assert third == {"uuid": copy.uuid, "generation": again.generation, "origin": source.uuid}


def test_room_that_holds_nothing_is_not_copied(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [3], camera=True, buffer_capacity=10_000)
    report = dataset.snapshot(tmp_path / "place")
    assert report.bytes_written + report.bytes_cloned < 40_000
    column = tmp_path / "place" / "columns" / "observation.image.bin"
    assert column.stat().st_size == 10_000 * 16 * 24 * 3  # as the record says, so that it can be mapped
    with LeRobotDatasetV2(tmp_path / "place") as copy:
        copy.add_episodes(recording(5, 3, camera=True))
        assert len(contents(copy)) == 8
    growing = made(tmp_path / "growing", [3, 6])
    growing.snapshot(tmp_path / "grown")
    assert Store.open(tmp_path / "grown").state.capacity == 9
    with LeRobotDatasetV2(tmp_path / "grown") as copy:
        copy.add_episodes(recording(5, 9))
        assert len(contents(copy)) == 14


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("swap", ["exchanged", "renamed"])
def test_the_next_one_takes_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, swap: str
) -> None:
    if swap == "renamed":  # a system that cannot exchange two names
        monkeypatch.setattr(clone, "_swap", lambda: None)
    dataset, place = ring(tmp_path / "dataset", mode), tmp_path / "place"
    dataset.snapshot(place)
    reader = LeRobotDatasetV2(place, readonly=True)
    first = contents(reader)
    dataset.add_episodes(recording(5, 14, camera=True, task="pick"))
    dataset.snapshot(place)
    check_alone(place)
    assert contents(LeRobotDatasetV2(place, readonly=True)) == contents(dataset) != first
    if mode == "memmap":
        assert contents(reader) == first  # what is mapped stays
    else:  # image files are found by path, where there are others now
        for index in (0, 4, 9):
            with pytest.raises(
                roboreel.DatasetReplacedError, match=r"was replaced or removed .* type dataset.reload\(\)"
            ):
                reader[index]
    reader.reload()
    assert contents(reader) == contents(dataset)


@pytest.mark.parametrize("mode", ["png", "video"])
def test_on_another_disk_only_new_images_are_copied_again(tmp_path: Path, other_disk: Path, mode: str) -> None:
    dataset = made(tmp_path / "dataset", [3, 4], camera=True, image_mode=mode)
    first = dataset.snapshot(other_disk / "place")
    assert first.bytes_linked == 0
    old = {path.stat().st_ino for path in (other_disk / "place").rglob("*.*") if path.suffix in (".png", ".mp4")}
    dataset.add_episodes(recording(2, 7, camera=True))
    second = dataset.snapshot(other_disk / "place")
    assert second.bytes_linked > 0
    assert old < {path.stat().st_ino for path in (other_disk / "place").rglob("*.*")}
    check_alone(other_disk / "place")
    assert contents(LeRobotDatasetV2(other_disk / "place", readonly=True)) == contents(dataset)


@pytest.mark.parametrize("mode", MODES)
def test_neither_changes_the_others_files(tmp_path: Path, mode: str) -> None:
    dataset, place = ring(tmp_path / "dataset", mode), tmp_path / "place"
    dataset.snapshot(place)
    taken = everything(place)
    for number in range(14, 44, 5):  # every episode of the snapshot is evicted from the dataset
        dataset.add_episodes(recording(5, number, camera=True, task="pick"))
    with dataset.edit("action") as action:
        action += 1
    assert everything(place) == taken
    LeRobotDatasetV2.check_storage_dir_integrity(place)
    dataset.close()
    source = everything(tmp_path / "dataset")
    with LeRobotDatasetV2(place) as copy:
        for number in range(14, 44, 5):
            copy.add_episodes(recording(5, number, camera=True, task="pick"))
        with copy.edit("action") as action:
            action -= 1
    assert everything(tmp_path / "dataset") == source
    assert contents(dataset) == contents(copy)


def test_a_leftover_of_a_video_is_not_written_into_where_a_snapshot_shares_it(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [3], camera=True, image_mode="video")
    folder = tmp_path / "dataset" / "videos" / CAMERA
    (folder / "000001.frames").write_bytes(b"of a row that a power cut took back")
    os.link(folder / "000001.frames", tmp_path / "shared")
    dataset.add_episodes(recording(2, 3, camera=True))
    assert (tmp_path / "shared").read_bytes() == b"of a row that a power cut took back"


def test_what_must_not_be_replaced_is_left_alone(tmp_path: Path) -> None:
    dataset, place = ring(tmp_path / "dataset"), tmp_path / "place"

    def refused(dest: Path, match: str, error: type[Exception] = roboreel.InvalidArgumentError) -> None:
        before = everything(tmp_path)
        with pytest.raises(error, match=match):
            dataset.snapshot(dest)
        assert everything(tmp_path) == before

    refused(tmp_path / "dataset", "which lies in it; give a place outside")
    refused(tmp_path / "dataset" / "images" / "x", "which lies in it; give a place outside")
    refused(tmp_path, "the dataset would be replaced")
    (tmp_path / "link").symlink_to("dataset")
    refused(tmp_path / "link", "which lies in it")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file; give a directory")
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "beach.jpg").write_text("")
    refused(tmp_path / "holiday", r"holds other things \(beach.jpg\); give a new place")
    made(tmp_path / "precious", [3]).close()
    refused(tmp_path / "precious", "is a dataset, not a snapshot; give a new place, or .*, or remove it first")
    made(tmp_path / "other", [3]).snapshot(place)
    refused(place, "is a snapshot of another dataset")
    shutil.rmtree(place)
    dataset.snapshot(place)
    (place / "notes.txt").write_text("")
    refused(place, "holds other things")
    (place / "notes.txt").unlink()
    for name in ("columns/notes.txt", "images/observation.image/000000003/notes.txt", "images/mine/a.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
        refused(place, r"holds other things \((columns/notes.txt|images)")
        shutil.rmtree(place / "images", ignore_errors=True)
        (place / "columns" / "notes.txt").unlink(missing_ok=True)
    with LeRobotDatasetV2(place) as copy:
        copy.flush()
        copy._opening.writer()  # a writer that has not written yet
        refused(place, "is being written", roboreel.DatasetLockedError)
    dataset.snapshot(place)
    with LeRobotDatasetV2(place) as copy:
        copy.add_episodes(recording(1, 14, camera=True, task="push"))
    refused(place, "was written to since it was taken")
    (tmp_path / ".new.snapshot").mkdir()
    (tmp_path / ".new.snapshot" / "mine").write_text("")
    refused(tmp_path / "new", r"\.new\.snapshot, where a snapshot would be built, holds other things")


def test_two_at_once_in_one_place(tmp_path: Path) -> None:
    dataset, other, place = ring(tmp_path / "dataset"), tmp_path / "other", tmp_path / "place"
    dataset.snapshot(other)
    errors: list[str] = []

    def meanwhile(kind: str, path: Path) -> None:
        if path.parent.name == ".place.snapshot" and not errors:
            with pytest.raises(roboreel.DatasetLockedError, match="another process is making a snapshot") as caught:
                LeRobotDatasetV2(other, readonly=True).snapshot(place)
            errors.append(str(caught.value))

    with observed(meanwhile):
        dataset.snapshot(place)
    assert len(errors) == 1
    check_alone(place)


def test_a_folder_with_no_episode_yet(tmp_path: Path) -> None:
    with pytest.raises(roboreel.FrameIndexError, match="holds no episode yet"):
        LeRobotDatasetV2(tmp_path / "new", fps=10).snapshot(tmp_path / "place")


# Without a lock, and after a writer that died


def test_a_reader_takes_one_without_touching_the_dataset(tmp_path: Path) -> None:
    dataset = ring(tmp_path / "dataset", "png")
    dataset.close()
    shutil.rmtree(tmp_path / "dataset" / "requests", ignore_errors=True)
    before = sorted(path.name for path in (tmp_path / "dataset").iterdir())
    reader = LeRobotDatasetV2(tmp_path / "dataset", readonly=True)
    reader.snapshot(tmp_path / "place")
    assert contents(LeRobotDatasetV2(tmp_path / "place")) == contents(reader)
    assert sorted(path.name for path in (tmp_path / "dataset").iterdir()) == before
    check_alone(tmp_path / "place")


def test_a_reader_begins_again_where_a_writer_came_in_between(tmp_path: Path) -> None:
    ring(tmp_path / "dataset", "png").close()
    reader, came = LeRobotDatasetV2(tmp_path / "dataset", readonly=True), list[Path]()

    def meanwhile(kind: str, path: Path) -> None:
        if kind == "link" and not came:
            came.append(path)
            with LeRobotDatasetV2(tmp_path / "dataset") as writer:
                for number in range(14, 24, 5):
                    writer.add_episodes(recording(5, number, camera=True, task="pick"))

    with observed(meanwhile):
        reader.snapshot(tmp_path / "place")
    assert came
    assert contents(LeRobotDatasetV2(tmp_path / "place")) == contents(reader)
    check_alone(tmp_path / "place")


def test_what_a_dead_writer_left_half_done_is_mended_in_the_copy(tmp_path: Path) -> None:
    dataset = ring(tmp_path / "dataset")
    before = dict.fromkeys(contents(dataset))
    dead: list[Path] = []

    def dies(kind: str, path: Path) -> None:
        if dead or path.name == "action.bin":
            dead.append(path)
            raise OSError("the writer ends here")

    with observed(dies), pytest.raises(roboreel.StorageError):
        dataset.add_episodes(recording(5, 14, camera=True, task="pick"))
    reader = LeRobotDatasetV2(tmp_path / "dataset", readonly=True)
    assert Store.open(tmp_path / "dataset").state.busy_stop > 0
    left = everything(tmp_path / "dataset")
    reader.snapshot(tmp_path / "place")
    assert everything(tmp_path / "dataset") == left
    check_alone(tmp_path / "place")
    state = Store.open(tmp_path / "place").state
    assert (state.busy_start, state.busy_stop, state.redo) == (0, 0, 0)
    found = contents(LeRobotDatasetV2(tmp_path / "place", readonly=True))
    assert set(found) <= set(before)
    LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "place")
    reader.snapshot(tmp_path / "place")  # the copy that was mended counts as unchanged
    with LeRobotDatasetV2(tmp_path / "dataset") as writer:
        writer.snapshot(tmp_path / "by the next writer")
    assert contents(LeRobotDatasetV2(tmp_path / "by the next writer", readonly=True)) == found


def test_an_edit_that_a_dead_writer_committed_is_in_the_copy(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [6])

    def dies(kind: str, path: Path) -> None:
        if path.name == "action.bin" and kind == "write":
            raise OSError("the writer ends here")

    with observed(dies), pytest.raises(roboreel.StorageError), dataset.edit("action") as action:
        action[:] = 7
    writer: Any = dataset._opening._writer
    writer.let_go()
    assert Store.open(tmp_path / "dataset").state.redo
    LeRobotDatasetV2(tmp_path / "dataset", readonly=True).snapshot(tmp_path / "place")
    check_alone(tmp_path / "place")
    assert Store.open(tmp_path / "place").state.redo == 0
    copy = LeRobotDatasetV2(tmp_path / "place", readonly=True)
    assert copy.get_data_by_key("action").tolist() == [7] * 6


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring(tmp_path / "dataset", "png").close()
    main(["snapshot", str(tmp_path / "dataset"), str(tmp_path / "place")])
    assert "place: generation 4 of " in (shown := capsys.readouterr().out)
    assert "0.0 MB hard-linked" in shown
    assert contents(LeRobotDatasetV2(tmp_path / "place")) == contents(LeRobotDatasetV2(tmp_path / "dataset"))
    with pytest.raises(SystemExit):
        main(["snapshot", str(tmp_path / "dataset"), str(tmp_path / "dataset")])
    assert "give a place outside" in capsys.readouterr().err


def test_a_writer_of_the_copy_that_comes_during_the_exchange_is_kept_out(tmp_path: Path) -> None:
    dataset, place, refused = ring(tmp_path / "dataset"), tmp_path / "place", []

    def meanwhile(kind: str, path: Path) -> None:
        if kind == "exchange":
            with pytest.raises(roboreel.DatasetLockedError):
                Writer.open(place)
            refused.append(path)

    dataset.snapshot(place)
    dataset.add_episodes(recording(1, 14, camera=True, task="pick"))
    with observed(meanwhile):
        dataset.snapshot(place)
    assert refused
