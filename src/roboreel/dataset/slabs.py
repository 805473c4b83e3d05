"""Batches on their way from a DataLoader's worker to the process that trains: in shared memory, used again.

torch sends each tensor of a batch in a shared file of its own, made, mapped and removed each time. Here a worker keeps
a few *slabs*; a batch is gathered straight into one and sent as a note of where its tensors lie. Whoever receives it
reads the slab, and when the last tensor is gone sets a byte in its header: the worker may fill it anew. No batch
that somebody keeps is ever touched, and where no slab is free there is a new one. The memory is anonymous
(`memfd_create`): nothing is left behind by a kill, and `/dev/shm`, small in containers, is not needed.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import util
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from roboreel.dataset.batch import is_plain
from roboreel.dataset.buffers import Lease, Memory
from roboreel.dataset.plan import aligned
from roboreel.dataset.shared import SharedMapping
from roboreel.dataset.slab import ATTACHED, ENDED, FREE, HEADER_BYTES, PINNED, TICKETS, Slab, SlabRoom

_MOST_SLABS = 1 << 14
"""Of a worker: beyond, batches travel as torch sends them. A process may have some 65,000 mappings."""
_LOOKED_AT = 64
"""So many slabs are asked whether they are free; where somebody keeps more than that, the next batch asks others."""
_IDLE_ROUNDS = 64
"""After so many batches that were made without it, a slab is given back."""

_HAS_SLABS = hasattr(os, "memfd_create")

WorkerKey = tuple[int, int]
"""Process id, and a number drawn at random: ids come again."""
Note = tuple[int, str, tuple[int, ...], tuple[int, ...]]
"""Of a tensor in a slab: offset in bytes, dtype, shape, strides."""


class WorkerBatch(dict[str, Any]):
    """A batch that a worker has made: a dict, which comes out of the DataLoader as a plain one."""


class Slabs:
    """Those of one worker."""

    def __init__(self) -> None:
        self.key = (os.getpid(), secrets.randbits(63))
        self._slabs: deque[Slab] = deque()
        """Those used last at the end."""
        self._round = 0
        self.sent_bytes = 0
        """That the tensors of the last batch took."""
        self._unattached: list[Slab] = []
        self._made = 0
        self._lock = threading.Lock()
        util.Finalize(None, self._end, exitpriority=100)

    def room(self, nbytes: int) -> SlabRoom | None:
        """Return room for a batch; None where there is none to be had."""
        with self._lock:
            self._unattached = [slab for slab in self._unattached if not slab.is_attached()]
            self._round += 1
            if self._round % _IDLE_ROUNDS == 0:
                self._drop_idle()
            slab = self._free_slab(nbytes) or self._new_slab(nbytes)
            return None if slab is None else SlabRoom(slab.lease(self._round))

    def _free_slab(self, nbytes: int) -> Slab | None:
        """Take a free one, of several that which was used last: the processor's cache may have it."""
        busy: list[Slab] = []
        for _ in range(min(len(self._slabs), _LOOKED_AT)):
            slab = self._slabs.pop()
            if not slab.is_free:
                busy.append(slab)
            elif not slab.is_pinned and nbytes <= slab.memory.nbytes <= 2 * nbytes + HEADER_BYTES:
                self._slabs.extend(reversed(busy))
                self._slabs.append(slab)
                return slab
            else:
                slab.drop()
        self._slabs.extendleft(busy)
        return None

    def _drop_idle(self) -> None:
        """Give back what was not used for long: many batches were kept at a time, and are no more."""
        idle = [slab for slab in self._slabs if self._round - slab.round > _IDLE_ROUNDS and slab.is_free]
        for slab in idle:
            self._slabs.remove(slab)
            slab.drop()

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
            slab.header[ENDED] = 1
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


def room_as_before() -> SlabRoom | None:
    """Return room for a batch as large as the last one that was sent; None where that is not known."""
    slabs = _own_slabs()
    return slabs.room(slabs.sent_bytes) if slabs is not None and slabs.sent_bytes else None


def to_send(batch: dict[str, Any], room: SlabRoom | None) -> WorkerBatch:
    """Return a batch of which all tensors that can be lie in a slab: in `room`, if they fit there, or in another one.

    Those that do not lie in `room` already are copied there.
    """
    import torch

    slabs, packed = _own_slabs(), WorkerBatch(batch)
    if slabs is None:
        return packed
    plain = {key: value for key, value in batch.items() if is_plain(torch, value)}
    slabs.sent_bytes = sum(aligned(tensor.nbytes) for tensor in plain.values())
    to_copy = {key: tensor for key, tensor in plain.items() if room is None or not room.holds(tensor.data_ptr())}
    if room is None or sum(aligned(tensor.nbytes) for tensor in to_copy.values()) > room.left:
        room, to_copy = slabs.room(slabs.sent_bytes), plain
    if room is not None:
        packed |= {key: _copied(torch, tensor, room) for key, tensor in to_copy.items()}
    return packed


def _copied(torch: Any, tensor: Any, room: SlabRoom) -> Any:
    """Copy a tensor into a slab, in the order in which its numbers lie."""
    order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
    array = tensor.permute(order).numpy()
    copy = room.empty(array.shape, array.dtype, array.nbytes)
    copy[...] = array
    return torch.from_numpy(copy).permute(np.argsort(order).tolist())


def _reduce(batch: WorkerBatch) -> tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]:
    """Say where the tensors lie; called by the thread that sends batches."""
    import torch

    plain = {key: value.numpy() for key, value in batch.items() if is_plain(torch, value)}
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
        self.header, self.memory = self.mapping.view[:HEADER_BYTES], self.mapping.memory[HEADER_BYTES:]


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
            attached = _attached[slab] = _Attached(SharedMapping(fd, HEADER_BYTES + nbytes))
            attached.header[ATTACHED] = 1
            return attached
        finally:
            os.close(fd)


def _forget_ended() -> None:
    """Let go of the slabs of workers that ended, also of those that were killed."""
    alive = {pid: _is_alive(pid) for pid in {worker[0] for worker, _ in list(_attached)}}
    for slab, attached in list(_attached.items()):
        if attached.header[ENDED] or not alive.get(slab[0][0], True):
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
    if attached.header[ENDED]:
        _attached.pop(slab, None)


def _pin() -> None:
    """Before a fork: what is being read now may be read by the child when we have long let go of it."""
    for attached in list(_attached.values()):
        if attached.header[:TICKETS] != FREE:
            attached.header[PINNED] = 1


def _renew_lock() -> None:
    """In a forked child: a thread that held the lock is not there to release it."""
    global _attaching  # noqa: PLW0603 - one a process
    _attaching = threading.Lock()


if _HAS_SLABS:
    os.register_at_fork(before=_pin, after_in_child=_renew_lock)
