"""One dataset object in several threads: a learner samples while an actor adds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2

ADDED = 120


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _episode(number: int) -> dict[str, np.ndarray]:
    length = 1 + number % 7
    return {"action": np.full((length, 2), number, np.float32), "number": np.full(length, number)}


@pytest.mark.parametrize("capacity", [None, 60])
def test_readers_in_threads_see_whole_episodes_while_one_adds(tmp_path: Path, capacity: int | None) -> None:
    dataset = LeRobotDatasetV2(
        tmp_path / "dataset",
        fps=10,
        buffer_capacity=capacity,
        use_as_fifo_buffer=capacity is not None,
        delta_timestamps={"number": [-0.2, 0, 0.2], "episode_index": [-0.2, 0, 0.2]},
    )
    dataset.add_episodes(_episode(0))
    done = threading.Event()
    found: list[object] = []
    batches = [0, 0]

    def add() -> None:
        try:
            for number in range(1, ADDED):
                dataset.add_episodes(_episode(number), no_flush=True)
        except Exception as error:  # noqa: BLE001 - what a thread raises is what the test looks for
            found.append(error)
        finally:
            done.set()

    def sample(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            while not done.is_set() or not batches[seed]:
                batch = dataset.get_batch(rng.integers(len(dataset), size=16))
                if not (batch["number"] == batch["episode_index"]).all():
                    found.append(batch)
                if len(dataset.get_unique_episode_indices()) > ADDED:
                    found.append("more episodes than were added")
                batches[seed] += 1
        except Exception as error:  # noqa: BLE001 - what a thread raises is what the test looks for
            found.append(error)

    threads = [threading.Thread(target=add), *(threading.Thread(target=sample, args=(seed,)) for seed in (0, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found
    assert min(batches) > 0
    with LeRobotDatasetV2(tmp_path / "dataset", readonly=True) as fresh:
        assert dataset.num_episodes == fresh.num_episodes
        assert fresh.get_unique_episode_indices()[-1] == ADDED - 1
