"""Memory of a file, mapped without keeping the file open.

`mmap.mmap` keeps a file descriptor a mapping (before Python 3.13 always), of which a process has 1,024 by default: who
keeps more batches than that in memory would run out of them.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import weakref
from typing import Any

import numpy as np

from roboreel.dataset.buffers import Memory


class SharedMapping:
    """A file's first `nbytes`, shared, to read and to write; there until its last array has gone."""

    def __init__(self, fd: int, nbytes: int) -> None:
        libc = _libc()
        address = libc.mmap(None, nbytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        owner = (ctypes.c_ubyte * nbytes).from_address(address)
        # Not at exit: tensors may be read until the very end, and the memory goes with the process.
        weakref.finalize(owner, libc.munmap, address, nbytes).atexit = False
        self._address = address
        self.view = memoryview(owner).cast("B")
        self.memory: Memory = np.frombuffer(self.view, np.uint8)

    def give_back(self, offset: int) -> None:
        """Give the memory from `offset`, whole pages, back to the system; what is there reads 0 from then on.

        A system that cannot lets it be.
        """
        _libc().madvise(self._address + offset, self.memory.nbytes - offset, mmap.MADV_REMOVE)


@functools.cache
def _libc() -> Any:
    libc: Any = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
