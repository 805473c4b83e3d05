"""Work in a process of its own, where what it leaves in memory is only its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.benchmark import Figures, Setup


def apart(work: Callable[[Setup], Figures], setup: Setup) -> Figures:
    """Return what `work` counts in a new process; of a tiny run in this one, which is quicker."""
    if setup["size"] == "tiny":
        return work(setup)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, setup).result()


def status_mb(pid: int | str, *fields: str) -> float:
    """Return the sum of fields of `/proc/PID/status`, such as RssAnon, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return sum(int(found[field][0]) * 1024 / 1e6 for field in fields)
