"""Keeping an encoder from taking the machine for itself."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_THREADS = Path("/proc/self/task")


@contextlib.contextmanager
def ordinary_threads() -> Iterator[None]:
    """Have threads that become real-time ones of the highest priority meanwhile be ordinary ones again afterwards.

    As root, or with CAP_SYS_NICE, SVT-AV1 makes so all threads that it starts, and the one that opens it, which stays
    so, as does every thread and process that this one starts. They run before all others, a robot's control loop too.
    """
    own = threading.get_native_id()
    before = _policies()
    try:
        yield
    finally:
        for thread, now in _policies().items():
            # A new one is as the one that opened it was. One that was so before is left alone: somebody may mean it.
            was = before.get(thread) or before.get(own, (0, 0))
            if now == _highest() != was:
                with contextlib.suppress(OSError):  # it has ended since
                    os.sched_setscheduler(thread, was[0], os.sched_param(was[1]))


def _highest() -> tuple[int, int]:
    return os.SCHED_FIFO, os.sched_get_priority_max(os.SCHED_FIFO)


def _policies() -> dict[int, tuple[int, int]]:
    """Return policy and priority of each thread of this process; nothing where the system does not tell."""
    found: dict[int, tuple[int, int]] = {}
    if not hasattr(os, "sched_getscheduler") or not _THREADS.is_dir():
        return found
    for name in os.listdir(_THREADS):
        with contextlib.suppress(OSError):
            found[int(name)] = os.sched_getscheduler(int(name)), os.sched_getparam(int(name)).sched_priority
    return found
