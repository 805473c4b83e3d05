"""What a loader reads next: drawn where its batches are taken, so that it depends on nothing that a thread does."""

from __future__ import annotations

import atexit
import contextlib
import math
import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from roboreel.sampling.sampler import FrameSampler

_PAUSE_S = 0.05
_END = object()


class Drawn:
    """The batches of one iteration, as indices: `draw` puts them there, whoever iterates over it waits for them.

    A sampler that is asked for a batch looks at priorities, or at a ring, as they are then. So the thread that takes
    batches, and changes the priorities, asks; not one that reads ahead, which would be there sooner or later.
    """

    def __init__(self, sampler: Any, size: int | None) -> None:
        self._indices, self._size = iter(sampler), size
        self.left = sampler.left if isinstance(sampler, FrameSampler) else None
        """What the sampler has yet to give, where that is known."""
        self.error: Exception | None = None
        """Why nothing more could be drawn."""
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_over = False

    def draw(self, count: int = 1) -> None:
        """Draw more batches, if there are so many."""
        for _ in range(0 if self._is_over else count):
            try:
                batch = self._one()
            except Exception as error:  # noqa: BLE001 - it is told where the batch would have come
                self.error, batch = error, None
            if batch is None:
                self.close()
                return
            self._waiting.put(batch)

    def _one(self) -> Any:
        count = self._size or 1
        if self.left is not None:  # not asked for more than it has: there a sampler goes on to its next epoch
            count = min(count, self.left)
            self.left -= count
        found = list(islice(self._indices, count))
        if not found:
            return None
        return found if self._size else found[0]

    def finish(self) -> None:
        """Let the sampler go on to its next epoch: all that it gave was taken."""
        next(self._indices, None)

    def close(self) -> None:
        """Let nobody wait for more."""
        self._is_over = True
        self._waiting.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._waiting.get, None)


class Feed:
    """The batch sampler of a loader's DataLoader: gives what was `Drawn` for the next iteration."""

    def __init__(self, sampler: Any, size: int | None) -> None:
        self._sampler, self._size = sampler, size
        self._drawn: Drawn | None = None

    def begin(self) -> Drawn:
        """Begin what the next iteration gives."""
        self._drawn = Drawn(self._sampler, self._size)
        return self._drawn

    def __len__(self) -> int:
        return math.ceil(len(self._sampler) / (self._size or 1))

    def __iter__(self) -> Iterator[Any]:
        assert self._drawn is not None, "begin() first"
        return iter(self._drawn)  # also twice, which a DataLoader with workers asks for


class Ahead:
    """Items of an iterator, which a thread has ready, up to `count` of them, until it is closed."""

    def __init__(self, items: Iterator[Any], count: int) -> None:
        self._ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(count)
        self._stop = threading.Event()
        # It must not keep this object: who forgets the iteration ends it.
        self._thread = threading.Thread(
            target=_fetch, args=(items, self._ready, self._stop), name="roboreel-prefetch", daemon=True
        )
        self._thread.start()
        _close_at_exit(self)

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error = self._ready.get()
            if error is not None:
                try:
                    raise error
                finally:
                    del error  # an error that its own frame holds would keep all frames above, and what they hold
            if item is _END:
                return
            yield item
            del item

    def close(self) -> None:
        """Stop the thread, and wait for its end."""
        self._stop.set()
        self._thread.join()


def _fetch(items: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    def put(item: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put((item, error), timeout=_PAUSE_S)
                return

    try:
        for item in items:
            put(item)
            del item  # else its memory is taken until the next one is there
            if stop.is_set():
                return
        put(_END)
    except BaseException as error:  # noqa: BLE001 - it is raised where the item would have been
        put(None, error)


_open: weakref.WeakSet[Ahead] = weakref.WeakSet()


def _close_at_exit(ahead: Ahead) -> None:
    """A thread that computes while the interpreter goes aborts the process: end it first."""
    if not _registered:  # now, not on import: later than multiprocessing, so that workers are still there
        _registered.append(atexit.register(_close_all))
    _open.add(ahead)


_registered: list[Callable[[], None]] = []


def _close_all() -> None:
    for ahead in list(_open):
        ahead.close()
