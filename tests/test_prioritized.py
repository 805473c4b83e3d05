"""`PrioritizedSampler` against a list of priorities: draws, updates, a ring that goes on, states saved and loaded."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from roboreel import InvalidArgumentError, LeRobotDatasetV2, PrioritizedSampler
from roboreel.sampling.order import uniforms
from tests.recordings import made, numbers_of, recording, ring
from tests.test_sampled_rings import die_recording

EXACT: dict[str, Any] = {"alpha": 1, "eps": 0, "seed": 4}
"""With priorities that are whole numbers all sums are exact."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDatasetV2:
    dataset: LeRobotDatasetV2 = made(tmp_path_factory.mktemp("prioritized") / "dataset", [6, 4])
    return dataset


def saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state that went through a file, read as carefully as torch does."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


class Model:
    """A ring of frame numbers and a priority each."""

    def __init__(self, capacity: int, drop: int) -> None:
        self.capacity, self.drop = capacity, drop
        self.slots: list[int | None] = []
        self.next_slot = self.frames = 0
        self.last: set[int] = set()
        self.priorities: dict[int, float] = {}
        self.highest = 1.0
        self.new: list[int] = []

    def add(self, length: int) -> None:
        start = self.next_slot if self.next_slot + length <= self.capacity else 0
        for k in range(length):
            self.slots[start + k : start + k + 1] = [self.frames + k]
        self.new += range(self.frames, self.frames + length - self.drop)
        self.next_slot, self.frames = start + length, self.frames + length

    def look(self) -> None:
        """What came since is as the highest priority by now."""
        self.priorities.update(dict.fromkeys(self.new, self.highest))
        self.new = []

    def update(self, numbers: list[int], priorities: list[int]) -> int:
        self.look()
        for number, priority in zip(numbers, priorities, strict=True):
            if number in self.priorities:
                self.priorities[number] = priority
        self.highest = max(self.highest, *priorities)
        return sum(number in self.held() for number in numbers)

    def held(self) -> list[int]:
        return [number for number in self.slots if number in self.priorities]

    def weights(self) -> list[float]:
        self.look()
        return [self.priorities.get(-1 if number is None else number, 0) for number in self.slots]

    def draw(self, count: int, epoch: int, first: int) -> list[int]:
        """One of each of so many parts of the sum, going through the whole list each time."""
        sums = list(accumulate(self.weights()))
        drawn = []
        for part, number in enumerate(uniforms(count, EXACT["seed"], epoch, first).tolist()):
            wanted = (part + number) / count * sums[-1]
            drawn.append(next(slot for slot, reached in enumerate(sums) if reached > wanted))
        return drawn


@settings(max_examples=15)
@given(data=st.data(), capacity=st.integers(6, 12), drop=st.integers(0, 1), world_size=st.integers(1, 2))
def test_it_draws_as_a_list_of_priorities_would(data: st.DataObject, capacity: int, drop: int, world_size: int) -> None:
    model = Model(capacity, drop)
    with tempfile.TemporaryDirectory() as folder:
        buffer = ring(Path(folder) / "ring", [5], capacity)
        model.add(5)

        def sampler(rank: int) -> PrioritizedSampler:
            options = {"drop_n_last_frames": drop, "num_samples": 1000, **EXACT}
            return PrioritizedSampler(buffer, 3, rank=rank, world_size=world_size, **options)

        ranks = [sampler(rank) for rank in range(world_size)]
        iterations = [iter(rank) for rank in ranks]
        step = 0
        for action in data.draw(st.lists(st.sampled_from(["add", "update", "draw", "draw", "save"]), max_size=14)):
            if action == "add":
                length = data.draw(st.integers(1 + drop, 5))
                buffer.add_episodes(recording(length, model.frames), no_flush=True)
                model.add(length)
            elif action == "update":
                numbers = data.draw(st.lists(st.integers(0, model.frames), min_size=1, max_size=5))
                priorities = [data.draw(st.integers(0, 9)) for _ in numbers]
                wanted = model.update(numbers, priorities)
                assert [rank.update(torch.tensor(numbers), priorities) for rank in ranks] == [wanted] * world_size
            elif action == "draw" and any(model.weights()):
                parts = [next(iteration) for iteration in iterations]
                drawn = model.draw(3 * world_size, 0, 3 * world_size * step)
                assert parts == [drawn[rank::world_size] for rank in range(world_size)]
                step += 1
            elif action == "save" and any(model.weights()):
                states = [saved(rank.state_dict()) for rank in ranks]
                ranks = [sampler(rank) for rank in range(world_size)]
                for rank, state in zip(ranks, states, strict=True):
                    rank.load_state_dict(state)
                iterations = [iter(rank) for rank in ranks]
            if sum(model.weights()):
                found = ranks[0].probabilities()
                assert found == pytest.approx(np.array(model.weights()) / sum(model.weights()))
        buffer.close()


def test_frames_come_as_often_as_the_power_of_their_priority_says(dataset: LeRobotDatasetV2) -> None:
    sampler = PrioritizedSampler(dataset, 100, alpha=0.5, num_samples=20_000)
    sampler.update(range(10), [0, 1, 4, 9, 16, 0, 1, 4, 9, 16])
    counts = Counter(chain(*sampler))
    for index, root in enumerate([0, 1, 2, 3, 4, 0, 1, 2, 3, 4]):
        assert counts[index] == pytest.approx(20_000 * root / 20, abs=60)  # eps gives the zeros some of it
    assert sampler.probabilities().sum() == pytest.approx(1)


def test_importance_weights_by_the_formula(dataset: LeRobotDatasetV2) -> None:
    sampler = PrioritizedSampler(dataset, 4, alpha=0.7, beta=0.3, eps=0.01)
    priorities = np.array([3, 0.5, 2, 7, 1, 0, 4, 4, 4, 0.1])
    assert sampler.update(torch.arange(10), torch.tensor(priorities, requires_grad=True)) == 10
    powers = (priorities + 0.01) ** 0.7
    wanted = (10 * powers / powers.sum()) ** -0.3
    for chosen in ([0, 3, 9, 3], [1], list(range(10))):
        found = sampler.importance_weights(torch.tensor(chosen))
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(wanted[chosen] / wanted[chosen].max(), rel=1e-6)
    assert sampler.probabilities() == pytest.approx(powers / powers.sum())
    sampler.beta = 0
    assert sampler.importance_weights([0, 5]).tolist() == [1, 1]
    assert sampler.importance_weights([]).shape == (0,)
    empty = LeRobotDatasetV2(dataset.storage_dir / "none", 10, 20, use_as_fifo_buffer=True)
    assert PrioritizedSampler(empty, 4).importance_weights([0, 5]).tolist() == [1, 1]


def test_an_error_found_too_late_goes_to_no_other_frame(tmp_path: Path) -> None:
    buffer = ring(tmp_path / "ring", [4, 4], 8)
    sampler = PrioritizedSampler(buffer, 4, **EXACT)
    batch = buffer.get_batch([0, 4])
    assert sampler.update(batch["index"], [5, 3]) == 2
    buffer.add_episodes(recording(3, 8))
    assert sampler.update(batch["index"], [9, 7]) == 1  # frame 0 has gone, and frame 8 is in its place
    assert (sampler.probabilities() * 26).tolist() == pytest.approx([5, 5, 5, 1, 7, 1, 1, 1])


def test_what_is_dropped_too_old_or_lost_is_never_drawn(tmp_path: Path) -> None:
    buffer = ring(tmp_path / "ring", [4, 4], 8)
    dropping = PrioritizedSampler(buffer, 4, drop_n_last_frames=1, num_samples=200, **EXACT)
    aging = PrioritizedSampler(buffer, 4, max_age=5, num_samples=200, **EXACT)
    whole = PrioritizedSampler(buffer, 4, num_samples=200, **EXACT)
    assert dropping.update([3, 2], [9, 9]) == 1
    assert set(chain(*dropping)) == {0, 1, 2, 4, 5, 6}
    assert set(chain(*aging)) == {3, 4, 5, 6, 7}
    buffer.add_episodes(recording(2, 8))
    assert set(chain(*dropping)) == {0, 2, 4, 5, 6}
    assert set(chain(*aging)) == {0, 1, 5, 6, 7}
    state = whole.state_dict()
    die_recording(buffer, 3)
    reader = LeRobotDatasetV2(tmp_path / "ring")
    later = PrioritizedSampler(reader, 4, num_samples=200, **EXACT)
    later.load_state_dict(state)
    assert set(chain(*later)) == {0, 1, 5, 6, 7}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_a_loader_is_taken_up_exactly(dataset: LeRobotDatasetV2, workers: int) -> None:
    def train(sampler: PrioritizedSampler, steps: int, save_at: int | None = None) -> tuple[list[Any], Any]:
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        given, state = [], None
        for step, batch in enumerate(loader, 1):
            weights = sampler.importance_weights(batch["index"])
            given.append((numbers_of(batch), weights.tolist()))
            sampler.update(batch["index"], (batch["index"] * 7 + step) % 5)
            if step == save_at:
                state = saved(sampler.state_dict(step))
            if step == steps:
                break
        return given, state

    options: dict[str, Any] = {"num_samples": 60, "seed": 2}
    whole, state = train(PrioritizedSampler(dataset, 5, **options), 12, save_at=5)
    later = PrioritizedSampler(dataset, 5, **options)
    later.load_state_dict(state)
    assert train(later, 7)[0] == whole[5:]
    assert len({str(batch) for batch in whole}) > 6


def test_batches_drawn_ahead_come_again_only_to_whom_they_were_drawn_for(dataset: LeRobotDatasetV2) -> None:
    sampler = PrioritizedSampler(dataset, 5, num_samples=40)
    batches = list(iter(sampler))[:8]
    sampler.set_epoch(0)
    iteration = iter(sampler)
    [next(iteration) for _ in range(4)]
    sampler.update(range(10), [0, 0, 0, 0, 0, 0, 0, 0, 0, 9])
    state = sampler.state_dict(2)
    assert state["ahead"] == batches[2:4]
    same, other = PrioritizedSampler(dataset, 5, num_samples=40), PrioritizedSampler(dataset, 5, rank=1, world_size=2)
    same.load_state_dict(state)
    assert list(same)[:2] == batches[2:4]
    other.load_state_dict(state)
    assert set(next(iter(other))) == {9}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": None}, "batch_size=None; priorities are drawn in batches"),
        ({"alpha": -1}, "alpha=-1; a number, 0 or more"),
        ({"beta": float("nan")}, "beta=nan; a number"),
        ({"eps": float("inf")}, "eps=inf; a number"),
    ],
)
def test_what_cannot_be_is_refused(dataset: LeRobotDatasetV2, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        PrioritizedSampler(dataset, **{"batch_size": 4, **options})


@pytest.mark.parametrize(
    ("index", "priorities", "message"),
    [
        ([0, 1], [1], r"index of shape \(2,\), priorities of shape \(1,\); both must be \(B,\)"),
        ([[0]], [[1]], r"index of shape \(1, 1\)"),
        ([0.5], [1], r"index of dtype float64; frames are told by batch\['index'\], integers"),
        ([0, 1], [1, -2], "priorities from -2.0 to 1.0; finite ones, 0 or more"),
        ([0, 1], [1, np.nan], "priorities from nan to nan"),
        ([0, 1], [1, 1e300], r"priorities up to 1e\+300 with alpha=2 weigh more"),
    ],
)
def test_priorities_that_cannot_be_change_nothing(
    dataset: LeRobotDatasetV2, index: Any, priorities: Any, message: str
) -> None:
    sampler = PrioritizedSampler(dataset, 4, alpha=2)
    with pytest.raises(InvalidArgumentError, match=message):
        sampler.update(index, priorities)
    assert sampler.probabilities().tolist() == pytest.approx([0.1] * 10)
    assert sampler.update([], []) == 0


def test_priorities_of_zero_alone_are_refused(dataset: LeRobotDatasetV2) -> None:
    sampler = PrioritizedSampler(dataset, 4, **EXACT)
    sampler.update(range(10), [0] * 10)
    with pytest.raises(InvalidArgumentError, match=r"nothing to draw from .*: every priority is 0"):
        next(iter(sampler))
