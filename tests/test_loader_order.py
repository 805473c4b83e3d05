"""`make_loader`: what comes when does not depend on how far anything has read ahead."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import deque
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import BatchSampler, Dataset, RandomSampler, SequentialSampler

from roboreel import (
    EpisodeAwareSampler,
    EpisodeBlocks,
    InvalidArgumentError,
    LeRobotDatasetV2,
    PrioritizedSampler,
    WeightedSampler,
    make_loader,
)
from tests.recordings import made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("order") / "dataset"
    made(folder, [8] * 5).close()
    return folder


@pytest.fixture
def dataset(root: Path) -> LeRobotDatasetV2:
    return LeRobotDatasetV2(root, readonly=True)


def indices_of(batches: Any) -> list[list[int]]:
    return [batch["index"].tolist() for batch in batches]


class Slow(Dataset[Any]):
    """Takes as long as it likes over each batch."""

    def __init__(self, dataset: LeRobotDatasetV2) -> None:
        self.dataset, self._random = dataset, np.random.default_rng()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError

    def __getitems__(self, indices: list[int]) -> Any:
        time.sleep(self._random.uniform(0, 0.004))
        return self.dataset.__getitems__(indices)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_priorities_count_from_the_same_batch_on_in_every_run(
    dataset: LeRobotDatasetV2, workers: int, prefetch: int
) -> None:
    def errors(indices: list[int], k: int) -> list[float]:
        return [(7 * index + k) % 11 for index in indices]

    drawn, by_hand = (PrioritizedSampler(dataset, batch_size=4, alpha=1, num_samples=120, seed=3) for _ in range(2))
    steps = iter(by_hand)
    ahead = deque(islice(steps, prefetch + 1 + 2 * workers))
    seen = []
    for k, batch in enumerate(make_loader(Slow(dataset), sampler=drawn, num_workers=workers, prefetch=prefetch)):
        indices = batch["index"].tolist()
        seen.append(indices)
        assert indices == ahead.popleft(), k
        drawn.update(batch["index"], errors(indices, k))
        by_hand.update(batch["index"], errors(indices, k))
        ahead.extend(islice(steps, 1))
    assert len(seen) == 30
    assert np.array_equal(drawn.probabilities(), by_hand.probabilities())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [None, 3])
def test_where_a_loop_was_left_decides_which_epoch_follows(
    dataset: LeRobotDatasetV2, workers: int, size: int | None
) -> None:
    sampler = EpisodeAwareSampler(dataset, None if size else 3, shuffle=True, episodes=[0])  # 3 + 3 + 2 frames
    loader = make_loader(dataset, size, sampler=sampler, num_workers=workers)
    epochs = [indices_of(loader) for _ in range(3)]
    assert len({str(epoch) for epoch in epochs}) == 3
    loader.set_epoch(0)
    for taken in (1, 2, 1):
        assert indices_of(islice(loader, taken)) == epochs[0][:taken]
    iteration = iter(loader)
    assert indices_of(islice(iteration, 3)) == epochs[0]
    assert loader.state_dict() == {"seed": 0, "epoch": 1, "position": 0, "frames": 0, "drawable": None}
    iteration.close()  # type: ignore[attr-defined] # as a loop that is left does
    assert indices_of(loader) == epochs[1]
    for _ in loader:
        loader.set_epoch(1, start=1 if size is None else 3)
        break
    assert indices_of(loader) == epochs[1][1:]
    assert indices_of(loader) == epochs[2]


def test_a_state_within_an_epoch_of_single_indices(dataset: LeRobotDatasetV2) -> None:
    def loader() -> Any:
        return make_loader(dataset, 6, sampler=EpisodeAwareSampler(dataset, shuffle=True))

    wanted = indices_of(loader())
    for taken in range(1, 7):
        one, other = loader(), loader()
        iteration = iter(one)
        assert indices_of(islice(iteration, taken)) == wanted[:taken]
        other.load_state_dict(one.state_dict())
        assert indices_of(other) == wanted[taken:]


@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_go_from_epoch_to_epoch_and_are_taken_up(dataset: LeRobotDatasetV2, workers: int) -> None:
    def loader() -> Any:
        return make_loader(EpisodeBlocks(dataset, batch_size=6, episodes=2), num_workers=workers)

    whole = loader()
    assert len(whole) == whole.dataset.num_batches(workers)
    epochs = [indices_of(whole) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert [sorted(chain.from_iterable(epoch)) for epoch in epochs] == [list(range(40))] * 2
    one, other = loader(), loader()
    assert indices_of(islice(one, 2)) == epochs[0][:2]
    other.load_state_dict(one.state_dict())
    assert len(other) == len(epochs[0]) - 2
    assert indices_of(one) == epochs[0], "begun again"
    assert indices_of(other) == epochs[0][2:]
    assert indices_of(other) == epochs[1]
    others = make_loader(EpisodeBlocks(dataset, batch_size=6, episodes=3), num_workers=workers)
    with pytest.raises(InvalidArgumentError, match="the state is of EpisodeBlocks with episodes=2; make them with it"):
        others.load_state_dict(one.state_dict())
    with pytest.raises(InvalidArgumentError, match="batch_size=6, but EpisodeBlocks makes batches; leave it out"):
        make_loader(EpisodeBlocks(dataset, batch_size=6), 6)


def test_what_cannot_be_drawn_any_more_is_told_where_it_would_have_come(dataset: LeRobotDatasetV2) -> None:
    sampler = WeightedSampler(dataset, batch_size=4, weights=np.ones(40))
    batches = iter(make_loader(dataset, sampler=sampler, prefetch=1))
    next(batches)
    sampler.weights = np.zeros(40)
    next(batches)  # drawn before
    with pytest.raises(InvalidArgumentError, match="every weight is 0"):
        next(batches)


def test_samplers_of_torchs(dataset: LeRobotDatasetV2) -> None:
    assert sorted(chain.from_iterable(indices_of(make_loader(dataset, 7, sampler=RandomSampler(dataset))))) == [
        *range(40)
    ]
    batches = BatchSampler(SequentialSampler(dataset), 30, drop_last=False)
    assert indices_of(make_loader(dataset, sampler=batches)) == [[*range(30)], [*range(30, 40)]]
    for sampler in (RandomSampler(dataset), range(9), EpisodeAwareSampler(dataset)):
        with pytest.raises(
            InvalidArgumentError, match=r"batch_size=None for \w+, which gives indices one by one; a num"
        ):
            make_loader(dataset, sampler=sampler)


def test_workers_read_for_one_iteration_at_a_time(dataset: LeRobotDatasetV2) -> None:
    loader = make_loader(dataset, 4, num_workers=1)
    first = iter(loader)
    next(first)
    assert len(list(loader)) == 10
    with pytest.raises(InvalidArgumentError, match="a later iteration of this loader has begun"):
        next(first)
    alone = make_loader(dataset, 4, shuffle=False)
    for one, other in zip(alone, alone, strict=True):
        assert one["index"].tolist() == other["index"].tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_may_end_amid_an_epoch(root: Path, workers: int) -> None:
    script = (
        "import sys\nfrom roboreel import LeRobotDatasetV2, make_loader\n"
        f"loader = make_loader(LeRobotDatasetV2(sys.argv[1], readonly=True), 1, num_workers={workers})\n"
        "batches = iter(loader)\nnext(batches)\n"
    )
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, "-c", script, str(root)], capture_output=True, text=True, timeout=120, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, "")
