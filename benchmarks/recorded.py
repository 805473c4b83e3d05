"""Batches of indices drawn once from a seed, so that every contender reads the same ones in the same order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.benchmark import Run, Scene, Setup


def record(scene: Scene, num_frames: int, batch_size: int, count: int = 200) -> str:
    """Keep `count` batches of shuffled indices below `num_frames`; returns the file's name."""
    path = scene.cache / f"batches_{num_frames}_{batch_size}_{count}.npy"
    if not path.exists():
        rng = np.random.default_rng(num_frames)
        epochs = -(-batch_size * count // num_frames)
        if num_frames > 100 * batch_size * count:  # then hardly one comes twice
            indices = rng.integers(0, num_frames, batch_size * count)
        else:
            indices = np.concatenate([rng.permutation(num_frames) for _ in range(epochs)])
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, indices[: batch_size * count].reshape(count, batch_size))
    return str(path)


def batches(setup: Setup) -> NDArray[np.int64]:
    """The recorded batches, (count, batch size)."""
    found: NDArray[np.int64] = np.load(Path(setup["batches"]))
    return found


class Endless:
    """The recorded batches again and again, as a DataLoader's `batch_sampler`."""

    def __init__(self, setup: Setup) -> None:
        self._lists = batches(setup).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield from self._lists


def drain(iterator: Iterator[Any]) -> Run:
    """Return what does the next n batches of an endless iterator, a DataLoader's, and hands over the last."""

    def run(count: int) -> Any:
        batch = None
        for _ in range(count):
            batch = next(iterator)
        return batch

    return run


def drain_workers(iterator: Iterator[Any], workers: int) -> Run:
    """As `drain`, of workers: what they made ahead does not count, and they do not work in the turns of others."""
    return _OfWorkers(iterator, workers)


@dataclass(frozen=True)
class _OfWorkers:
    iterator: Iterator[Any]
    workers: int

    def __call__(self, count: int) -> float:
        ahead = 2 * self.workers
        for _ in range(ahead):
            next(self.iterator)
        began = time.perf_counter()
        for _ in range(count):
            next(self.iterator)
        seconds = time.perf_counter() - began
        time.sleep(min(5.0, 1.5 * ahead * seconds / count))  # until they have made as much ahead again
        return seconds

    def batch(self) -> Any:
        """Return the next batch."""
        return next(self.iterator)
