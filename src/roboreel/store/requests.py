"""Asking the writer of a dataset for a snapshot: a file with the question in its directory, a file with the answer.

Whoever asks holds a lock on the question for as long as it waits, so that a question that nobody waits for any more is
told by the kernel, also across containers, where process numbers say nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roboreel import errors
from roboreel.errors import DatasetBusyError, RoboreelError, StorageDirCorruptError, StorageError
from roboreel.format import clone, files, paths
from roboreel.format.lock import writer_is_alive
from roboreel.store.cloning import SnapshotReport

_QUESTION, _ANSWER = ".request", ".reply"
_PAUSE_S = 0.01
_TRIES = 100


# The writer's side


def serve(root: Path, snapshot: Callable[[Path], SnapshotReport]) -> None:
    """Answer everybody who waits and sweep what nobody waits for. What goes wrong is the asker's to hear, not ours."""
    if not os.path.exists(os.path.join(root, paths.REQUESTS)):  # a look of 2 us, because it is taken at each episode
        return
    folder = root / paths.REQUESTS
    if folder.is_symlink():  # what we sweep there would be somebody else's
        return
    with contextlib.suppress(OSError):
        for question in sorted(folder.glob("*" + _QUESTION)):
            if _is_waited_for(question) and not question.with_suffix(_ANSWER).exists():
                _answer(question, snapshot)
        for answer in folder.iterdir():
            if answer.suffix in (_ANSWER, paths.TEMPORARY) and not answer.with_suffix(_QUESTION).exists():
                files.remove(answer)
        clone.remove_if_empty(folder)


def _answer(question: Path, snapshot: Callable[[Path], SnapshotReport]) -> None:
    try:
        asked = json.loads(files.read_file(question))
    except (OSError, ValueError, RoboreelError, RecursionError):  # being written, or gone
        return
    try:
        reply = asdict(snapshot(Path(asked["dest"])))
    except Exception as error:  # noqa: BLE001 - whatever it is, adding episodes goes on
        reply = {"error": type(error).__name__, "message": str(error)}
    temporary = question.with_suffix(paths.TEMPORARY)
    files.write_new(temporary, json.dumps(reply).encode())
    files.rename(temporary, question.with_suffix(_ANSWER))


def _is_waited_for(question: Path) -> bool:
    """Whether somebody holds its lock; else it is removed, under our lock: whoever comes for it then sees it gone."""
    try:
        fd = files.open_to_read(question)
    except (FileNotFoundError, StorageDirCorruptError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.remove(question)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# The asker's side


def ask(root: Path, dest: Path, deadline: float) -> SnapshotReport | None:
    """Have the writer of `root` take a snapshot; None where it ended without an answer.

    Args:
        root: The dataset.
        dest: Where the snapshot goes, as the writer will find it.
        deadline: Of `time.monotonic`.

    Raises:
        DatasetBusyError: no answer until then.
        StorageError: the question cannot be put into the directory.
        RoboreelError: what went wrong for the writer.
    """
    with _asked(root, dest) as question:
        answer = question.with_suffix(_ANSWER)
        while True:
            is_alive = writer_is_alive(root)  # looked at first: it may answer and end between the two looks
            if answer.exists():
                return _parse(json.loads(answer.read_bytes()))
            if not is_alive:
                return None
            if time.monotonic() > deadline:
                raise DatasetBusyError(
                    f"the process that is writing {root} has not made the snapshot in time: it only answers when it "
                    "adds an episode or flushes; ask again with a longer timeout_s, or have it call snapshot() itself"
                )
            time.sleep(_PAUSE_S)


@contextlib.contextmanager
def _asked(root: Path, dest: Path) -> Iterator[Path]:
    question = root / paths.REQUESTS / f"{os.getpid()}-{uuid.uuid4().hex}{_QUESTION}"
    fd = _put(question, json.dumps({"dest": str(dest)}).encode())
    try:
        yield question
    finally:
        for path in (question, question.with_suffix(_ANSWER)):
            with contextlib.suppress(StorageError):
                files.remove(path)
        os.close(fd)
        with contextlib.suppress(StorageError):
            clone.remove_if_empty(question.parent)


def _put(question: Path, data: bytes) -> int:
    """Write and lock the question; until it is locked, or its folder has a file, a writer may sweep it away."""
    for _ in range(_TRIES):
        files.check_dir(question.parent)
        try:
            files.make_dir(question.parent)
            files.write_new(question, data)
            fd = os.open(question, os.O_RDONLY | os.O_CLOEXEC)
        except (StorageError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError):
                continue
            raise
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.path.exists(question):
            return fd
        os.close(fd)
    raise StorageError(f"{question} vanishes as soon as it is written; is another program cleaning {question.parent}?")


def _parse(reply: dict[str, Any]) -> SnapshotReport:
    """Return what the writer reports, or raise its error."""
    if "error" not in reply:
        return SnapshotReport(**reply)
    kind = getattr(errors, reply["error"], StorageError)
    if not (isinstance(kind, type) and issubclass(kind, RoboreelError)):
        kind = StorageError
    raise kind(f"{reply['message']} (said by the process that is writing the dataset)")
