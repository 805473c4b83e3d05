"""Every file effect of every way to change a dataset is failed once: old or new, nothing between, and it goes on.

`add_episodes` has its own tests in `test_durability.py`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.format.files import observed
from roboreel.store import repair, verify
from tests import damage
from tests.damage import MODES
from tests.faults import CHANGES, Counts, fail_each
from tests.lerobot_folders import write_v3
from tests.recordings import made, recording
from tests.test_durability import Failing

RING: dict[str, Any] = {"buffer_capacity": 8, "use_as_fifo_buffer": True}

Seen = tuple[list[int], list[float], int]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


def seen(dataset: LeRobotDatasetV2) -> Seen:
    """What is stored, and the room that is known."""
    numbers = dataset.get_data_by_key("index").tolist()
    assert dataset.get_batch(range(len(dataset)))["index"].tolist() == numbers
    return numbers, dataset.get_data_by_key("action").tolist(), dataset._need_store().state.capacity


def edit(root: Path) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(root)
    with dataset.edit("action") as actions:
        actions[[1, 2, 5]] = -1
    return dataset


def grow(root: Path) -> LeRobotDatasetV2:
    return LeRobotDatasetV2(root, buffer_capacity=13)


def grow_in_bytes(root: Path) -> LeRobotDatasetV2:
    return LeRobotDatasetV2(root, buffer_capacity="2kB")


def flush(root: Path) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(root)
    dataset.add_episodes(recording(3, 7), no_flush=True)
    dataset.flush()
    return dataset


def close(root: Path) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(root)
    dataset.add_episodes(recording(3, 7), no_flush=True)
    dataset.close()
    return dataset


@pytest.mark.parametrize(
    ("change", "options"),
    [(edit, RING), (grow, {"buffer_capacity": 12}), (grow_in_bytes, RING), (flush, RING), (close, {})],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_whatever_fails_it_is_the_old_or_the_new_and_can_be_done_again(
    tmp_path: Path, change: Callable[[Path], LeRobotDatasetV2], options: dict[str, Any]
) -> None:
    source = tmp_path / "source"
    made(source, [4, 3], **options).close()
    before = seen(LeRobotDatasetV2(source, readonly=True))
    counting = Failing()
    with observed(counting):
        after = seen(done := change(shutil.copytree(source, tmp_path / "whole")))
    done.close()
    assert after != before
    assert counting.seen > 5
    failed, moments = 0, counting.moments
    for at in moments:
        root = shutil.copytree(source, tmp_path / f"fails at {at}")
        try:
            with observed(Failing(at)):
                change(root).close()
        except roboreel.StorageError:
            failed += 1
        reader = LeRobotDatasetV2(root, readonly=True)
        assert seen(reader)[:2] in (before[:2], after[:2])
        assert seen(reader)[2] in (before[2], after[2])  # room may have been made, and the episode not have come in
        if seen(reader) != after:
            LeRobotDatasetV2.check_storage_dir_integrity(root)
            change(root).close()
        assert seen(reader) == seen(LeRobotDatasetV2(root)) == after
        LeRobotDatasetV2.check_storage_dir_integrity(root)
        shutil.rmtree(root)
    assert failed > len(moments) // 2  # what fails is told, but for what the next writer can sweep


@pytest.mark.parametrize("change", [grow, flush], ids=lambda change: change.__name__)
def test_where_everything_fails_from_some_effect_on_the_next_process_sees_the_old_or_the_new(
    tmp_path: Path, change: Callable[[Path], LeRobotDatasetV2]
) -> None:
    source = tmp_path / "source"
    made(source, [4, 3], buffer_capacity=12).close()
    before = seen(LeRobotDatasetV2(source, readonly=True))
    counting = Failing()
    with observed(counting):
        after = seen(change(shutil.copytree(source, tmp_path / "whole")))
    failed, moments = 0, counting.moments
    for at in moments:
        root = shutil.copytree(source, tmp_path / f"fails from {at}")
        try:
            with observed(Failing(at, for_good=True)):
                change(root).close()
        except roboreel.StorageError:
            failed += 1
        assert seen(LeRobotDatasetV2(root, readonly=True))[:2] in (before[:2], after[:2])
        with LeRobotDatasetV2(root) as writer:
            writer.add_episodes(recording(1, len(writer)))
        LeRobotDatasetV2.check_storage_dir_integrity(root)
        shutil.rmtree(root)
    assert failed >= len(moments) - 1  # all but the sweeping at the end


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("half", [False, True], ids=["not begun", "half done"])
def test_the_same_object_goes_on_whichever_effect_of_a_change_has_failed(tmp_path: Path, name: str, half: bool) -> None:
    counts = Counts()
    fail_each(tmp_path, name, "memmap", counts, most=8, half=half)
    assert counts.faults > 5
    assert counts.told > counts.faults // 2


def test_an_import_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "folder", camera="video")

    def take_in(root: Path, failing: Failing) -> Any:
        with observed(failing):
            dataset = LeRobotDatasetV2.from_lerobot(folder, root, progress=False)
        return dataset.get_data_by_key("action").tolist()

    counting = Failing()
    whole = take_in(tmp_path / "whole", counting)
    assert counting.seen > 50
    place = tmp_path / "place"
    place.mkdir()
    for at in counting.moments:
        root = place / "dataset"
        try:
            take_in(root, Failing(at))
        except roboreel.StorageError:
            assert not root.exists()
        if at % 8 and list(place.iterdir()) == []:
            continue  # nothing was left: another try is the first one again
        assert take_in(root, Failing()) == whole
        assert [path.name for path in place.iterdir()] == ["dataset"]
        LeRobotDatasetV2.check_storage_dir_integrity(root)
        shutil.rmtree(root)


class KilledError(BaseException):
    """What no error handling of the library may mistake for a failure that it can mend."""


def overwrite(dataset: LeRobotDatasetV2) -> None:
    dataset.add_episodes(recording(4, 7))


def edit_open(dataset: LeRobotDatasetV2) -> None:
    with dataset.edit("action") as actions:
        actions[[1, 2, 5]] = -1


def killed_at(root: Path, change: Callable[[LeRobotDatasetV2], None], at: int) -> None:
    """Have a writer die at its effect number `at`: nothing works from there on, and nothing is closed."""
    counting = Failing()

    def kill(kind: str, path: Path) -> None:
        if counting.seen >= at:
            raise KilledError
        counting(kind, path)

    dataset = LeRobotDatasetV2(root)
    with observed(kill), contextlib.suppress(KilledError):
        change(dataset)
    dataset._opening._writer = None


@pytest.mark.parametrize("change", [overwrite, edit_open], ids=lambda change: change.__name__)
def test_what_a_dead_writer_left_can_be_taken_over_at_any_try(
    tmp_path: Path, change: Callable[[LeRobotDatasetV2], None]
) -> None:
    source = tmp_path / "source"
    made(source, [4, 3], **RING).close()
    counting = Failing()
    with observed(counting):
        change(LeRobotDatasetV2(shutil.copytree(source, tmp_path / "whole")))
    tried = 0
    for died in range(2, counting.seen, 9):
        killed = shutil.copytree(source, tmp_path / "killed")
        killed_at(killed, change, died)
        before = seen(LeRobotDatasetV2(killed, readonly=True))
        taking_over = Failing()
        root = shutil.copytree(killed, tmp_path / "taken over")
        with observed(taking_over):
            edit_nothing(root)
        shutil.rmtree(root)
        for at in taking_over.moments:
            root = shutil.copytree(killed, tmp_path / "taken over")
            try:
                with observed(Failing(at)):
                    edit_nothing(root)
            except roboreel.StorageError:
                tried += 1
            assert seen(LeRobotDatasetV2(root, readonly=True)) == before
            edit_nothing(root)
            assert seen(LeRobotDatasetV2(root)) == before
            assert verify(root).problems == []
            shutil.rmtree(root)
        shutil.rmtree(killed)
    assert tried > counting.seen // 2


def edit_nothing(root: Path) -> None:
    """Take the writer's lock, which ends what was left half done, and change nothing."""
    with LeRobotDatasetV2(root) as dataset, dataset.edit("action"):
        pass


@pytest.mark.parametrize("mode", MODES)
def test_a_repair_that_fails_can_be_done_again_and_never_costs_a_good_episode(tmp_path: Path, mode: str) -> None:
    source = damage.dataset(tmp_path / "source", mode)
    whole = damage.episodes(source)
    damaged = shutil.copytree(source, tmp_path / "damaged")
    damage.flip(damaged / "columns" / "action.bin", 5 * 4, 0xFF)  # a frame of the second episode
    damage.flip(damaged / "owners.bin", 9 * 8, 2)  # put right from the table
    damage.flip(damaged / "state.bin", 4096 + 50, 1)
    counting = Failing()
    with observed(counting):
        root = shutil.copytree(damaged, tmp_path / "whole")
        assert repair(root).remaining == []
    repaired = damage.episodes(root)
    assert len(repaired) == len(whole) - 1
    for at in counting.moments:
        root = shutil.copytree(damaged, tmp_path / f"fails at {at}")
        with observed(Failing(at)), contextlib.suppress(roboreel.StorageError):
            repair(root)
        assert repair(root).remaining == []
        assert damage.episodes(root) == repaired
        assert verify(root).problems == []
        shutil.rmtree(root)
