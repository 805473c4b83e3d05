"""File effects that cost no bytes where the file system is able: a second name, shared blocks, two names exchanged.

Each returns whether it could be done; where it could not, nothing has changed, and the caller does it the dear way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from roboreel.format.files import _effect, _open_regular, open_to_read

_FICLONE = 0x40049409  # of linux/fs.h
_RENAME_SWAP = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
_AT_FDCWD = -100
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of linux/falloc.h
_BLOCK = 4 << 20

_CANNOT = frozenset(
    {errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ETXTBSY}
)
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""EPERM: no hard links on this file system, or none to files of other users; EMLINK: the file has too many names."""


def link(source: Path, path: Path) -> bool:
    """Give a file that is never written again a second name; whether the file system can."""
    with _effect("link", path):
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
    return True


def clone(source: Path, path: Path, length: int) -> bool:
    """Make a file of `length` bytes that shares the blocks of `source` until one is written; whether they can be."""
    with _effect("clone", path):
        try:
            if sys.platform == "darwin":
                _call(_function("clonefile"), os.fsencode(source), os.fsencode(path), 0)
                os.truncate(path, length)
                return True
            with os.fdopen(open_to_read(source), "rb") as old, open(path, "xb") as new:
                fcntl.ioctl(new, _FICLONE, old.fileno())
                os.ftruncate(new.fileno(), length)
                return True
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            if error.errno in _CANNOT:
                return False
            raise


def copy(source: Path, path: Path, size: int, length: int) -> None:
    """Make a file of `length` bytes: the first `size` of `source`, the rest a hole that takes no room."""
    buffer = memoryview(bytearray(min(_BLOCK, max(size, 1))))
    with _effect("write", path), os.fdopen(open_to_read(source), "rb", 0) as old, open(path, "xb", 0) as new:
        left = size
        while left:
            got = old.readinto(buffer[:left])
            if not got:
                raise OSError(errno.EIO, f"{source} ends {left} bytes too early")
            block = buffer[:got]
            while block:
                block = block[new.write(block) :]
            left -= got
        os.ftruncate(new.fileno(), length)


def punch(path: Path, start: int, stop: int) -> bool:
    """Give the blocks of bytes [start, stop) back; they read as zeros then, also through mappings. Whether it can."""
    if sys.platform == "darwin" or start >= stop:
        return False
    with _effect("punch", path), os.fdopen(_open_regular(path, os.O_RDWR), "rb+") as file:
        try:
            function = _function("fallocate64")
            function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]  # type: ignore[attr-defined]
            _call(function, file.fileno(), _KEEP_SIZE | _PUNCH_HOLE, start, stop - start)
        except AttributeError:  # another C library
            return False
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
    return True


def exchange(one: Path, other: Path) -> bool:
    """Have two names change places at once, so that nobody ever finds either missing; whether the system can."""
    swap = _swap()
    if swap is None:
        return False
    with _effect("exchange", other):
        try:
            swap(os.fsencode(one), os.fsencode(other))
        except OSError as error:
            if error.errno in _CANNOT:
                return False
            raise
    return True


def remove_if_empty(directory: Path) -> bool:
    """Remove a directory that other processes may put files into; whether it was empty."""
    with _effect("remove", directory):
        try:
            os.rmdir(directory)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                return False
            raise
    return True


@lru_cache(maxsize=1)
def _swap() -> Callable[[bytes, bytes], None] | None:
    """What exchanges two names on this system, if anything does."""
    if sys.platform == "darwin":
        renamex = _function("renamex_np")
        return lambda one, other: _call(renamex, one, other, _RENAME_SWAP)
    try:
        renameat2 = _function("renameat2")
    except AttributeError:  # a C library from before 2018
        return None
    return lambda one, other: _call(renameat2, _AT_FDCWD, one, _AT_FDCWD, other, _RENAME_SWAP)


def _function(name: str) -> Callable[..., int]:
    function: Callable[..., int] = getattr(ctypes.CDLL(None, use_errno=True), name)
    return function


def _call(function: Callable[..., int], *arguments: bytes | int) -> None:
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
