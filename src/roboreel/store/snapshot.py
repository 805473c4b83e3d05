"""Who takes a snapshot: the process that writes; whoever takes the lock; a reader, where nothing changes meanwhile."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from roboreel.errors import (
    DatasetBusyError,
    DatasetLockedError,
    InvalidArgumentError,
    StorageDirCorruptError,
    StorageError,
)
from roboreel.format.lock import writer_is_alive
from roboreel.store.cloning import SnapshotReport, take_snapshot
from roboreel.store.replacing import parse_dest
from roboreel.store.requests import ask
from roboreel.store.store import Store
from roboreel.store.writer import Writer

_PAUSE_S = 0.02
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class _ChangedError(Exception):
    """A writer came while a reader was copying."""


Turn = Callable[[], AbstractContextManager[Writer | None]]
"""Has the other threads wait that write the same dataset, and gives their writer where it is open."""


def request_snapshot(root: Path, dest: Path, turn: Turn, *, readonly: bool, timeout_s: float) -> SnapshotReport:
    """Have a snapshot taken of a dataset, by whoever can.

    Our own writer does it, in its turn; a living one elsewhere is asked; else the lock is taken for as long as it
    takes, and a writer that comes waits; `readonly`, or without permission to write in `root`, it is copied as it lies,
    again and again until nobody changed it meanwhile.

    Raises:
        DatasetBusyError: nobody could make it within `timeout_s` seconds.
        InvalidArgumentError: it cannot go to `dest`.
    """
    if not 0 <= timeout_s < math.inf:
        raise InvalidArgumentError(f"timeout_s={timeout_s!r}; a number of seconds would do")
    deadline = time.monotonic() + timeout_s
    dest = parse_dest(root, dest)  # here, because the writer may have another working directory
    while True:
        report = _try(root, dest, turn, deadline, readonly=readonly)
        if report is not None:
            return report
        if time.monotonic() > deadline:
            raise DatasetBusyError(
                f"{root} changed all the time for {timeout_s:g} s; ask again with a longer timeout_s"
            )
        time.sleep(_PAUSE_S)


def _try(root: Path, dest: Path, turn: Turn, deadline: float, *, readonly: bool) -> SnapshotReport | None:
    """Take or ask for a snapshot in the way that fits just now; None where that changed meanwhile."""
    with contextlib.suppress(_PermissionError):
        with turn() as ours:
            if ours is not None:
                return ours.snapshot(dest)
            is_written = writer_is_alive(root)
            if not is_written and not readonly:
                try:
                    with _telling_permission(root):
                        writer = Writer.open(root, for_snapshot=True)
                except DatasetLockedError:
                    return None
                with contextlib.closing(writer):
                    return writer.snapshot(dest)
        if is_written:  # out of turn: our own threads need not wait for the answer
            with _telling_permission(root):
                return ask(root, dest, deadline)
    with contextlib.suppress(_ChangedError):
        return _without_lock(root, dest)
    return None


class _PermissionError(Exception):
    """Nothing can be written in the dataset's directory."""


@contextlib.contextmanager
def _telling_permission(root: Path) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _REFUSED and not os.access(root, os.W_OK):
            raise _PermissionError from error
        raise


def _without_lock(root: Path, dest: Path) -> SnapshotReport:
    """Copy while no writer comes; what a dead one left half done is mended in the copy, not in the dataset."""
    store = Store.open(root)
    before = store.refresh()
    state = store.state

    def recover(build: Path) -> bool:
        if store.refresh() != before or not store.is_in_place:
            raise _ChangedError
        if not (state.redo or state.at_risk_length or state.busy_start < state.busy_stop):
            return False
        Writer.open(build).close()
        return True

    try:
        return take_snapshot(store, dest, recover=recover)
    except (StorageDirCorruptError, StorageError) as error:
        missing = isinstance(error, StorageDirCorruptError) or isinstance(error.__cause__, FileNotFoundError)
        if missing and (store.refresh() != before or not store.is_in_place):
            raise _ChangedError from error
        raise
    finally:
        store.close()
