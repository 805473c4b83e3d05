"""One process at a time pulls or pushes a dataset: those that ask for the same meanwhile wait."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from roboreel.errors import InvalidArgumentError, RoboreelWarning
from roboreel.store import make_dir, remove

_PAUSE_S = 0.1
_PUSHED = "lerobot"
"""The folder in its place."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def my_turn(storage_dir: Path, what: Literal["pull", "push"]) -> Iterator[None]:
    """Wait until no other process pulls `storage_dir`, or pushes it; the kernel ends the turn of one that dies.

    Where nothing can be written, or the file system knows no locks, nobody is waited for.
    """
    path = storage_dir.with_name(f".{storage_dir.name}.{what}.lock")
    make_dir(path.parent)
    fd = _locked(path, f"{storage_dir}: another process is at `roboreel {what}`")
    try:
        yield
    finally:
        if fd is not None:
            path.unlink(missing_ok=True)  # before it is let go: who waits sees that it is gone, and makes it anew
            os.close(fd)


def _locked(path: Path, said: str) -> int | None:
    is_told = False
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return None  # what is there can be opened all the same
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return fd
            os.close(fd)
            raise
        else:
            if _is_at(path, fd):
                return fd
        os.close(fd)
        if not is_told:
            warnings.warn(f"{said}, and is waited for", RoboreelWarning, stacklevel=6)
            is_told = True
        time.sleep(_PAUSE_S)


@contextlib.contextmanager
def push_place(storage_dir: Path) -> Iterator[Path]:
    """Have a place for the folder that is pushed, beside the dataset: on its disk, and gone after it.

    What a push that was killed has left there goes first. Where nothing can be written there, the place is one for
    temporary files.
    """
    storage_dir = storage_dir.resolve()
    if not os.access(storage_dir.parent, os.W_OK):
        with tempfile.TemporaryDirectory(prefix="roboreel-push-") as elsewhere:
            yield Path(elsewhere) / _PUSHED
        return
    with my_turn(storage_dir, "push"):
        place = storage_dir.with_name(f".{storage_dir.name}.push")
        if place.exists() and not {path.name for path in place.iterdir()} <= {_PUSHED, f".{_PUSHED}.conversion"}:
            raise InvalidArgumentError(f"{place}, where what is pushed would be made, holds other things; move it away")
        remove(place)
        make_dir(place)
        try:
            yield place / _PUSHED
        finally:
            remove(place)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
