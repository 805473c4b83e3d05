"""One process at a time takes a dataset in: those that ask for it meanwhile wait, and find it there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from roboreel.errors import RoboreelWarning
from roboreel.store import make_dir

_PAUSE_S = 0.1
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def my_turn(storage_dir: Path) -> Iterator[None]:
    """Wait until no other process takes in what goes to `storage_dir`; the kernel ends the turn of one that dies.

    Where the file system knows no locks, nobody is waited for.
    """
    path = storage_dir.with_name(f".{storage_dir.name}.pull")
    make_dir(path.parent)
    fd = _locked(path, storage_dir)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: who waits for it sees that it is gone, and makes it anew
        os.close(fd)


def _locked(path: Path, storage_dir: Path) -> int:
    is_told = False
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
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
            warnings.warn(
                f"{storage_dir}: another process takes a dataset in there, and is waited for",
                RoboreelWarning,
                stacklevel=6,
            )
            is_told = True
        time.sleep(_PAUSE_S)


def _is_at(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
