"""Memory for batches, used again once whoever was given it has let go.

A fresh array of some tens of MB costs ten times what filling it does: the system hands out its pages one fault at a
time. A batch that somebody keeps stays as it is, however long; then the next one takes new memory.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Memory = NDArray[np.uint8]

_LEAST_BYTES = 1 << 17
"""Smaller arrays come out of the allocator's own store, which faults no pages."""
_IDLE_ROUNDS = 4
"""Batches after which memory that none of them needed goes back to the system."""


class Room(Protocol):
    """Where the arrays of a batch come from."""

    @property
    def least_bytes(self) -> int:
        """Smaller arrays may come from anywhere."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> NDArray[Any]:
        """Return an array, of so many bytes, that holds anything."""


class New:
    """Memory of its own for each array."""

    least_bytes = sys.maxsize

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> NDArray[Any]:  # noqa: ARG002
        return np.empty(shape, dtype)


class Lease:
    """Memory as long as any array, or tensor, of it is there; then it is given back.

    numpy keeps the exporter of an array's memory alive through all its views. An array could not stand here: numpy has
    views refer to the array at the bottom, so that its finalizer would run while they live.
    """

    def __init__(self, memory: Memory, give_back: Callable[[Memory], None]) -> None:
        self._memory = memory
        self._give_back = give_back
        self._pid = os.getpid()
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        if os.getpid() == self._pid:  # else a forked child drops what it inherited, and its parent still reads
            self._give_back(self._memory)


class Buffers:
    """The memory that the batches of one dataset take turns with, in one process. Threads may share it."""

    least_bytes = _LEAST_BYTES

    def __init__(self) -> None:
        _ALL.add(self)
        self._lock = threading.Lock()
        self._free: list[tuple[Memory, int]] = []
        """With the round in which it was given back."""
        self._round = 0

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()  # another process begins with none

    def next_round(self) -> None:
        """Begin a batch: what has been lying idle goes."""
        with self._lock:
            self._round += 1
            if self._free and self._round - self._free[0][1] > _IDLE_ROUNDS:
                self._free = [free for free in self._free if self._round - free[1] <= _IDLE_ROUNDS]

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> NDArray[Any]:
        if nbytes < _LEAST_BYTES:
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, buffer=np.asarray(Lease(self._taken(nbytes), self._give_back)))

    def _taken(self, nbytes: int) -> Memory:
        with self._lock:
            for i, (memory, _) in enumerate(self._free):
                if nbytes <= memory.nbytes <= nbytes + nbytes // 4:
                    del self._free[i]
                    return memory
        return np.empty(nbytes, np.uint8)

    def _give_back(self, memory: Memory) -> None:
        # Without the lock, which the thread that the garbage collector came up in may hold; appending is atomic.
        self._free.append((memory, self._round))

    def _begin_anew(self) -> None:
        self._lock, self._free = threading.Lock(), []


_ALL: weakref.WeakSet[Buffers] = weakref.WeakSet()


def _after_fork() -> None:
    """A thread that held a lock when the process was forked is not there to release it."""
    for buffers in list(_ALL):
        buffers._begin_anew()


os.register_at_fork(after_in_child=_after_fork)
