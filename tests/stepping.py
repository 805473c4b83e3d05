"""A write that does one file effect at a time, and a read that lets it go on wherever the two can meet."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import StorageError
from roboreel.columns.base import Frames
from roboreel.format.files import observed
from roboreel.store import Store

ALL = 10_000
"""More effects than any write here has."""


class Stepping:
    """A write in a thread of its own that does one file effect at a time, when told to."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._turn, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._write = write
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._done.acquire()  # it stands before its first effect

    def _run(self) -> None:
        with observed(self._before), contextlib.suppress(StorageError):
            self._write()
        self.ended = True
        self._done.release()

    def _before(self, _kind: str, _path: Path) -> None:
        if threading.current_thread() is self._thread:
            self._done.release()
            self._turn.acquire()

    def step(self, effects: int) -> None:
        for _ in range(effects):
            if self.ended:
                return
            self._turn.release()
            self._done.acquire()


class Meeting:
    """Stops reads of this thread at every look that they take at a file, and has a write go on there.

    The looks of an attempt have names: `begin`, a look at the record before anything else; `owners`, at owner words;
    a key, at the first half of its frames, and again, at the second; `end`, at the record when all is gathered.
    From the second of a name on they are numbered: `begin 1`, `owners 1`, `action 1`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._thread = threading.current_thread()
        self._writing: Stepping | None = None
        self._at: dict[str, int] = {}
        self.looks: list[str] = []
        pread, words_at, read_key, take = os.pread, Store.words_at, Store.read_key, Store.take

        def look_at_record(fd: int, size: int, offset: int) -> bytes:
            self._look("end" if any(look.startswith("owners") for look in self.looks) else "begin")
            return pread(fd, size, offset)

        def look_at_owners(store: Store, slots: Any) -> Any:
            self._look("owners")
            return words_at(store, slots)

        def look_at_key(store: Store, key: str, frames: Frames, out: Any, *options: Any) -> None:
            middle = (len(frames.slots) + 1) // 2  # a gather is not done at once either
            for part in (slice(None, middle), slice(middle, None)):
                self._look(key)
                clips = None if frames.clips is None else frames.clips[part]
                some = Frames(frames.slots[part], frames.rows[part], frames.positions[part], clips)
                read_key(store, key, some, out[part], *options)

        def take_key(store: Store, key: str, slots: Any, out: Any = None) -> Any:
            if out is None:
                out = np.empty((*slots.shape, *store.mapped[key].shape[1:]), store.mapped[key].dtype)
            middle = (len(slots) + 1) // 2
            for part in (slice(None, middle), slice(middle, None)):
                self._look(key)
                take(store, key, slots[part], out[part])
            return out

        def take_keys(store: Store, keys: Any, slots: Any, arrays: dict[str, Any]) -> None:
            for key in keys:
                arrays[key] = take_key(store, key, slots, arrays.get(key))

        monkeypatch.setattr(os, "pread", look_at_record)
        monkeypatch.setattr(Store, "words_at", look_at_owners)
        monkeypatch.setattr(Store, "read_key", look_at_key)
        monkeypatch.setattr(Store, "take", take_key)
        monkeypatch.setattr(Store, "take_all", take_keys)

    def _look(self, what: str) -> None:
        if self._writing is None or threading.current_thread() is not self._thread:
            return
        number = sum(look.split(" ")[0] == what for look in self.looks)
        name = f"{what} {number}" if number else what
        first = "end" not in self.looks  # an attempt after the first lets the write go on: it may be waiting for it
        self._writing.step(self._at.get(name, 0) if first else 1)
        self.looks.append(name)

    @contextlib.contextmanager
    def of(self, write: Callable[[], None], at: dict[str, int]) -> Iterator[None]:
        """Have the first attempt inside meet a write, with so many of its effects before which look; then finish it."""
        self.looks, self._at, self._writing = [], at, Stepping(write)
        writing = self._writing
        try:
            yield
        finally:
            self._writing = None
            writing.step(ALL)
