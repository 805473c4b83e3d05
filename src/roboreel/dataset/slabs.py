"""Batches on their way from a DataLoader's worker to the process that trains: in shared memory, used again.

torch sends each tensor of a batch in a shared file of its own, made, mapped and removed each time. Here a worker keeps
a few *slabs*; a batch is gathered straight into one and sent as a note of where its tensors lie. Whoever receives it
reads the slab, and when the last tensor is gone sets a byte in its header: the worker may fill it anew. No batch
that somebody keeps is ever touched, and where no slab is free there is a new one. The memory is anonymous
(`memfd_create`): nothing is left behind by a kill, and `/dev/shm`, small in containers, is not needed.
"""

from __future__ import annotations

import functools
import mmap
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import reduction, util
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.buffers import Lease, Memory
from roboreel.dataset.plan import aligned
from roboreel.dataset.shared import SharedMapping

_HEADER_BYTES = mmap.PAGESIZE
_TICKETS = 32
"""A byte each: 1 as long as somebody reads the batch sent with it. Set by the worker, cleared by the reader."""
_ATTACHED, _PINNED, _ENDED = 32, 33, 34
"""Bytes after the tickets: the reader has mapped it; a forked process may read it for ever; the worker has ended."""
_FREE = bytes(_TICKETS)
_MOST_SLABS = 1 << 14
"""Of a worker: beyond, batches travel as torch sends them. A process may have some 65,000 mappings."""
_LOOKED_AT = 64
"""So many slabs are asked whether they are free; where somebody keeps more than that, the next batch asks others."""

_HAS_SLABS = hasattr(os, "memfd_create")

WorkerKey = tuple[int, int]
"""Process id, and a number drawn at random: ids come again."""
Note = tuple[int, str, tuple[int, ...], tuple[int, ...]]
"""Of a tensor in a slab: offset in bytes, dtype, shape, strides."""


class WorkerBatch(dict[str, Any]):
    """A batch that a worker has made: a dict, which comes out of the DataLoader as a plain one."""


class Slab:
    """Shared memory of a worker that holds one batch."""

    def __init__(self, number: int, nbytes: int) -> None:
        self.number = number
        self.fd: int | None = os.memfd_create("roboreel-batch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, _HEADER_BYTES + nbytes)
            self._mapping = SharedMapping(self.fd, _HEADER_BYTES + nbytes)
        except BaseException:
            os.close(self.fd)
            raise
        self.header = self._mapping.view[:_HEADER_BYTES]
        self.memory = self._mapping.memory[_HEADER_BYTES:]
        self.address = self.memory.ctypes.data
        self.is_leased = False

    @property
    def is_free(self) -> bool:
        return not self.is_leased and self.header[:_TICKETS] == _FREE

    @property
    def is_pinned(self) -> bool:
        return self.header[_PINNED] != 0

    def lease(self) -> Memory:
        self.is_leased = True
        return np.asarray(Lease(self.memory, self._return))

    def _return(self, _memory: Memory) -> None:
        self.is_leased = False

    def ticket(self) -> int | None:
        """Take a ticket for one who will read the slab; None where all are taken."""
        number = bytes(self.header[:_TICKETS]).find(0)
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
        if self.header[_ATTACHED]:
            self.let_go()
        return self.fd is None

    def free(self) -> None:
        """Give the memory back to the system; nobody may be reading it."""
        self._mapping.give_back(_HEADER_BYTES)
        self.let_go()

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

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> NDArray[Any]:
        offset = self._used
        self._used += aligned(nbytes)
        return np.ndarray(shape, dtype, buffer=self._memory, offset=offset)


class Slabs:
    """Those of one worker."""

    def __init__(self) -> None:
        self.key = (os.getpid(), secrets.randbits(63))
        self._slabs: deque[Slab] = deque()
        """Those looked at last, and the newest, at the end."""
        self._unattached: list[Slab] = []
        self._made = 0
        self._lock = threading.Lock()
        util.Finalize(None, self._end, exitpriority=100)

    def room(self, nbytes: int) -> SlabRoom | None:
        """Return room for a batch; None where there is none to be had."""
        with self._lock:
            self._unattached = [slab for slab in self._unattached if not slab.is_attached()]
            slab = self._free_slab(nbytes) or self._new_slab(nbytes)
            return None if slab is None else SlabRoom(slab.lease())

    def _free_slab(self, nbytes: int) -> Slab | None:
        for _ in range(min(len(self._slabs), _LOOKED_AT)):
            slab = self._slabs.popleft()
            if not slab.is_free:
                self._slabs.append(slab)
                continue
            if not slab.is_pinned and nbytes <= slab.memory.nbytes <= 2 * nbytes + _HEADER_BYTES:
                self._slabs.append(slab)
                return slab
            slab.header[_ENDED] = 1
            slab.let_go() if slab.is_pinned else slab.free()
        return None

    def _new_slab(self, nbytes: int) -> Slab | None:
        if len(self._slabs) >= _MOST_SLABS:
            return None
        try:
            slab = Slab(self._made, max(nbytes, 1))
        except OSError:  # too many open files, no memory, or a system that allows none
            return None
        self._made += 1
        self._slabs.append(slab)
        self._unattached.append(slab)
        return slab

    def handle(self, slab: Slab) -> Any:
        """As the slab's; for the thread that sends, while another one takes room."""
        with self._lock:
            return slab.handle()

    def holding(self, address: int) -> Slab | None:
        """The slab that an address lies in."""
        with self._lock:
            of_it = (slab for slab in reversed(self._slabs) if 0 <= address - slab.address < slab.memory.nbytes)
            return next(of_it, None)

    def _end(self) -> None:
        """When the worker ends: give back what nobody reads, and have the reader forget the rest when it is done."""
        for slab in self._slabs:
            slab.header[_ENDED] = 1
            if slab.is_free and not slab.is_pinned:
                slab.free()


_own: Slabs | None = None


def _own_slabs() -> Slabs | None:
    """The slabs of this process, if it is a worker; None where there can be none."""
    global _own  # noqa: PLW0603 - one a process
    if not _HAS_SLABS:
        return None
    if _own is None or _own.key[0] != os.getpid():
        _own = Slabs()
    return _own


def room_to_send(nbytes: int) -> SlabRoom | None:
    """Return room for the arrays of a batch that goes to another process; None where there is none to be had."""
    slabs = _own_slabs()
    return None if slabs is None else slabs.room(nbytes)


def to_send(batch: dict[str, Any]) -> WorkerBatch:
    """Return a batch of which all tensors that can be lie in a slab; where none does, they are copied there."""
    import torch

    slabs = _own_slabs()
    loose = {key: value for key, value in batch.items() if _is_plain(torch, value)}
    if slabs is None or any(slabs.holding(tensor.data_ptr()) for tensor in loose.values()):
        return WorkerBatch(batch)
    room = slabs.room(sum(aligned(tensor.nbytes) for tensor in loose.values()))
    if room is None:
        return WorkerBatch(batch)
    packed = WorkerBatch(batch)
    for key, tensor in loose.items():
        packed[key] = _copied(torch, tensor, room)
    return packed


def _copied(torch: Any, tensor: Any, room: SlabRoom) -> Any:
    """Copy a tensor into a slab, in the order in which its numbers lie."""
    order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
    array = tensor.permute(order).numpy()
    copy = room.empty(array.shape, array.dtype, array.nbytes)
    copy[...] = array
    return torch.from_numpy(copy).permute(np.argsort(order).tolist())


def _is_plain(torch: Any, value: Any) -> bool:
    """Whether numpy could hold it."""
    return (
        type(value) is torch.Tensor
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.requires_grad
        and not value.dtype.is_complex
        and _has_numpy(torch, value.dtype)
        and not value.is_quantized
    )


@functools.cache
def _has_numpy(torch: Any, dtype: Any) -> bool:
    """Whether numpy has numbers of this kind: of bfloat16 and the float8s it has not."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return False
    return True


def _reduce(batch: WorkerBatch) -> tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]:
    """Say where the tensors lie; called by the thread that sends batches."""
    import torch

    plain = {key: value.numpy() for key, value in batch.items() if _is_plain(torch, value)}
    slab = None
    if _own is not None and plain:
        slab = _own.holding(next(iter(plain.values())).ctypes.data)
    ticket = None if slab is None else slab.ticket()
    if slab is None or ticket is None or _own is None:
        return dict, (dict(batch),)
    notes: dict[str, Note] = {}
    for key, array in plain.items():
        offset = array.ctypes.data - slab.address
        if 0 <= offset < slab.memory.nbytes:
            notes[key] = (offset, array.dtype.str, array.shape, array.strides)
    others = {key: value for key, value in batch.items() if key not in notes}
    return _received, (_own.key, slab.number, slab.memory.nbytes, _own.handle(slab), ticket, list(batch), notes, others)


ForkingPickler.register(WorkerBatch, _reduce)


@dataclass(eq=False)
class _Attached:
    """A worker's slab, mapped by the process that reads it."""

    mapping: SharedMapping
    header: memoryview = field(init=False)
    memory: Memory = field(init=False)

    def __post_init__(self) -> None:
        self.header, self.memory = self.mapping.view[:_HEADER_BYTES], self.mapping.memory[_HEADER_BYTES:]


_attached: dict[tuple[WorkerKey, int], _Attached] = {}
_attaching = threading.Lock()


def _received(
    worker: WorkerKey,
    number: int,
    nbytes: int,
    handle: Any,
    ticket: int,
    order: list[str],
    notes: dict[str, Note],
    others: dict[str, Any],
) -> dict[str, Any]:
    """Return the batch that a worker has sent: a plain dict, its tensors in the worker's slab."""
    import torch

    slab = (worker, number)
    attached = _attached[slab] if handle is None else _attach(slab, nbytes, handle)
    root = np.asarray(Lease(attached.memory, lambda _: _release(slab, attached, ticket)))
    batch = dict.fromkeys(order) | others
    for key, (offset, dtype, shape, strides) in notes.items():
        batch[key] = torch.from_numpy(np.ndarray(shape, dtype, root, offset, strides))
    return batch


def _attach(slab: tuple[WorkerKey, int], nbytes: int, handle: Any) -> _Attached:
    fd = handle.detach()
    with _attaching:
        try:
            if slab in _attached:  # sent twice before the worker saw that we have it
                return _attached[slab]
            _forget_ended()
            attached = _attached[slab] = _Attached(SharedMapping(fd, _HEADER_BYTES + nbytes))
            attached.header[_ATTACHED] = 1
            return attached
        finally:
            os.close(fd)


def _forget_ended() -> None:
    """Let go of the slabs of workers that ended, also of those that were killed."""
    alive = {pid: _is_alive(pid) for pid in {worker[0] for worker, _ in list(_attached)}}
    for slab, attached in list(_attached.items()):
        if attached.header[_ENDED] or not alive.get(slab[0][0], True):
            del _attached[slab]  # whoever still reads it has the mapping


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _release(slab: tuple[WorkerKey, int], attached: _Attached, ticket: int) -> None:
    attached.header[ticket] = 0
    if attached.header[_ENDED]:
        _attached.pop(slab, None)


def _pin() -> None:
    """Before a fork: what is being read now may be read by the child when we have long let go of it."""
    for attached in list(_attached.values()):
        if attached.header[:_TICKETS] != _FREE:
            attached.header[_PINNED] = 1


def _renew_lock() -> None:
    """In a forked child: a thread that held the lock is not there to release it."""
    global _attaching  # noqa: PLW0603 - one a process
    _attaching = threading.Lock()


if _HAS_SLABS:
    os.register_at_fork(before=_pin, after_in_child=_renew_lock)
