"""`SumTree`: draws and changes against a list of numbers."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboreel.sampling.sum_tree import SumTree


class SmallTree(SumTree):
    """So that a few weights make many levels."""

    FAN = 2
    ROOT = 3


def naive(weights: list[float], share: float) -> int:
    """The first place at which the sum goes beyond the share of all."""
    sums = list(accumulate(weights))
    return next(place for place, reached in enumerate(sums) if reached > share * sums[-1])


@given(data=st.data(), tree_class=st.sampled_from([SumTree, SmallTree]))
def test_places_are_found_by_their_share_also_after_changes(data: st.DataObject, tree_class: type[SumTree]) -> None:
    whole = st.integers(0, 5).map(float)  # sums of whole numbers are exact
    weights = data.draw(st.lists(whole, min_size=1, max_size=40))
    tree = tree_class(weights)
    for _ in range(data.draw(st.integers(1, 4))):
        assert len(tree) == len(weights)
        assert tree.weights.tolist() == weights
        assert tree.total == sum(weights)
        if tree.total:
            shares = np.arange(0, 64) / 64
            assert tree.find(shares).tolist() == [naive(weights, share) for share in shares]
        places = data.draw(st.lists(st.integers(0, len(weights) - 1), max_size=6))
        changed = data.draw(st.lists(whole, min_size=len(places), max_size=len(places)))
        tree.set(np.array(places, np.int64), np.array(changed))
        for place, weight in zip(places, changed, strict=True):  # of a place named twice the last counts
            weights[place] = weight


@given(
    st.lists(st.sampled_from([0.0, 1e-300, 1e-9, 0.1, 1 / 3, 7.7, 1e300]), min_size=1, max_size=40),
    st.lists(st.floats(0, 1, exclude_max=True), max_size=20),
)
def test_rounding_never_leads_to_a_weight_of_nothing(weights: list[float], shares: list[float]) -> None:
    weights[0] = weights[0] or 0.1
    found = SmallTree(weights).find(np.array([*shares, np.nextafter(1, 0), 1.0]))
    assert all(weights[place] > 0 for place in found)


def test_many_weights() -> None:
    weights = (np.arange(70_000) % 3).astype(np.float64)
    tree = SumTree(weights)
    places = np.arange(10_000, 20_000)
    tree.set(places, np.full(10_000, 2.0))
    weights[places] = 2
    sums = weights.cumsum()
    assert tree.total == sums[-1]
    shares = np.random.default_rng(0).random(5000)
    assert np.array_equal(tree.find(shares), np.searchsorted(sums, shares * sums[-1], side="right"))


def test_nothing_weighs_nothing() -> None:
    assert (len(SumTree([])), SumTree([]).total) == (0, 0)
    assert SumTree([0.0, 0.0]).total == 0
    with pytest.raises(IndexError):
        SumTree([1.0]).set(np.array([1]), np.array([1.0]))
