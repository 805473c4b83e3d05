"""A slab: shared memory of a DataLoader's worker that holds one batch, and what its header says."""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.buffers import Lease, Memory
from roboreel.dataset.plan import aligned
from roboreel.dataset.shared import SharedMapping

HEADER_BYTES = mmap.PAGESIZE
TICKETS = 32
"""A byte each: 1 as long as somebody reads the batch sent with it. Set by the worker, cleared by the reader."""
ATTACHED, PINNED, ENDED = 32, 33, 34
"""Bytes after the tickets: the reader has mapped it; a forked process may read it for ever; the worker has ended."""
FREE = bytes(TICKETS)


class Slab:
    """Shared memory of a worker that holds one batch."""

    def __init__(self, number: int, nbytes: int) -> None:
        self.number = number
        self.fd: int | None = os.memfd_create("roboreel-batch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, HEADER_BYTES + nbytes)
            self._mapping = SharedMapping(self.fd, HEADER_BYTES + nbytes)
        except BaseException:
            os.close(self.fd)
            raise
        self.header = self._mapping.view[:HEADER_BYTES]
        self.memory = self._mapping.memory[HEADER_BYTES:]
        self.address = self.memory.ctypes.data
        self.is_leased = False
        self.round = 0
        """Of the batch that it was used for last."""

    @property
    def is_free(self) -> bool:
        return not self.is_leased and self.header[:TICKETS] == FREE

    @property
    def is_pinned(self) -> bool:
        return self.header[PINNED] != 0

    def lease(self, batch: int) -> Memory:
        self.is_leased, self.round = True, batch
        return np.asarray(Lease(self.memory, self._return))

    def _return(self, _memory: Memory) -> None:
        self.is_leased = False

    def ticket(self) -> int | None:
        """Take a ticket for one who will read the slab; None where all are taken."""
        number = bytes(self.header[:TICKETS]).find(0)
        if number < 0:
            return None
        self.header[number] = 1
        return number

    def handle(self) -> Any:
        """Return what another process opens the memory with; None once it has."""
        self.is_attached()
        return None if self.fd is None else reduction.DupFd(self.fd)

    def is_attached(self) -> bool:
        """Whether the reader has mapped it: the file need not be open any more."""
        if self.header[ATTACHED]:
            self.let_go()
        return self.fd is None

    def free(self) -> None:
        """Give the memory back to the system; nobody may be reading it."""
        self._mapping.give_back(HEADER_BYTES)
        self.let_go()

    def drop(self) -> None:
        """Use it no more; nobody reads it but who was forked meanwhile."""
        self.header[ENDED] = 1
        self.let_go() if self.is_pinned else self.free()

    def let_go(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class SlabRoom:
    """Where the arrays of one batch lie in a slab, one after the other."""

    least_bytes = 0

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._used = 0

    def holds(self, address: int) -> bool:
        """Whether an address lies in it."""
        return 0 <= address - self._memory.ctypes.data < self._memory.nbytes

    @property
    def left(self) -> int:
        """Bytes that there is still room for."""
        return self._memory.nbytes - self._used

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> NDArray[Any]:
        if aligned(nbytes) > self.left:  # more than was foreseen: then it is copied later
            return np.empty(shape, dtype)
        offset = self._used
        self._used += aligned(nbytes)
        return np.ndarray(shape, dtype, buffer=self._memory, offset=offset)
