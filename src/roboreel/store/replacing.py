"""Where a snapshot goes: built beside its place and exchanged with what is there, so that it is never half done.

`ckpt` is built as `.ckpt.snapshot`. Whoever builds holds a lock on that directory itself: a kill lets go of it, the
next one sees that and sweeps.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from roboreel.errors import DatasetLockedError, InvalidArgumentError, RoboreelError, StorageError
from roboreel.format import clone, files, paths
from roboreel.format.lock import WriterLock, writer_is_alive
from roboreel.format.manifest import Manifest
from roboreel.store.leftovers import foreign_files
from roboreel.store.store import Store

SNAPSHOT = "snapshot"
"""The field of a snapshot's provenance that says of what: `uuid` and `generation` of the dataset, and the `origin` of
it all, which snapshots of snapshots have in common."""

_TRIES = 10


def origin_of(manifest: Manifest) -> str:
    """The UUID of the dataset that a snapshot, or a snapshot of one, was first taken of."""
    told = manifest.provenance.get(SNAPSHOT)
    return str(told["origin"]) if isinstance(told, dict) and "origin" in told else manifest.uuid


def parse_dest(root: Path, dest: Path) -> Path:
    """Return the place without links in its path; refuse one that overlaps with the dataset in `root`."""
    _check_name(dest)
    here, there = Path(os.path.realpath(root)), Path(os.path.realpath(dest))
    if here == there or here in there.parents:
        raise InvalidArgumentError(f"a snapshot of {root} cannot go to {dest}, which lies in it; give a place outside")
    if there in here.parents or here in (_build_path(there), _aside_path(there)):
        raise InvalidArgumentError(f"a snapshot of {root} cannot go to {dest}: the dataset would be replaced by it")
    return there


_MAX_NAME_BYTES, _MAX_PATH_BYTES = 255, 4000
"""Of Linux and macOS, the latter less what is within a dataset (macOS itself refuses longer ones than 1024)."""


def _check_name(dest: Path) -> None:
    parts = [os.fsencode(part) for part in _aside_path(Path(os.path.abspath(dest))).parts]
    if b"\0" in os.fsencode(dest):
        reason = "it has a zero byte in it"
    elif max(map(len, parts)) > _MAX_NAME_BYTES or sum(map(len, parts)) + len(parts) > _MAX_PATH_BYTES:
        reason = f"its name is too long, of at most {_MAX_NAME_BYTES} bytes with '.' and '.snapshot-old' around it"
    else:
        return
    raise InvalidArgumentError(f"{str(dest)[:80]!r} cannot be the place of a snapshot: {reason}; give another one")


def earlier_snapshot(dest: Path, origin: str) -> Store | None:
    """Open the snapshot that is to be replaced; None where the place is free.

    Raises:
        InvalidArgumentError: what is there is not an unchanged snapshot of the same dataset. It is left alone: a path
            typed wrongly must not cost anybody a dataset.
        DatasetLockedError: somebody is writing it.
    """
    if not dest.exists():
        return None
    if not dest.is_dir():
        raise InvalidArgumentError(f"{dest} is a file; give a directory for the snapshot")
    names = {path.name for path in dest.iterdir()}
    if not names:
        return None
    foreign = sorted(names - paths.ENTRIES if paths.METADATA in names else names)
    if foreign:
        raise InvalidArgumentError(f"{dest} holds other things ({', '.join(foreign[:5])}); {_ADVICE}")
    if writer_is_alive(dest):
        raise DatasetLockedError(f"{dest} is being written by some process; {_WAIT}")
    try:
        store = Store.open(dest)
    except RoboreelError as error:
        raise InvalidArgumentError(f"{dest} is no snapshot that can be read ({error}); {_ADVICE}") from error
    told = store.manifest.provenance.get(SNAPSHOT)
    if deeper := [str(path.relative_to(dest)) for path in foreign_files(store)]:
        reason = f"holds other things ({', '.join(deeper[:5])})"
    elif not isinstance(told, dict):
        reason = "is a dataset, not a snapshot"
    elif told.get("origin") != origin:
        reason = "is a snapshot of another dataset"
    elif told.get("generation") != store.state.generation:
        reason = "is a snapshot that was written to since it was taken"
    else:
        return store
    store.close()
    raise InvalidArgumentError(f"{dest} {reason}; {_ADVICE}")


_ADVICE = "give a new place, or that of an earlier snapshot of this dataset, or remove it first"


@contextlib.contextmanager
def building(dest: Path) -> Iterator[Path]:
    """Give an empty directory beside `dest`; what is left of it in the end is swept.

    Raises:
        DatasetLockedError: another process is making a snapshot there.
    """
    missing = [path for path in dest.parents if not path.exists()]
    build = _build_path(dest)
    try:
        files.make_dir(dest.parent)
        with _claimed(build):
            try:
                _put_back(dest)
                yield build
                for path in missing:
                    files.sync_path(path.parent)
            except BaseException:
                with contextlib.suppress(OSError):  # else the next one sweeps it
                    files.remove(build)
                raise
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: not ours alone
            for path in missing:
                path.rmdir()
        raise


def put_in_place(build: Path, dest: Path) -> None:
    """Have the finished directory take the place of what is there, which is removed; durable when this returns."""
    if not dest.exists() or not any(dest.iterdir()):
        files.rename(build, dest)  # also over an empty directory
        files.sync_path(dest.parent)
        return
    with _replaceable(dest), directory_lock(dest):
        if not clone.exchange(build, dest):
            _rename_both(build, dest)
        files.sync_path(dest.parent)
        for old in (build, _aside_path(dest)):
            with contextlib.suppress(StorageError):  # the snapshot is there; the next one sweeps
                files.remove(old)


def _rename_both(build: Path, dest: Path) -> None:
    """Exchange where the system cannot: after a kill between the two, `_put_back` of the next one mends it."""
    aside = _aside_path(dest)
    files.rename(dest, aside)
    try:
        files.rename(build, dest)
    except BaseException:
        files.rename(aside, dest)
        raise


def _put_back(dest: Path) -> None:
    aside = _aside_path(dest)
    if not aside.exists():
        return
    _check_ours(aside)
    if dest.exists():
        files.remove(aside)
    else:
        files.rename(aside, dest)


def _build_path(dest: Path) -> Path:
    return dest.with_name(f".{dest.name}.snapshot")


def _aside_path(dest: Path) -> Path:
    return dest.with_name(f".{dest.name}.snapshot-old")


def has_leftovers(dest: Path) -> bool:
    """Whether somebody is building what is to go there, or has died at it, or could not sweep."""
    return _build_path(dest).exists() or _aside_path(dest).exists()


@contextlib.contextmanager
def _claimed(build: Path) -> Iterator[None]:
    """Hold the lock on a directory that was not there before."""
    for _ in range(_TRIES):
        if build.exists():
            _check_ours(build)
            with directory_lock(build):
                files.remove(build)
        if not files.make_dir(build):
            continue
        with directory_lock(build) as is_there:
            if is_there:
                yield
                return
    raise DatasetLockedError(f"another process is making a snapshot in {build}; {_WAIT}")


_WAIT = "wait until it is done, or give another place"


def _check_ours(leftover: Path) -> None:
    foreign = sorted(path.name for path in leftover.iterdir() if path.name not in paths.ENTRIES)
    if foreign:
        raise InvalidArgumentError(
            f"{leftover}, where a snapshot would be built, holds other things ({', '.join(foreign[:5])}); move it away"
        )


@contextlib.contextmanager
def directory_lock(path: Path, what: str = "making a snapshot in") -> Iterator[bool]:
    """Lock a directory without a file in it; gives whether the path still leads to what was locked.

    Raises:
        DatasetLockedError: another process is doing `what` there.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    except OSError as error:
        raise files.storage_error(f"opening {path}", error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise DatasetLockedError(f"another process is {what} {path}; {_WAIT}") from None
            # a network file system that locks no directories: there the caller takes care that only one builds
        yield os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path))
    finally:
        os.close(fd)


@contextlib.contextmanager
def _replaceable(dest: Path) -> Iterator[None]:
    """Hold the writer's lock of what is replaced, until it is gone: nobody may begin to write what goes away."""
    lock = WriterLock(dest)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for name in (paths.LOCK, paths.LOCK_OWNER):  # a snapshot has none
                files.remove(dest / name)
        raise
    finally:
        lock.release()
