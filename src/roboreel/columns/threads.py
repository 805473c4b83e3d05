"""A few threads a process, for decoding: jobs of one read run beside each other, and a job may have jobs of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

Job = Callable[[], None]

MAX_THREADS = 16
"""More would wait for the interpreter, which each of them needs between two frames."""


class Threads:
    """Helpers of whoever calls `run`, started when they are first needed; a forked child starts its own.

    The caller works too, and waits only for jobs that a helper has begun: that is why jobs may call `run`
    themselves, and why no job waits for a thread to be free.
    """

    def __init__(self, helpers: int = MAX_THREADS - 1) -> None:
        self._helpers = helpers
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._inherited: list[ThreadPoolExecutor | None] = []

    def forget(self) -> None:
        """In a forked child: begin anew; the parent's threads are not here, and one of them may hold the lock."""
        self._lock = threading.Lock()
        self._inherited.append(self._executor)  # freed, it would call for its threads
        self._executor = None

    def run(self, jobs: Sequence[Job], limit: int) -> None:
        """Run every job, at most `limit` at a time; the first error is raised when none of them runs any more.

        After an error, jobs that have not begun are left out.

            threads.run([read_top, read_wrist], limit=2)   # back when both have ended
        """
        if limit <= 1 or len(jobs) <= 1:
            for job in jobs:
                job()
            return
        queue = _Queue(jobs)
        helpers = [self._started().submit(queue.work) for _ in range(min(limit, len(jobs)) - 1)]
        try:
            queue.work()
        finally:
            queue.stop()
            for helper in helpers:
                _wait_if_begun(helper)
        for helper in helpers:
            if not helper.cancelled():
                helper.result()

    def _started(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._helpers, thread_name_prefix="roboreel-decode")
            return self._executor


class _Queue:
    def __init__(self, jobs: Sequence[Job]) -> None:
        self._lock = threading.Lock()
        self._jobs: Iterator[Job] = iter(jobs)

    def work(self) -> None:
        """Run jobs until none is left, or one has failed."""
        while job := self._next():
            try:
                job()
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        with self._lock:
            self._jobs = iter(())

    def _next(self) -> Job | None:
        with self._lock:
            return next(self._jobs, None)


def _wait_if_begun(helper: Future[None]) -> None:
    if not helper.cancel():
        helper.exception()


shared = Threads()
"""Those of this process."""

os.register_at_fork(after_in_child=shared.forget)
