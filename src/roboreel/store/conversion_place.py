"""Where a converted dataset is built: beside the place where it will be, by one process at a time, and swept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from roboreel.errors import DatasetLockedError, InvalidArgumentError
from roboreel.format import clone, files
from roboreel.store.replacing import directory_lock

JOURNAL, DATASET = "journal.jsonl", "dataset"
"""In the place of a conversion: what is done, and what was made so far."""
_ASIDE = "old"
_TRIES = 10


def place_of(target: Path) -> Path:
    """Where the dataset that will be in `target` is built."""
    return target.with_name(f".{target.name}.conversion")


def parse_dest(root: Path, dest: Path) -> Path:
    """Return a free place, without links in its path, that does not overlap with the dataset."""
    here, there = Path(os.path.realpath(root)), Path(os.path.realpath(dest))
    if here == there or here in there.parents or there in here.parents:
        raise InvalidArgumentError(f"a copy of {root} cannot go to {dest}, which overlaps with it; give another place")
    if there.exists() and (not there.is_dir() or any(there.iterdir())):
        raise InvalidArgumentError(f"{dest} is there already; give a new or an empty directory")
    return there


@contextlib.contextmanager
def claimed(place: Path) -> Iterator[None]:
    """Hold the lock on the directory in which the new dataset is built; it may be left of an earlier try."""
    for _ in range(_TRIES):
        if place.exists():
            _check_ours(place)
        files.make_dir(place)
        with directory_lock(place, "converting in") as is_there:
            if is_there:
                yield
                return
    raise DatasetLockedError(f"another process is converting in {place}; wait until it is done")


def _check_ours(place: Path) -> None:
    foreign = sorted({path.name for path in place.iterdir()} - {JOURNAL, DATASET, _ASIDE})
    if foreign:
        raise InvalidArgumentError(
            f"{place}, where the new one would be built, holds other things ({', '.join(foreign[:5])}); move it away"
        )


def sweep(place: Path) -> None:
    """Remove what earlier tries have left, unless another process is at it."""
    if place.exists():
        with claimed(place):
            files.remove(place)


def clear(place: Path) -> None:
    """Remove what is in the place: the journal first, which must not speak of what is gone."""
    for name in (JOURNAL, DATASET, _ASIDE):
        files.remove(place / name)


def exchange(place: Path, target: Path) -> None:
    """Have the finished dataset and the one in `target` change places."""
    if clone.exchange(place / DATASET, target):
        return
    files.rename(target, place / _ASIDE)  # after a kill between the two, `put_back` mends it
    try:
        files.rename(place / DATASET, target)
    except BaseException:
        files.rename(place / _ASIDE, target)
        raise


def put_back(root: Path) -> None:
    """After a kill between two renames, where the system cannot exchange: have the old dataset be there again."""
    target = Path(os.path.realpath(root))
    aside = place_of(target) / _ASIDE
    if not target.exists() and aside.exists():
        files.rename(aside, target)
        files.sync_path(target.parent)
