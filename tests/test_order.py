"""`sampling.order`: what a batch holds is a function of the seed and the batch's number."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboreel.errors import InvalidArgumentError
from roboreel.sampling.order import EpochOrder, shuffled


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9), st.integers(1, 30))
def test_every_frame_comes_once_an_epoch_and_every_batch_is_full(frames: int, size: int, seed: int, stop: int) -> None:
    batches = list(EpochOrder(frames, size, seed, stop=stop))
    assert [len(batch) for batch in batches] == [size] * stop
    stream = [index for batch in batches for index in batch]
    epochs = [stream[start : start + frames] for start in range(0, len(stream), frames)]
    assert all(sorted(epoch) == list(range(frames)) for epoch in epochs[:-1])
    assert max(Counter(epochs[-1]).values()) == 1


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9), st.integers(0, 20))
def test_beginning_in_the_middle_changes_nothing(frames: int, size: int, seed: int, start: int) -> None:
    whole = list(EpochOrder(frames, size, seed, stop=21))
    rest = EpochOrder(frames, size, seed, start=start, stop=21)
    assert list(rest) == whole[start:]
    assert len(rest) == len(whole) - start
    assert rest.batch(start) == whole[start]


def test_epochs_and_seeds_differ() -> None:
    orders = [shuffled(1000, seed, epoch).tolist() for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]]
    # Two unrelated orders of 1000 agree at one place on average; 20 of them would be a pattern.
    assert all(np.sum(np.equal(first, second)) < 20 for first, second in pairwise(orders))


def test_the_order_is_the_one_that_earlier_versions_gave() -> None:
    assert shuffled(8, seed=0, epoch=0).tolist() == [5, 0, 6, 1, 7, 2, 4, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0, "batch_size": 1, "seed": 0}, "num_frames=0, batch_size=1; both must be 1 or more"),
        ({"num_frames": 1, "batch_size": 0, "seed": 0}, "batch_size=0"),
        ({"num_frames": 1, "batch_size": 1, "seed": -1}, "seed=-1; give one from 0"),
        ({"num_frames": 1, "batch_size": 1, "seed": 0, "start": 3, "stop": 2}, "batches from 3 to 2"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        EpochOrder(**options)
