"""Whatever fails, and whoever asks or is killed: the place of a snapshot holds one generation, the old or the new."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format import clone
from roboreel.format.files import observed
from roboreel.store import SnapshotReport, Store
from roboreel.store.ring import place_episode
from tests.recordings import CAMERA, VIDEO_ERROR, made, numbers_of, pictures, recording
from tests.test_durability import Failing, contents
from tests.test_snapshot import MODES, check_alone, everything, ring


@pytest.fixture
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


# When it goes wrong


@pytest.mark.usefixtures("_no_waiting_for_the_disk")
@pytest.mark.parametrize(
    ("mode", "place_holds"),
    [
        ("memmap", "nothing"),
        ("png", "nothing"),
        ("memmap", "the one before"),
        ("video", "the one before"),
        ("memmap", "the one before, renamed"),
    ],
)
def test_whichever_effect_fails_the_old_or_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, place_holds: str
) -> None:
    if place_holds.endswith("renamed"):
        monkeypatch.setattr(clone, "_swap", lambda: None)
    dataset = ring(tmp_path / "dataset", mode)
    if place_holds != "nothing":
        dataset.snapshot(tmp_path / "old")
        old = contents(LeRobotDatasetV2(tmp_path / "old", readonly=True))
        dataset.add_episodes(recording(5, 14, camera=True, task="pick"))
    new, generation = contents(dataset), Store.open(tmp_path / "dataset").state.generation
    counting, failed, moments = Failing(), 0, [-1]
    for at in moments:
        folder = tmp_path / "places" / f"fails at {at}"
        place = folder / "place"
        if place_holds != "nothing":
            folder.mkdir(parents=True)
            shutil.copytree(tmp_path / "old", place, copy_function=os.link)
        error = take(dataset, place, counting if at < 0 else Failing(at))
        if at < 0:
            assert error is None
            moments += counting.moments
            continue
        failed += error is not None
        if error is None or place.exists():
            found = contents(LeRobotDatasetV2(place, readonly=True))
            assert found in ([new] if error is None or place_holds == "nothing" else [old, new])
        if error is not None:
            assert folder.exists() == (place_holds != "nothing" or place.exists())
        if error is not None or len(list(folder.iterdir())) > 1:
            dataset.snapshot(place)
        assert Store.open(place).state.generation == generation
        check_alone(place)
        shutil.rmtree(tmp_path / "places")
    assert contents(dataset) == new
    assert failed >= len(moments) - 5  # all but the note in the lock (two) and the removals of what was replaced


@pytest.mark.usefixtures("_no_waiting_for_the_disk")
@pytest.mark.parametrize("swap", ["exchanged", "renamed"])
def test_where_nothing_can_be_undone_the_next_one_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: str
) -> None:
    if swap == "renamed":
        monkeypatch.setattr(clone, "_swap", lambda: None)
    dataset = ring(tmp_path / "dataset", "video")
    dataset.snapshot(tmp_path / "old")
    old, old_generation = contents(LeRobotDatasetV2(tmp_path / "old")), Store.open(tmp_path / "old").state.generation
    dataset.add_episodes(recording(5, 14, camera=True, task="pick"))
    new = contents(dataset)
    for at in range(1000):
        place = tmp_path / f"fails from {at}" / "place"
        place.parent.mkdir()
        shutil.copytree(tmp_path / "old", place, copy_function=os.link)
        error = take(dataset, place, Failing(at, for_good=True))
        if place.exists():
            assert contents(LeRobotDatasetV2(place, readonly=True)) in (old, new)
        else:  # between two renames: the old one is aside, and put back by the next
            assert swap == "renamed"
        dataset.snapshot(place)
        assert Store.open(place).state.generation == old_generation + 1
        check_alone(place)
        shutil.rmtree(place.parent)
        if error is None:
            break


def take(dataset: LeRobotDatasetV2, place: Path, failing: Failing) -> Exception | None:
    try:
        with observed(failing):
            dataset.snapshot(place)
    except roboreel.StorageError as error:
        return error
    return None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 192 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("this machine does not let us mount a small file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    place = small_disk / "place"
    dataset = made(tmp_path / "dataset", [3], camera=True, image_mode="png")
    dataset.snapshot(place)
    taken = everything(place)
    noise = np.random.default_rng(0).integers(0, 256, (160, 16, 24, 3), np.uint8)  # which does not compress
    dataset.add_episodes({**recording(160, 3), CAMERA: noise})  # the images do not fit, the columns do
    with pytest.raises(roboreel.DiskSpaceError, match="no space left on the device"):
        dataset.snapshot(place)
    assert everything(place) == taken
    check_alone(place)
    with pytest.raises(roboreel.DiskSpaceError, match=r"this needs .* bytes"):
        made(tmp_path / "large", [300], camera=True).snapshot(small_disk / "other")
    assert [path.name for path in small_disk.iterdir()] == ["place"]


def test_of_a_file_system_that_cannot_be_written(tmp_path: Path, small_disk: Path) -> None:
    made(small_disk / "dataset", [3, 2], camera=True, image_mode="png").close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    dataset = LeRobotDatasetV2(small_disk / "dataset")  # not even said to be only read
    dataset.snapshot(tmp_path / "place")
    assert contents(LeRobotDatasetV2(tmp_path / "place")) == contents(dataset)
    check_alone(tmp_path / "place")
    dataset.close()


# Other processes

LENGTHS = [1 + k * 5 % 8 for k in range(100_000)]
CAPACITY = 40
CHILD = f"""
import sys
from roboreel import LeRobotDatasetV2
from tests.recordings import recording
from tests.test_snapshot_faults import LENGTHS
root, mode, place = sys.argv[1:4]
dataset = LeRobotDatasetV2(root, 10, {CAPACITY}, True, mode)
done = dataset._opening.store().state.next_episode_index if len(dataset) else 0
number = sum(LENGTHS[:done])
while True:
    dataset.add_episodes(recording(LENGTHS[done], number, camera=True), no_flush=done % 3 > 0)
    number += LENGTHS[done]
    done += 1
    if place and done % 4 == 0:
        dataset.snapshot(place)
    print(done, flush=True)
"""


@contextlib.contextmanager
def started(root: Path, mode: str, place: Path | str = "") -> Iterator[subprocess.Popen[str]]:
    repository = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(root), mode, str(place)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{repository / 'src'}{os.pathsep}{repository}"},
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def told(child: subprocess.Popen[str], at_least: int) -> None:
    assert child.stdout is not None
    while int(child.stdout.readline() or at_least) < at_least:
        pass


def expected(episodes: int) -> list[tuple[int, int]]:
    """(index, episode) of each slot of the ring after so many of the child's episodes."""
    slots: dict[int, tuple[int, int]] = {}
    number = 0
    for episode, (length, taken) in enumerate(zip(LENGTHS, places(episodes), strict=False)):
        slots |= {slot: (number + k, episode) for k, slot in enumerate(taken)}
        number += length
    return [slots[slot] for slot in sorted(slots)]


def places(episodes: int) -> Iterator[range]:
    """The slots that each of the child's episodes takes."""
    next_slot = 0
    for length in LENGTHS[:episodes]:
        place = place_episode(length, next_slot, CAPACITY, fixed=True, ring=True)
        yield range(place.start, place.stop)
        next_slot = place.stop


def check_one_generation(place: Path, *, killed: bool = False) -> int:
    """The place holds exactly what the child had committed at one time; returns how many episodes that were.

    Of a child that was `killed`, what it was replacing is lost, all of it or nothing.
    """
    episodes = Store.open(place).state.next_episode_index
    copy = LeRobotDatasetV2(place, readonly=True)
    seen, wanted = contents(copy), expected(episodes)
    lost = list(places(episodes + 1))[-1] if killed and seen != wanted else range(0)
    assert len(seen) == len(wanted)
    assert [slot for slot in range(len(seen)) if seen[slot] != wanted[slot]] == [*lost]
    batch = copy.get_batch(range(len(copy)))
    images = (batch[CAMERA].permute(0, 2, 3, 1) * 255).round().numpy().astype(int)
    assert np.abs(images - pictures(np.array(numbers_of(batch)))).max() <= VIDEO_ERROR
    LeRobotDatasetV2.check_storage_dir_integrity(place)
    return episodes


@pytest.mark.parametrize("mode", ["memmap", "png"])
def test_the_process_that_writes_is_asked(tmp_path: Path, mode: str) -> None:
    root, place = tmp_path / "dataset", tmp_path / "place"
    seen = []
    with started(root, mode) as child:
        told(child, 12)
        reader = LeRobotDatasetV2(root, readonly=True)
        told_on = threading.Thread(target=list, args=[child.stdout])  # a full pipe would stop it
        told_on.start()
        for _ in range(5):
            report = reader.snapshot(place)
            assert isinstance(report, SnapshotReport)
            assert (report.bytes_linked > 0) == (mode == "png")
            seen.append(check_one_generation(place))
            check_alone(place)
            numbers_of(reader.get_batch(range(len(reader))))  # goes on as if nothing were
        assert seen == sorted(set(seen))
        (tmp_path / "file").write_text("")
        with pytest.raises(roboreel.InvalidArgumentError, match=r"is a file; .*said by the process that is writing"):
            LeRobotDatasetV2(root).snapshot(tmp_path / "file")
        child.kill()
        told_on.join()
    reader.snapshot(place)  # nobody writes any more
    assert check_one_generation(place, killed=True) >= seen[-1]
    with LeRobotDatasetV2(root) as dataset:
        dataset.add_episodes(recording(1, sum(LENGTHS[: Store.open(root).state.next_episode_index]), camera=True))
        assert not (root / "requests").exists()


def test_a_writer_that_neither_adds_nor_flushes_is_not_waited_for_longer(tmp_path: Path) -> None:
    dataset = ring(tmp_path / "dataset")
    asking = LeRobotDatasetV2(tmp_path / "dataset", readonly=True)
    with pytest.raises(roboreel.DatasetBusyError, match="only answers when it adds an episode or flushes"):
        asking.snapshot(tmp_path / "place", timeout_s=0.1)
    assert not (tmp_path / "dataset" / "requests").exists()  # it was taken back
    with pytest.raises(roboreel.InvalidArgumentError, match="timeout_s=nan"):
        asking.snapshot(tmp_path / "place", timeout_s=float("nan"))
    for ends in (dataset.flush, dataset.close):  # closing answers too
        reports: list[SnapshotReport] = []
        thread = threading.Thread(
            target=lambda found: found.append(asking.snapshot(tmp_path / "place")), args=[reports]
        )
        thread.start()
        while not list((tmp_path / "dataset").glob("requests/*.request")):
            time.sleep(0.001)
        while thread.is_alive():  # a question is there a moment before it is locked, and swept then, and put again
            ends()
            thread.join(0.01)
        assert len(reports) == 1
    assert contents(LeRobotDatasetV2(tmp_path / "place")) == contents(asking)


def test_questions_of_the_dead_are_swept(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [3])
    folder = tmp_path / "dataset" / "requests"
    folder.mkdir()
    (folder / "1-a.request").write_text(f'{{"dest": "{tmp_path / "place"}"}}')
    (folder / "1-a.reply").write_text("{}")
    (folder / "2-b.reply").write_text("{}")
    (folder / "3-c.tmp").write_text("{")
    dataset.add_episodes(recording(2, 3))
    assert not folder.exists()
    assert not (tmp_path / "place").exists()


def test_a_forked_child_asks_its_parent(tmp_path: Path) -> None:
    dataset, place = ring(tmp_path / "dataset"), tmp_path / "place"
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if dataset.snapshot(place).bytes_written else 1)
        finally:
            os._exit(2)
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        dataset.flush()
        time.sleep(0.005)
    assert contents(LeRobotDatasetV2(place)) == contents(dataset)


@pytest.mark.parametrize("mode", ["memmap", "png", "video"])
def test_killed_anywhere_the_old_or_the_new_snapshot_is_there(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(MODES.index(mode))
    root, place, episodes = tmp_path / "dataset", tmp_path / "place", 0
    for round_ in range(4):
        with started(root, mode, place) as child:
            told(child, episodes + 4 + int(rng.integers(0, 3)))
            time.sleep(rng.random() * (0.5 if mode == "video" else 0.05))
            child.send_signal(signal.SIGKILL)
        episodes = Store.open(root).state.next_episode_index
        found = check_one_generation(place)
        assert episodes - 8 <= found <= episodes
        if round_ % 2:
            with LeRobotDatasetV2(root) as dataset:
                dataset.snapshot(place)
            check_alone(place)
    assert len(list(tmp_path.iterdir())) == 2
