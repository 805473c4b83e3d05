"""The one layer through which every change to a file goes.

Tests see each effect before it happens (`observed`) and may fail it; errors of the system become `StorageError` or
`DiskSpaceError` here and nowhere else. Reads of small records are here too, because they must go by `pread`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.errors import DiskSpaceError, RoboreelError, StorageDirCorruptError, StorageError
from roboreel.format.threads import in_threads

Observer = Callable[[str, Path], None]
"""Called with the kind of effect (`create`, `write`, `allocate`, `extend`, `truncate`, `sync`, `rename`, `remove`,
`mkdir`) and the path."""


@dataclass(frozen=True)
class Effect:
    """What is about to be done to a file, for those who want to do it again elsewhere."""

    kind: str
    path: Path
    offset: int = 0
    """Of a `write` the place, of `allocate` and `truncate` the new size."""
    data: bytes | memoryview = b""
    """What a `write` writes; to be copied at once."""
    whole: bool = False
    """Whether that is the file's whole content."""
    source: Path | None = None
    """What is renamed, or copied."""


_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.ENODEV)
"""A link where none is followed, and things that can be opened in no way that is of use."""
_ZEROS = bytes(1 << 20)
_SYNCS_AT_ONCE, _SYNCS_AT_A_TIME = 16, 1024
_observers: list[Observer] = []
_recorders: list[Callable[[Effect], None]] = []


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Have `observer` called before each file effect of this process; what it raises fails that effect.

    Where several cameras are stored at once, it is called by several threads at once.
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextlib.contextmanager
def recorded(recorder: Callable[[Effect], None]) -> Iterator[None]:
    """As `observed`, for who must know what each effect does; called after the observers."""
    _recorders.append(recorder)
    try:
        yield
    finally:
        _recorders.remove(recorder)


@contextlib.contextmanager
def _effect(kind: str, path: Path, **details: Any) -> Iterator[None]:
    try:
        for observer in _observers:
            observer(kind, path)
        for recorder in _recorders:
            recorder(Effect(kind, path, **details))
        yield
    except OSError as error:
        raise storage_error(f"{kind} of {path}", error) from error


def storage_error(what: str, error: OSError) -> StorageError:
    """Return our error for the system's: `DiskSpaceError` where there is no room, else `StorageError`."""
    if isinstance(error, StorageError):
        return error
    if error.errno in _NO_SPACE:
        return DiskSpaceError(f"{what} failed: no space left on the device; free some space and try again")
    return StorageError(f"{what} failed: {error.strerror or error}")


def open_to_read(path: Path | str) -> int:
    """Return a descriptor of a regular file.

    Raises:
        FileNotFoundError: nothing is there.
        StorageDirCorruptError: a pipe, a directory or a device is, which would be read for ever, or not at all.
    """
    try:
        return _open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(f"opening {path}", error) from error


def read_file(path: Path | str) -> bytes:
    """Return the content of a regular file; raises as `open_to_read`."""
    fd = open_to_read(path)
    try:
        size = os.fstat(fd).st_size
        content = os.read(fd, size + 1)
        if len(content) != size:  # it grows, or is larger than one read gives
            content += b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
    finally:
        os.close(fd)
    return content


def pieces(fd: int, start: int, stop: int, size: int) -> Iterator[bytes]:
    """Yield bytes [start, stop) of a file, `size` at a time, as far as it goes; one read gives 2 GiB at most."""
    while start < stop:
        piece = os.pread(fd, min(size, stop - start), start)
        if not piece:
            return
        yield piece
        start += len(piece)


@contextlib.contextmanager
def looking_at(path: Path) -> Iterator[None]:
    """Have what the system refuses be a `StorageError`, as another user's directory; what is missing stays as it is."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, RoboreelError):
        raise
    except OSError as error:
        raise storage_error(f"reading {path}", error) from error


def _open_regular(path: Path | str, flags: int) -> int:
    """Open without waiting, as a pipe has one do; for writing also without following a link, which leads elsewhere."""
    if flags & os.O_ACCMODE != os.O_RDONLY:
        flags |= os.O_NOFOLLOW
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise not_regular(path)
    return fd


def not_regular(path: Path | str) -> StorageDirCorruptError:
    return StorageDirCorruptError(
        f"{path} is not a regular file, but a link, a directory or a device, or lies beneath one that is no directory: "
        "put the file itself there"
    )


def check_file(path: Path) -> None:
    """Refuse whatever is neither a file of the directory itself nor missing; links are not followed."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), looking_at(path):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise not_regular(path)


def check_dir(path: Path) -> None:
    """Refuse whatever is neither a directory nor missing; through a link others' files would be written and swept."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), looking_at(path):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise StorageDirCorruptError(
                f"{path} is not a directory, but a link or a file: nothing is written there; put the directory itself "
                "there"
            )


class DataFile:
    """An open file that is written at given offsets, so that mappings of it in other processes see it at once."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self.dirty = True  # also at first: what a writer that died has left may not have reached the device
        if create:
            with _effect("create", path):
                self._fd = _open_regular(path, os.O_RDWR | os.O_CREAT)
        else:
            try:
                self._fd = _open_regular(path, os.O_RDWR)
            except OSError as error:
                raise storage_error(f"opening {path} for writing", error) from error

    def write_at(self, offset: int, data: bytes | NDArray[Any]) -> None:
        """Write all bytes of `data` from `offset` on."""
        array = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)
        view = array.reshape(-1).view(np.uint8).data
        self.dirty = True
        with _effect("write", self.path, offset=offset, data=view):
            while len(view):  # a nearly full disk and a signal both give short writes
                written = os.pwrite(self._fd, view, offset)
                offset += written
                view = view[written:]

    def allocate(self, size: int) -> None:
        """Reserve disk space for `size` bytes; the file becomes at least that long. Never shortens it."""
        present = os.fstat(self._fd).st_size
        if present >= size:
            return
        self.dirty = True
        with _effect("allocate", self.path, offset=size):
            try:
                os.posix_fallocate(self._fd, present, size - present)
            except AttributeError:  # macOS has no posix_fallocate
                self._write_zeros(present, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    os.ftruncate(self._fd, present)  # a part may have been allocated before the space ran out
                    raise
                self._write_zeros(present, size)

    def _write_zeros(self, start: int, stop: int) -> None:
        at = start
        try:
            while at < stop:
                at += os.pwrite(self._fd, _ZEROS[: stop - at], at)
        except OSError:
            os.ftruncate(self._fd, start)
            raise

    def truncate(self, size: int) -> None:
        """Cut off what is beyond `size`; the caller knows that nobody has it mapped."""
        if os.fstat(self._fd).st_size > size:
            with _effect("truncate", self.path, offset=size):
                os.ftruncate(self._fd, size)

    def extend(self, size: int) -> None:
        """Make the file at least `size` bytes long with a hole, which takes no room and reads as zeros."""
        if os.fstat(self._fd).st_size < size:
            with _effect("extend", self.path, offset=size):
                os.ftruncate(self._fd, size)

    def sync(self) -> None:
        """Have the file's content reach the device, unless nothing was written since the last call."""
        if self.dirty:
            with _effect("sync", self.path):
                self.wait_for_device()

    def wait_for_device(self) -> None:
        """The system's part of `sync`."""
        # the time of change, which only fsync waits for, is not needed to read the content again; macOS has no other
        getattr(os, "fdatasync", os.fsync)(self._fd)
        self.dirty = False

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):  # opening may have failed
            self.close()


def make_dir(path: Path) -> bool:
    """Create the directory and its parents; return whether it was not there before.

    That its own entry reaches the device is for the caller to see to; those of parents made on the way do at once.
    """
    if path.is_dir():
        return False
    missing = [parent for parent in path.parents if not parent.exists()]
    with _effect("mkdir", path):
        path.mkdir(parents=True, exist_ok=True)
    for parent in missing:
        sync_path(parent.parent)
    return True


def write_new(path: Path, data: bytes) -> None:
    """Write a whole file whose name nobody knows yet: durable only after `sync_path`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with _effect("write", path, data=data, whole=True), os.fdopen(_open_regular(path, flags), "wb") as file:
        file.write(data)


def copy_new(source: Path, path: Path) -> None:
    """Copy a file's content (by reference where the file system can) under a name that nobody knows yet."""
    with _effect("write", path, whole=True, source=source):
        check_file(path)
        shutil.copyfile(source, path)


def rename(source: Path, target: Path) -> None:
    """Rename, replacing `target` if it is a file; within one directory's file system this is atomic."""
    with _effect("rename", target, source=source):
        os.replace(source, target)


def replace_atomically(path: Path, data: bytes) -> None:
    """Give `path` new content so that after a kill or a power loss it has the old or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_new(temporary, data)
        sync_path(temporary)
        rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Have a file's content, or a directory's entries, reach the device."""
    with _effect("sync", path):
        _sync_path(path)


def _sync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_all(files: Iterable[DataFile], paths: Iterable[Path] = ()) -> None:
    """Sync many files at once: the device is waited for some times, not once for each file."""
    waits: list[tuple[Path, Callable[[], None]]] = [(file.path, file.wait_for_device) for file in files if file.dirty]
    waits += [(path, partial(_sync_path, path)) for path in paths]
    for start in range(0, len(waits), _SYNCS_AT_A_TIME):
        _sync_some(waits[start : start + _SYNCS_AT_A_TIME])


def _sync_some(waits: list[tuple[Path, Callable[[], None]]]) -> None:
    for path, _ in waits:  # told of by us, in order: who watches may have effects of his own, threads and all
        with _effect("sync", path):
            pass
    if len(waits) == 1:
        _synced(*waits[0])
    else:
        in_threads([partial(_synced, *wait) for wait in waits], _SYNCS_AT_ONCE)


def _synced(path: Path, sync: Callable[[], None]) -> None:
    try:
        sync()
    except OSError as error:
        raise storage_error(f"sync of {path}", error) from error


def remove(path: Path) -> None:
    """Remove a file or a whole directory; nothing there is no error."""
    with _effect("remove", path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Bytes that an ordinary user can still write where `path` is, or will be."""
    while not path.exists():
        path = path.parent
    stats = os.statvfs(path)
    return stats.f_bavail * stats.f_frsize
