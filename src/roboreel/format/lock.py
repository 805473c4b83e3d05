"""One writer at a time: an advisory lock on a file in the dataset directory, and a note of who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import filelock

from roboreel.errors import DatasetLockedError, RoboreelError, StorageError
from roboreel.format import files, paths

_ACQUIRE_TIMEOUT_S = 0.2
"""A reader that asks whether a writer lives holds the lock for an instant; that must not look like a writer."""
WAIT_FOR_SNAPSHOT_S = 60.0
"""How long a writer waits for a process that holds the lock only to take a snapshot."""
_PAUSE_S = 0.001
_NOTE_TIMEOUT_S = 0.5
_NOTE_PAUSE_S = 0.01


class WriterLock:
    """Held from construction to `release()`; `DatasetLockedError` names the holder.

    Who holds it `for_snapshot` lets go of it soon: others wait for that, up to `WAIT_FOR_SNAPSHOT_S`.

    `StorageDirCorruptError` where a link, or anything else, stands in the place of a file or directory of a dataset.
    """

    def __init__(self, root: Path, *, for_snapshot: bool = False) -> None:
        for name in paths.ENTRIES:  # what is written through a link, or swept, would be somebody else's
            (files.check_dir if name in paths.DIRECTORIES else files.check_file)(root / name)
        self._root = root
        self._pid = os.getpid()
        self._lock = filelock.FileLock(root / paths.LOCK, thread_local=False)
        self._acquire(0.0 if for_snapshot else WAIT_FOR_SNAPSHOT_S)
        holder = {"pid": self._pid, "host": socket.gethostname(), "since": time.time()}
        if for_snapshot:
            holder["snapshot"] = True
        self._note = json.dumps(holder).encode()
        try:
            self._put_note()
        except BaseException:
            self._lock.release(force=True)
            raise

    def _acquire(self, wait_s: float) -> None:
        """Take the lock; wait for so long where it is held for a snapshot."""
        deadline, unnamed = time.monotonic() + wait_s, False
        while True:
            try:
                self._lock.acquire(timeout=_ACQUIRE_TIMEOUT_S, poll_interval=0.01)
            except filelock.Timeout:
                holder = _holder(self._root)
                if holder is None and not unnamed:
                    unnamed = True  # it may have let go of note and lock since: once more
                elif holder is None or not holder.for_snapshot:
                    name = holder or "another process"
                    raise DatasetLockedError(f"{self._root} is being written by {name}; {_ADVICE}") from None
                elif time.monotonic() > deadline:
                    raise DatasetLockedError(
                        f"{self._root}: {holder} takes a snapshot of it, and was waited for {wait_s:g} s; try again"
                    ) from None
            except OSError as error:
                raise files.storage_error(f"locking {self._root}", error) from error
            else:
                return

    def _put_note(self) -> None:
        """Say who holds the lock; where that fails, nobody is said to: the note is for people, the lock counts."""
        note, temporary = self._root / paths.LOCK_OWNER, self._root / (paths.LOCK_OWNER + paths.TEMPORARY)
        try:
            files.write_new(temporary, self._note)
            files.rename(temporary, note)
        except StorageError:
            for path in (temporary, note):  # what a dead holder has left there would be told
                with contextlib.suppress(StorageError):
                    files.remove(path)

    @property
    def is_owned(self) -> bool:
        """Whether this is the process that took it; a forked child shares the files but not the lock."""
        return os.getpid() == self._pid

    def check_owned(self) -> None:
        """Refuse to go on in a forked child."""
        if not self.is_owned:
            raise DatasetLockedError(
                f"{self._root} is being written by process {self._pid}, from which this one was forked; {_ADVICE}"
            )

    def release(self) -> None:
        if not self.is_owned:
            return
        try:
            with contextlib.suppress(OSError, RoboreelError):
                if files.read_file(self._root / paths.LOCK_OWNER) == self._note:  # else the directory was exchanged
                    files.remove(self._root / paths.LOCK_OWNER)
        finally:
            self._lock.release(force=True)


_ADVICE = "wait until it has called close(), or open with readonly=True to read meanwhile"


@dataclass(frozen=True)
class _Holder:
    pid: int
    host: str
    for_snapshot: bool

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


def _holder(root: Path) -> _Holder | None:
    """Tell who holds the lock; who has only just taken it may not have said so yet."""
    deadline = time.monotonic() + _NOTE_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            note = json.loads(files.read_file(root / paths.LOCK_OWNER))
            holder = _Holder(int(note["pid"]), str(note["host"]), note.get("snapshot") is True)
            if holder.host != socket.gethostname() or _is_running(holder.pid):
                return holder
        if time.monotonic() > deadline:
            return None
        time.sleep(_NOTE_PAUSE_S)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def writer_is_alive(root: Path) -> bool:
    """Whether some process holds the writer's lock; needs no permission to write."""
    try:
        fd = os.open(root / paths.LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


_in_process = threading.Lock()


@contextlib.contextmanager
def shared_lock(path: Path, timeout_s: float) -> Iterator[bool]:
    """Hold a lock that many processes take in turn, each for an instant; gives whether it could be had in time.

    A lock of this kind is released by the kernel with the process that holds it, however that ends, and no forked child
    inherits it. It is also lost when *any* descriptor of the file is closed, so one thread of a process at a time
    opens and closes it.

    Raises:
        StorageError: the file cannot be made, or its file system knows no locks.
    """
    with _in_process:
        fd = _locked(path, time.monotonic() + timeout_s)
        try:
            yield fd is not None
        finally:
            if fd is not None:
                os.close(fd)


def _locked(path: Path, deadline: float) -> int | None:
    while True:
        try:
            with files._effect("create", path):
                fd = files._open_regular(path, os.O_RDWR | os.O_CREAT)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None  # the directory has just been removed
            raise
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd  # else its directory was removed while we waited
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(fd)
                raise files.storage_error(f"locking {path}", error) from error
        os.close(fd)
        if time.monotonic() > deadline:
            return None
        time.sleep(_PAUSE_S)


def _renew_in_process() -> None:
    """The thread that held it when the process was forked is not there to release it."""
    global _in_process  # noqa: PLW0603 - a lock cannot be renewed in place
    _in_process = threading.Lock()


os.register_at_fork(after_in_child=_renew_in_process)


@lru_cache(maxsize=1)
def boot_id() -> bytes:
    """16 bytes that change with every boot of the machine; zeros where the system does not tell."""
    try:
        return parse_boot_id(Path("/proc/sys/kernel/random/boot_id").read_text())
    except OSError:
        pass
    try:  # macOS
        command = ["sysctl", "-n", "kern.bootsessionuuid"]
        return parse_boot_id(subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout)
    except (OSError, subprocess.SubprocessError):
        return bytes(16)


def parse_boot_id(text: str) -> bytes:
    """Return the bytes of the UUID that Linux and macOS tell; zeros for anything else.

    >>> parse_boot_id("0F0E0D0C-0B0A-0908-0706-050403020100" + chr(10)).hex()
    '0f0e0d0c0b0a09080706050403020100'
    """
    try:
        return uuid.UUID(text.strip()).bytes
    except ValueError:
        return bytes(16)
