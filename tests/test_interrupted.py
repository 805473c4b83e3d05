"""Ctrl-C at any instant: an episode is in or it is not, nobody waits for it, and everybody agrees, then and later."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.store import verify
from roboreel.store.episodes import EpisodeTable
from roboreel.store.following import Following
from roboreel.store.records import StateFile
from tests.recordings import CAMERA, pictures

DELTAS = {"number": [-0.1, 0, 0.1]}


def ring(root: Path, **options: Any) -> LeRobotDatasetV2:
    dataset = LeRobotDatasetV2(root, fps=10, buffer_capacity=20, use_as_fifo_buffer=True, **options)
    for episode in range(4):
        dataset.add_episodes(numbered(episode, 5))
    return dataset


def numbered(episode: int, length: int) -> dict[str, Any]:
    return {"number": np.full(length, episode)}


def view(dataset: LeRobotDatasetV2) -> tuple[Any, ...]:
    """All that can be seen of the numbers."""
    dataset.set_delta_timestamps(DELTAS)
    batch = dataset.get_batch(range(len(dataset)))
    episodes = dataset.get_unique_episode_indices().tolist()
    lengths = [len(dataset.get_episode(episode)["number"]) for episode in episodes]
    return batch["number"].tolist(), batch["number_is_pad"].tolist(), batch["index"].tolist(), episodes, lengths


def interrupt_once(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, when: Callable[[Any], bool]
) -> Callable[[], bool]:
    """Raise KeyboardInterrupt at the end of one call of a method; the function returned says whether it did."""
    method = getattr(owner, name)
    done: list[bool] = []

    def interrupted(one: Any, *arguments: Any) -> Any:
        result = method(one, *arguments)
        if not done and when(arguments[-1]):
            done.append(True)
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(owner, name, interrupted)
    return lambda: bool(done)


PUBLISHED: Callable[[Any], bool] = lambda state: state.busy_start != state.busy_stop  # noqa: E731
COMMITTED: Callable[[Any], bool] = lambda state: state.next_episode_index == 5 and state.busy_stop == 0  # noqa: E731


@pytest.mark.parametrize(
    ("owner", "name", "when", "stays"),
    [
        (StateFile, "put_live", PUBLISHED, False),
        (Following, "_follow", PUBLISHED, False),
        (StateFile, "put_live", COMMITTED, True),
        (Following, "_follow", COMMITTED, True),
        (EpisodeTable, "append", lambda rows: rows["episode_index"][0] == 4, True),
    ],
    ids=["published", "published and seen", "committed", "committed and seen", "half of the commit seen"],
)
def test_a_record_once_written_is_never_taken_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    when: Callable[[Any], bool],
    stays: bool,
) -> None:
    dataset = ring(tmp_path / "dataset")
    reader = LeRobotDatasetV2(tmp_path / "dataset", readonly=True)
    before = view(reader)
    was_interrupted = interrupt_once(monkeypatch, owner, name, when)
    with pytest.raises(KeyboardInterrupt) as caught:
        dataset.add_episodes(numbered(4, 3))
    assert was_interrupted()
    assert ("stays" in "".join(getattr(caught.value, "__notes__", []))) == stays
    fresh = view(LeRobotDatasetV2(tmp_path / "dataset", readonly=True))
    assert fresh == view(reader) == view(dataset)
    assert (fresh == before) == (not stays)
    dataset.add_episodes(numbered(9, 5))
    fresh = view(LeRobotDatasetV2(tmp_path / "dataset", readonly=True))
    assert fresh == view(reader) == view(dataset)
    assert fresh[3][-1] == 4 + stays
    assert verify(tmp_path / "dataset").problems == []


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # between open() and `with` nobody closes
@pytest.mark.parametrize(("mode", "rounds"), [("memmap", 150), ("png", 60)])
def test_at_random_instants(tmp_path: Path, mode: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr("os.fdatasync", lambda _: None, raising=False)
    random = np.random.default_rng(5)
    options: dict[str, Any] = {"buffer_capacity": 12, "use_as_fifo_buffer": True, "image_mode": mode}
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, **options)

    def episode(length: int) -> dict[str, Any]:
        first = dataset.generation  # no two episodes are alike, whether the first of them came in or not
        return {"number": np.arange(length) + 100 * first, CAMERA: pictures(np.arange(length) + first)}

    dataset.add_episodes(episode(5))
    reader = LeRobotDatasetV2(tmp_path / "dataset", readonly=True)
    interrupts = 0
    for _ in range(rounds):
        before = view(reader)
        try:
            with interrupted_after(float(random.uniform(2e-5, 1.2e-3))):
                dataset.add_episodes(episode(int(random.integers(1, 7))))
        except KeyboardInterrupt:
            interrupts += 1
        after = view(reader)
        assert after == view(dataset) == view(LeRobotDatasetV2(tmp_path / "dataset", readonly=True))
        assert after == before or after[3][-1] == before[3][-1] + 1
    assert interrupts > 3
    assert threading.main_thread().is_alive()  # asked at the wrong moment, it is not: threads would be no more
    assert verify(tmp_path / "dataset").problems == []
