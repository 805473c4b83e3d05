"""Who is named when a second writer is refused: the one that holds the lock, or nobody; never somebody who is gone."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path

import filelock
import pytest

from roboreel import DatasetLockedError
from roboreel.format import lock as locking
from roboreel.format.files import observed
from roboreel.format.lock import WriterLock

NOBODY = "is being written by another process; wait until"


def note(pid: int, host: str | None = None) -> bytes:
    return json.dumps({"pid": pid, "host": host or socket.gethostname(), "since": 0}).encode()


def dead_process() -> int:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def refusal(root: Path) -> str:
    with pytest.raises(DatasetLockedError) as caught:
        WriterLock(root)
    return str(caught.value)


def test_the_holder_is_named_while_it_holds_the_lock(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path)
    assert f"is being written by process {os.getpid()} on host {socket.gethostname()}" in refusal(tmp_path)
    lock.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["writer.lock"]
    WriterLock(tmp_path).release()


@pytest.mark.parametrize("at", ["write", "rename"])
def test_where_the_note_cannot_be_written_nobody_else_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(locking, "_NOTE_TIMEOUT_S", 0.0)
    (tmp_path / "writer.json").write_bytes(note(os.getpid()))  # left by somebody whose number runs again

    def fail(kind: str, path: Path) -> None:
        if kind == at and path.name.startswith("writer.json"):
            raise OSError(28, "made to fail")

    with observed(fail):
        lock = WriterLock(tmp_path)
    assert NOBODY in refusal(tmp_path)
    lock.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["writer.lock"]


@pytest.mark.parametrize("stale", [True, False])
def test_who_has_just_taken_the_lock_is_waited_for_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    monkeypatch.setattr(locking, "_NOTE_TIMEOUT_S", 0.0)
    if stale:
        (tmp_path / "writer.json").write_bytes(note(dead_process()))
    lock = filelock.FileLock(tmp_path / "writer.lock", thread_local=False)
    with lock:
        assert NOBODY in refusal(tmp_path)

        def write_note() -> None:
            (tmp_path / "new").write_bytes(note(os.getppid()))
            (tmp_path / "new").rename(tmp_path / "writer.json")

        monkeypatch.setattr(locking, "_NOTE_TIMEOUT_S", 60.0)
        timer = threading.Timer(0.25, write_note)  # after the 0.2 s for which the lock is waited for
        timer.start()
        assert f"process {os.getppid()} on" in refusal(tmp_path)
        timer.join()


def test_a_process_of_another_host_is_believed(tmp_path: Path) -> None:
    with filelock.FileLock(tmp_path / "writer.lock", thread_local=False):
        (tmp_path / "writer.json").write_bytes(note(dead_process(), "elsewhere"))
        assert "on host elsewhere" in refusal(tmp_path)


def test_a_note_in_a_directory_that_took_the_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    lock = WriterLock(tmp_path / "place")
    (tmp_path / "place").rename(tmp_path / "old")
    (tmp_path / "place").mkdir()
    other = WriterLock(tmp_path / "place")
    lock.release()
    assert f"process {os.getpid()} " in refusal(tmp_path / "place")
    other.release()


def test_who_only_takes_a_snapshot_is_waited_for(tmp_path: Path) -> None:
    held = WriterLock(tmp_path, for_snapshot=True)
    timer = threading.Timer(0.5, held.release)
    timer.start()
    WriterLock(tmp_path).release()  # not refused after the 0.2 s for which a writer is waited for
    timer.join()


def test_nobody_is_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "WAIT_FOR_SNAPSHOT_S", 0.0)
    held = WriterLock(tmp_path, for_snapshot=True)
    assert f"process {os.getpid()} on host {socket.gethostname()} takes a snapshot of it" in refusal(tmp_path)
    held.release()
    WriterLock(tmp_path).release()


def test_a_lock_that_is_let_go_of_while_its_holder_is_looked_for_is_taken(tmp_path: Path) -> None:
    lock = filelock.FileLock(tmp_path / "writer.lock", thread_local=False)
    lock.acquire()
    timer = threading.Timer(0.4, lock.release)  # its note has gone before it
    timer.start()
    WriterLock(tmp_path).release()
    timer.join()
