"""A contender's process: requests and answers are lines of JSON, on standard input and output.

    {"run": 20}    ->  {"seconds": 0.0123}       the next 20 batches, timed here
    {"check": 1}   ->  {"sums": {key: …}}        the next batch, as kind, size and sum of each key's numbers
    {"memory": 1}  ->  {"rss_mb": …, "uss_mb": …}  of this process and its workers

The first line is the setup, answered by {"ready": versions}. Runs in peers' environments too, without roboreel.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

import numpy as np

from benchmarks.benchmark import Run, Setup

PACKAGES = (
    *("roboreel", "numpy", "torch", "av", "pillow", "pyarrow", "lerobot", "lerobot-dataset", "lerobot-lancedb"),
    *("lancedb", "datasets", "torchcodec", "torchvision", "torchrl", "tensordict"),
)


@contextlib.contextmanager
def made(reference: str, setup: Setup) -> Iterator[Run]:
    """Import and make the contender `"module:function"`."""
    module, _, function = reference.partition(":")
    with contextlib.contextmanager(getattr(importlib.import_module(module), function))(setup) as run:
        yield run


def timed(run: Run, count: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that `count` batches took."""
    began = clock()
    own = run(count)
    seconds = clock() - began
    return own if isinstance(own, float) else seconds


def sums(batch: Any) -> dict[str, list[Any]]:
    """Return for each key [kind of dtype, size, sum]: enough to see that contenders read the same.

    >>> sums({"action": [[1, 2], [3, 4]], "task": ["push"]})
    {'action': ['i', 4, 10.0]}
    """
    found = {}
    for key, value in batch.items() if isinstance(batch, Mapping) else ():
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            found[key] = [array.dtype.kind, array.size, float(array.sum(dtype=np.float64))]
    return found


def memory() -> dict[str, float]:
    import psutil

    rss = uss = 0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            info = process.memory_full_info()
            rss, uss = rss + info.rss, uss + info.uss
    return {"rss_mb": round(rss / 1e6, 1), "uss_mb": round(uss / 1e6, 1)}


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def answers(run: Run, requests: Iterator[str], clock: Callable[[], float]) -> Iterator[Mapping[str, Any]]:
    for line in requests:
        request = json.loads(line)
        if "run" in request:
            yield {"seconds": timed(run, request["run"], clock)}
        else:
            yield {"sums": sums(_next(run))} if "check" in request else memory()


def _next(run: Run) -> Any:
    """Return the next batch; of who gives seconds, as workers do, asked for apart."""
    return run.batch() if hasattr(run, "batch") else run(1)


def main() -> None:
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    setup = json.loads(sys.stdin.readline())
    # the processor's seconds, of all threads, make one thread's rate of many threads' work
    clock = time.process_time if setup.get("clock") == "processor" else time.perf_counter
    with made(sys.argv[1], setup) as run:
        for answer in itertools.chain([{"ready": versions()}], answers(run, iter(sys.stdin.readline, ""), clock)):
            print(json.dumps(answer), file=answer_to, flush=True)


if __name__ == "__main__":
    main()
