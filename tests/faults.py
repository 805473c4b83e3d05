"""One effect on a file that fails, anywhere in any change to a dataset; then the same object goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from roboreel import LeRobotDatasetV2, StorageError
from roboreel.format.files import observed
from roboreel.store import verify
from tests.recordings import made, recording
from tests.test_durability import Failing, contents

RING: dict[str, Any] = {"buffer_capacity": 8, "use_as_fifo_buffer": True}
LENGTHS = [4, 3]
FIRST = sum(LENGTHS)

State = tuple[list[tuple[int, int]], list[float]]


def state(dataset: LeRobotDatasetV2) -> State:
    """(index, episode) of each frame, and a key that edits change, after checking that every frame is whole."""
    return contents(dataset), dataset.get_data_by_key("action").tolist()


def add(dataset: LeRobotDatasetV2, _: Path) -> None:
    dataset.add_episodes(recording(3, FIRST, camera=True, task="pull"))


def edit(dataset: LeRobotDatasetV2, _: Path) -> None:
    with dataset.edit("action") as actions:
        actions[[1, 2, 5]] = -1


def flush(dataset: LeRobotDatasetV2, _: Path) -> None:
    dataset.add_episodes(recording(3, FIRST, camera=True, task="pull"), no_flush=True)
    dataset.flush()


def snapshot(dataset: LeRobotDatasetV2, place: Path) -> None:
    dataset.snapshot(place)


def close(dataset: LeRobotDatasetV2, _: Path) -> None:
    dataset.add_episodes(recording(3, FIRST, camera=True, task="pull"), no_flush=True)
    dataset.close()


Change = Callable[[LeRobotDatasetV2, Path], None]

CHANGES: dict[str, tuple[Change, dict[str, Any]]] = {
    "adding, growing": (add, {}),
    "overwriting a ring": (add, RING),
    "editing": (edit, RING),
    "flushing": (flush, RING),
    "taking a snapshot": (snapshot, {}),
    "closing": (close, {}),
}


@dataclass
class Counts:
    """What was tried."""

    faults: int = 0
    told: int = 0
    """Of which so many were an error for the caller; the others are swept up by the next writer."""
    undone: int = 0
    """After which everything was as before; after the others the change was made."""
    modes: dict[str, int] = field(default_factory=dict)


def fail_each(folder: Path, name: str, mode: str, counts: Counts, most: int = 100_000, *, half: bool = False) -> None:
    """Fail each effect of a change once (or about `most` of them), and go on with the same object in every way.

    Where `half`, a write fails when half of its bytes are there.
    """
    change, options = CHANGES[name]
    source = folder / "source"
    made(source, LENGTHS, camera=True, image_mode=mode, task="push", **options).close()
    whole = LeRobotDatasetV2(shutil.copytree(source, folder / "whole"))
    before, counting = state(whole), Failing()
    with observed(counting):
        change(whole, folder / "place")
    after = state(whole)
    whole.close()
    for at in range(0, counting.seen, 1 + counting.seen // most):
        root, place = folder / f"fails at {at}", folder / f"place {at}"
        dataset = LeRobotDatasetV2(shutil.copytree(source, root))
        state(dataset)
        try:
            with Failing(at, half=half).observing():
                change(dataset, place)
        except StorageError:
            counts.told += 1
        found = state(dataset)
        assert found in (before, after), (name, mode, at)
        go_on(dataset, place)
        counts.faults += 1
        counts.undone += found == before
        counts.modes[mode] = counts.modes.get(mode, 0) + 1
        shutil.rmtree(root)
        shutil.rmtree(place)
    shutil.rmtree(source)
    shutil.rmtree(folder / "whole")
    shutil.rmtree(folder / "place", ignore_errors=True)


def go_on(dataset: LeRobotDatasetV2, place: Path) -> None:
    """Edit, add, grow, flush, take a snapshot, close and read on with one object, and see that each worked."""
    with dataset.edit("action") as actions:
        actions[0] = 77
    assert dataset.get_data_by_key("action")[0] == 77
    number = 1 + int(dataset.get_data_by_key("index").max())
    for length in (1, 2):
        dataset.add_episodes(recording(length, number, camera=True, task="pick"), no_flush=True)
        number += length
    assert state(dataset)[0].count((number - 1, int(dataset.get_unique_episode_indices()[-1]))) == 1
    dataset.flush()
    dataset.snapshot(place)
    held = state(dataset)
    assert state(LeRobotDatasetV2(place, readonly=True)) == held
    dataset.close()
    assert state(dataset) == state(LeRobotDatasetV2(dataset.storage_dir, readonly=True)) == held
    assert verify(dataset.storage_dir).problems == []
