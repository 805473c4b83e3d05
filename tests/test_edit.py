"""Values changed in place: all of an edit or nothing, checksums and other processes included."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format.files import observed
from roboreel.schema import KeySpec
from roboreel.store import verify
from roboreel.store.editing import make_draft
from roboreel.store.slots import frame_checksums
from roboreel.store.store import Store
from tests.recordings import CAMERA, made, numbers_of, pictures, recording

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


class StoppedError(BaseException):
    """A kill, as far as one process can play it: what handles errors does not handle this."""


def stop_after(effects: int) -> Any:
    left = [effects]

    def stop(_kind: str, _path: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StoppedError

    return stop


def edited(dataset: LeRobotDatasetV2, key: str, slots: Any, values: Any) -> None:
    with dataset.edit(key) as array:
        array[slots] = values


def check_checksums(root: Path) -> None:
    """Every checksum of a key kept as numbers is that of the bytes in its column."""
    store = Store.open(root)
    for key, spec in store.manifest.keys.items():
        if not spec.needs_decoding:
            frames = store.state.frames
            assert np.array_equal(store.checksums[key][:frames], frame_checksums(store.memmap(key)[:frames])), key
    store.close()


# What an edit does


def test_what_was_changed_in_the_block_is_stored_when_it_is_left(root: Path) -> None:
    dataset = made(root, [5, 4])
    reader = LeRobotDatasetV2(root, readonly=True)
    assert reader.get_data_by_key("action")[3] == 1.5
    with dataset.edit("action") as actions:
        assert actions.tolist() == (np.arange(9) * 0.5).tolist()
        actions[3] = 7
        actions[-2:] *= -1
        assert reader.get_data_by_key("action")[3] == 1.5  # nothing shows before the block is left
    wanted = [0, 0.5, 1, 7, 2, 2.5, 3, -3.5, -4]
    for seen in (dataset, reader, LeRobotDatasetV2(root)):
        assert seen.get_data_by_key("action").tolist() == wanted
        assert seen.column("action").tolist() == wanted
    assert float(dataset[3]["action"]) == 7
    assert numbers_of(dataset.get_batch(range(9))) == list(range(9))
    check_checksums(root)
    assert not (root / "redo.bin").exists()


def test_images_kept_as_numbers_can_be_edited(root: Path) -> None:
    dataset = made(root, [4, 3], camera=True)
    with dataset.edit(CAMERA) as images:
        images[2, :4] = 9
    wanted = pictures(np.arange(7))
    wanted[2, :4] = 9
    assert np.array_equal(dataset.get_data_by_key(CAMERA), wanted)
    check_checksums(root)


def test_only_bits_count(root: Path) -> None:
    dataset = made(root, [4])
    patterns = np.array([0x7FC00001, 0xFFC00002, 0x80000000, 0x7F800001], np.uint32)
    with dataset.edit("action") as actions:
        actions.view(np.uint32)[:] = patterns
    assert dataset.column("action").view(np.uint32).tolist() == patterns.tolist()
    seen: list[str] = []
    with observed(lambda kind, path: seen.append(f"{kind} {path}")), dataset.edit("action") as actions:
        actions[:] = actions.copy()  # NaN again, of the same bits
    assert seen == []
    edited(dataset, "action", 2, 0.0)  # -0.0 was there: equal, and other bits
    assert dataset.column("action").view(np.uint32)[2] == 0
    check_checksums(root)


def test_an_edit_that_changes_nothing_writes_nothing(root: Path) -> None:
    dataset = made(root, [4])
    generation = Store.open(root).state.generation
    seen: list[str] = []
    with observed(lambda kind, path: seen.append(f"{kind} {path}")), dataset.edit("action"):
        pass
    assert (seen, Store.open(root).state.generation) == ([], generation)


def test_an_exception_in_the_block_leaves_all_as_it_was(root: Path) -> None:
    dataset = made(root, [5])
    with pytest.raises(ZeroDivisionError), dataset.edit("action") as actions:  # noqa: PT012 - the block is tested
        actions[:] = 99
        raise ZeroDivisionError
    assert dataset.get_data_by_key("action").tolist() == [0, 0.5, 1, 1.5, 2]
    edited(dataset, "action", 0, 3)
    assert dataset.get_data_by_key("action").tolist() == [3, 0.5, 1, 1.5, 2]


def test_keys_that_cannot_be_edited_are_refused_and_nothing_is_locked(root: Path) -> None:
    made(root, [3], camera=True, task="push", image_mode="png").close()
    dataset = LeRobotDatasetV2(root)
    for key, error, message in (
        ("reward", roboreel.UnknownKeyError, "no key 'reward'; the dataset has"),
        ("timestamp", ValueError, "'timestamp' cannot be edited: episodes and windows are found by it"),
        ("index", ValueError, "cannot be edited"),
        ("task", ValueError, "it holds strings"),
        (CAMERA, ValueError, "stored as png files"),
    ):
        with pytest.raises(error, match=message), dataset.edit(key):
            pytest.fail("the block was entered")
    with pytest.raises(ValueError, match=r"stored as png files; read frames by index"):
        dataset.column(CAMERA)
    with pytest.raises(KeyError, match="no key 'reward'"):
        dataset.column("reward")
    LeRobotDatasetV2(root).add_episodes(recording(1, 3, camera=True, task="push"))  # another one gets the lock
    with pytest.raises(roboreel.ReadOnlyError), LeRobotDatasetV2(root, readonly=True).edit("action"):
        pytest.fail("the block was entered")


def test_a_column_is_the_file_itself_and_cannot_be_written_to(root: Path) -> None:
    dataset = made(root, [4])
    states = dataset.column("observation.state")
    assert (states.shape, states.dtype) == ((4, 2), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        states[0] = 1
    edited(dataset, "observation.state", 1, [5, 6])
    assert states[1].tolist() == [5, 6]  # no copy was made


# Rings, and what comes after


def test_edits_of_a_ring_reach_what_survives_and_go_with_their_frames(root: Path) -> None:
    dataset = made(root, [5, 4], buffer_capacity=10, use_as_fifo_buffer=True)
    dataset.add_episodes(recording(3, 9))  # slots 0 to 2; of episode 0 its last two frames survive
    edited(dataset, "action", [1, 3, 8], [-1, -3, -8])
    assert dataset.get_episode(0)["action"].tolist() == [-3, 2]
    assert dataset.get_episode(2)["action"].tolist() == [4.5, -1, 5.5]
    dataset.add_episodes(recording(4, 12))  # slots 3 to 6
    assert dataset.get_data_by_key("action").tolist() == [4.5, -1, 5.5, 6, 6.5, 7, 7.5, 3.5, -8]
    edited(dataset, "action", slice(None), 0)
    assert not dataset.get_data_by_key("action").any()
    dataset.close()
    check_checksums(root)
    LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_a_big_scattered_edit(root: Path) -> None:
    dataset = made(root, [3000])
    slots = np.random.default_rng(0).permutation(3000)[:1500]
    wanted = dataset.get_data_by_key("observation.state").copy()
    wanted[slots] = np.random.default_rng(1).normal(size=(1500, 2))
    edited(dataset, "observation.state", slots, wanted[slots])
    assert np.array_equal(LeRobotDatasetV2(root).get_data_by_key("observation.state"), wanted)
    check_checksums(root)


def test_another_process_notices(root: Path) -> None:
    program = f"""
import sys
from roboreel import LeRobotDatasetV2
dataset = LeRobotDatasetV2({str(root)!r}, readonly=True, delta_timestamps={{"action": [-0.1, 0]}})
for _ in sys.stdin:
    print(dataset.get_batch([2])["action"].tolist(), flush=True)
"""
    dataset = made(root, [4])
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for value, wanted in ((None, "[[0.5, 1.0]]"), (8, "[[0.5, 8.0]]"), (9, "[[0.5, 9.0]]")):
            if value is not None:
                edited(dataset, "action", 2, value)
            print("read", file=child.stdin, flush=True)
            assert child.stdout.readline().strip() == wanted
        child.stdin.close()


# Killed in the middle


def test_killed_at_any_effect_an_edit_is_old_or_new_for_everybody(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)
    made(tmp_path / "template", [5, 4, 3], camera=True, buffer_capacity=14, use_as_fifo_buffer=True).close()
    slots = [1, 2, 6, 11]
    old = [0.5 * i for i in range(12)]
    new = [-1.0 if i in slots else 0.5 * i for i in range(12)]
    outcomes: list[bool] = []
    while len(outcomes) < 200:
        root = tmp_path / f"stopped after {len(outcomes)}"
        shutil.copytree(tmp_path / "template", root)
        stopped, outcome = edit_stopped_after(root, slots, len(outcomes), old, new)
        assert not outcomes or outcome >= outcomes[-1]  # from the commit on it is the new one
        outcomes.append(outcome)
        shutil.rmtree(root)
        if not stopped:
            break
    assert len(outcomes) > 15
    assert not outcomes[0]
    assert outcomes[-1]


def edit_stopped_after(
    root: Path, slots: list[int], effects: int, old: list[float], new: list[float]
) -> tuple[bool, bool]:
    """Edit, stop after some effects; return whether it was stopped and whether the edit was made."""
    dataset = LeRobotDatasetV2(root)
    early = LeRobotDatasetV2(root, readonly=True, delta_timestamps={"action": [-0.1, 0]})
    early[0]
    try:
        with observed(stop_after(effects)):
            edited(dataset, "action", slots, -1)
        stopped = False
    except StoppedError:
        stopped = True
    dataset._opening._writer = None
    del dataset  # the lock goes, as with the process
    late = LeRobotDatasetV2(root, readonly=True)
    order = [2, 11, 0, 1, 3, 4, 5, 6, 7, 8, 9, 10]  # one by one, beginning with the last that is written
    seen = [late[i]["action"].item() for i in order]
    outcome = seen[0] == -1
    wanted = new if outcome else old
    assert seen == [wanted[i] for i in order]
    batch = early.get_batch(range(12))["action"]
    assert batch[:, 1].tolist() == wanted
    first = [0, *range(4), 5, *range(5, 8), 9, *range(9, 11)]
    assert batch[:, 0].tolist() == [wanted[i] for i in first]
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    writer = LeRobotDatasetV2(root)
    writer.add_episodes(recording(3, 12, camera=True))  # over slots 0 to 2, or what a half-done edit says of them
    after = writer.get_data_by_key("action").tolist()
    assert after == [6, 6.5, 7, *wanted[3:]]
    edited(writer, "action", 6, 3)
    writer.close()
    check_checksums(root)
    assert not (root / "redo.bin").exists()
    return stopped, outcome


def test_slots_of_which_the_frame_is_lost_stay_lost(root: Path) -> None:
    dataset = made(root, [4, 4], buffer_capacity=8, use_as_fifo_buffer=True)

    def stop(_kind: str, path: Path) -> None:
        if path.name == "action.bin":
            raise StoppedError

    with observed(stop), pytest.raises(StoppedError):
        dataset.add_episodes(recording(3, 8))
    dataset._opening._writer = None
    del dataset
    dataset = LeRobotDatasetV2(root)
    before = dataset.get_data_by_key("action").tolist()
    with dataset.edit("action") as actions:
        actions[:] += 100
    store = dataset._need_store()
    lost = np.setdiff1d(np.arange(8), np.concatenate([dataset.get_episode(k)["index"] for k in (0, 1)]))
    assert len(lost)
    assert (store.words_at(lost) == 0).all()
    assert dataset.get_data_by_key("action").tolist() == [value + 100 for value in before]
    assert verify(root).problems == []


@pytest.mark.skipif(sys.platform != "linux", reason="only there a mapping can be told not to reserve memory")
def test_a_column_larger_than_the_memory_can_be_edited(root: Path) -> None:
    dataset = made(root, [3])
    frame = 1 << 30
    frames = 4 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // frame
    keys = {**dataset._need_store().manifest.keys, "big": KeySpec("big", np.dtype("u1"), (frame,))}
    with (root / "columns" / "big.bin").open("wb") as file:
        try:
            file.truncate(frames * frame)
        except OSError:
            pytest.skip("no file may be so long here, not even one of holes")
    store = SimpleNamespace(root=root, manifest=SimpleNamespace(keys=keys), state=SimpleNamespace(frames=frames))
    draft = make_draft(store, "big")  # type: ignore[arg-type]
    draft[frames // 2, 7] = 3
    assert draft[frames // 2, :9].tolist() == [0] * 7 + [3, 0]
    assert not np.memmap(root / "columns" / "big.bin", "u1", "r", frames // 2 * frame, (9,)).any()
