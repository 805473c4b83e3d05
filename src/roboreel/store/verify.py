"""Every byte that a committed frame depends on, compared with its checksum; nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from roboreel.errors import DatasetBusyError, RoboreelError, StorageDirCorruptError, StorageError
from roboreel.format.lock import writer_is_alive
from roboreel.store.frame_check import FrameCheck
from roboreel.store.leftovers import foreign_files, leftovers
from roboreel.store.problem import Problem
from roboreel.store.store import Store
from roboreel.store.structure import Structure, read_structure, structure_problems

_TRIES = 50
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Report:
    problems: list[Problem]
    notes: list[str]
    """What is worth knowing and harms nothing."""
    frames: int = 0
    """Committed frames that were looked at."""


def verify(root: Path) -> Report:
    """Return all that is wrong with the dataset in `root`, which may be read-only, or be written meanwhile.

    Raises:
        DatasetBusyError: a living writer was at the same frames for longer than a reader waits.
    """
    try:
        problems = _settled_problems(root)
    except (RoboreelError, OSError) as error:
        return Report([_one_line(root, error)], [])
    try:
        store = Store.open(root)
    except RoboreelError as error:
        notes = ["the frames were not looked at: the dataset cannot be opened"]
        return Report(problems or [_one_line(root, error)], notes)
    try:
        try:
            problems += FrameCheck(store, every_byte=True).problems()
        except (StorageDirCorruptError, StorageError) as error:
            if isinstance(error, DatasetBusyError):
                raise
            return Report([*problems, _one_line(root, error)], [])
        table = store.table
        frames = int((table.stops_of(table.live) - table.live_starts[table.live]).sum())
        return Report(problems, _notes(store), frames)
    finally:
        store.close()


def _notes(store: Store) -> list[str]:
    root = store.root
    try:
        notes = [f"{path.relative_to(root)}: not a part of the dataset" for path in foreign_files(store)]
        if not writer_is_alive(root):
            notes += [f"{path.relative_to(root)}: left by a writer that ended early" for path in leftovers(store)]
        return notes
    except StorageError as error:
        return [f"not all was looked at: {error}"]


def _settled_problems(root: Path) -> list[Problem]:
    """Return what is wrong with the small files, which a living writer may be changing as we read one after another."""
    for attempt in range(_TRIES):
        alive = writer_is_alive(root)
        structure: Structure | None = None
        try:
            structure = read_structure(root)
            problems = list(structure_problems(structure))
        except RoboreelError:
            if not alive or attempt == _TRIES - 1:
                raise
        else:
            if not problems or not alive:
                return problems
        time.sleep(_PAUSE_S)
    return problems


def _one_line(root: Path, error: Exception) -> Problem:
    text = " ".join(str(error).split())
    return Problem(str(root), text.removeprefix(f"{root}: "))
