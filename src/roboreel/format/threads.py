"""Work in threads that end with the call: nothing that a forked child could inherit half alive."""

from __future__ import annotations

import os
import time
from _thread import allocate_lock, start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 8
"""Threads beyond this share little but memory."""
_PAUSE_S = 0.002


class Stop:
    """Asks jobs to end early: a flag without a lock, which Ctrl-C could leave taken."""

    asked = False


def available_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a job scheduler or `taskset` may have given it only some
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores() -> int:
    """How many threads can encode at once, 1 to 8."""
    return min(available_cores(), _MOST)


def _begins_threads(pool: ThreadPoolExecutor) -> bool:
    """Whether there are threads to be had: when the interpreter ends, in what `atexit` calls, there are none.

    `threading.main_thread().is_alive()` must not be asked: Ctrl-C within it makes it False for good.
    """
    try:
        pool.submit(int)
    except RuntimeError:
        return False
    return True


def in_threads(jobs: Sequence[Callable[[], Result]], at_once: int, stop: Stop | None = None) -> list[Result]:
    """Run the jobs and return their results in order; when this returns or raises, none of them is running.

    Args:
        jobs: What to do.
        at_once: So many threads at most.
        stop: Asked as soon as a job has failed or the caller is interrupted, for the others to look at.

    Raises:
        BaseException: the first that a job has raised.
    """
    if not jobs:
        return []
    stop = stop or Stop()
    return _apart(lambda: _pooled(jobs, at_once, stop), stop)


def _apart(work: Callable[[], Result], stop: Stop) -> Result:
    """Do the work in a thread and wait for it.

    Ctrl-C hits the main thread alone, wherever it is: within a pool it would leave one of its locks taken for good.
    """
    results: list[Result] = []
    errors: list[BaseException] = []
    permit, finished = allocate_lock(), allocate_lock()
    finished.acquire()

    def run() -> None:
        if permit.acquire(blocking=False):
            try:
                results.append(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                errors.append(error)
            finished.release()

    try:
        try:
            start_new_thread(run, ())
        except RuntimeError:  # from Python 3.12 on there are none in what `atexit` calls
            return work()
        finished.acquire()
    except BaseException:
        stop.asked = True
        if not permit.acquire(blocking=False):  # else it has not begun, and now it will not
            while not (results or errors):
                time.sleep(_PAUSE_S)
        raise
    try:
        if errors:
            raise errors[0]
        return results[0]
    finally:
        errors.clear()  # it holds us, and we must not hold it: a lock that the caller lets go of would outlive him


def _pooled(jobs: Sequence[Callable[[], Result]], at_once: int, stop: Stop) -> list[Result]:
    with ThreadPoolExecutor(min(at_once, len(jobs)), "roboreel") as pool:
        if not _begins_threads(pool):
            return [job() for job in jobs]
        futures = [pool.submit(job) for job in jobs]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        stop.asked = True
        for future in futures:
            future.cancel()
    errors = list(filter(None, (future.exception() for future in futures if future in done)))
    if not errors:
        return [future.result() for future in futures]
    del futures, done, future  # these hold the error too
    try:
        raise errors[0]
    finally:
        errors.clear()


def unless_stopped(items: Iterable[Item], stop: Stop) -> Iterator[Item]:
    """Yield the items; raise `CancelledError` between two of them once `stop` is asked."""
    for item in items:
        if stop.asked:
            raise CancelledError
        yield item


def mapped(function: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield `function` of each item, in order; a few ahead are worked at, so memory does not grow with their number.

    Not for the main thread, which Ctrl-C can hit: call it within a job of `in_threads`.

    >>> list(mapped(str, range(4), threads=2))
    ['0', '1', '2', '3']
    """
    with ThreadPoolExecutor(max(1, threads), "roboreel") as pool:
        if threads < 2 or not _begins_threads(pool):
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
