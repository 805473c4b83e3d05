"""Window arithmetic: rows of literals for the hard cases, and exact rational arithmetic for all the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboreel.errors import InvalidArgumentError
from roboreel.windows import NearEnds, integer_windows, parse_deltas, time_windows, tolerance_s

F, T = False, True


def integer(position: int, lo: int, hi: int, seconds: Sequence[float], fps: float = 10) -> tuple[list[int], list[bool]]:
    deltas = parse_deltas("index", seconds, fps)
    place = np.array([position]), np.array([lo]), np.array([hi])
    slots, is_pad = integer_windows(*place, deltas)
    near = NearEnds.of([parse_deltas("index", [0], fps), deltas], most_bytes=1 << 24)
    if near is not None:  # the offsets do not reach too far
        taken, padded = (table[near.cells(*place)] for table in near.tables[1])
        assert np.array_equal(taken + position, slots)
        assert np.array_equal(padded, is_pad)
    return slots[0].tolist(), is_pad[0].tolist()


def by_time(
    times: Sequence[float], position: int, seconds: Sequence[float], fps: float = 10, lo: int = 0, hi: int | None = None
) -> tuple[list[int], list[bool], list[bool]]:
    array = np.asarray(times, np.float64)
    ends = np.array([lo]), np.array([len(array) if hi is None else hi])
    slots, is_pad, hole = time_windows(
        array.__getitem__, np.array([position]), *ends, parse_deltas("index", seconds, fps)
    )
    return slots[0].tolist(), is_pad[0].tolist(), hole[0].tolist()


# Integer windows


@pytest.mark.parametrize(
    ("position", "seconds", "slots", "is_pad"),
    [
        (2, [-0.3, -0.2, 0, 0.2, 0.3], [0, 0, 2, 4, 4], [T, F, F, F, T]),  # the example of the design
        (0, [-0.1, 0, 0.1], [0, 0, 1], [T, F, F]),
        (4, [-0.1, 0, 0.1], [3, 4, 4], [F, F, T]),
        (0, [-100, 100], [0, 4], [T, T]),
        (2, [0.3, -0.3, 0], [4, 0, 2], [T, T, F]),  # in the order in which they were asked for
        (2, [0.1, 0.1], [3, 3], [F, F]),
        # Half a step: the earlier frame, on both sides of the current one.
        (2, [-0.15, -0.05, 0.05, 0.15], [0, 1, 2, 3], [F, F, F, F]),
        (2, [-0.149999, 0.150001], [1, 4], [F, F]),
        # Less than a step − 1e-4 s outside is the edge frame and no padding.
        (4, [0.0998], [4], [F]),
        (4, [0.09995], [4], [T]),
        (0, [-0.0998], [0], [F]),
        (0, [-0.09995], [0], [T]),
        (3, [0.1998, 0.19995], [4, 4], [F, T]),
        (1, [-0.1998, -0.19995], [0, 0], [F, T]),
    ],
)
def test_integer_windows_in_an_episode_of_five_frames_at_10_hz(
    position: int, seconds: list[float], slots: list[int], is_pad: list[bool]
) -> None:
    assert integer(position, 0, 5, seconds) == (slots, is_pad)
    moved = [slot + 1000 for slot in slots]
    assert integer(position + 1000, 1000, 1005, seconds) == (moved, is_pad)


@pytest.mark.parametrize("fps", [1, 2.5, 10, 15, 24, 29.97, 30, 30000 / 1001, 50, 59.94, 60, 100, 1000])
def test_whole_and_half_steps_are_exact_at_any_rate_and_far_into_an_episode(fps: float) -> None:
    frames = 1_000_000
    steps = np.array([-777_777, -3, -2.5, -1, -0.5, 0, 0.5, 1, 2.5, 3, 777_777])
    deltas = parse_deltas("index", steps / fps, fps)
    position = np.array([0, 3, 500_000, frames - 1])
    slots, is_pad = integer_windows(position, np.zeros(4, np.int64), np.full(4, frames), deltas)
    exact = position[:, None] + np.ceil(steps - 0.5).astype(int)
    assert np.array_equal(slots, np.clip(exact, 0, frames - 1))
    outside = np.maximum(-(position[:, None] + steps), position[:, None] + steps - (frames - 1))
    assert np.array_equal(is_pad, outside >= 1)


@pytest.mark.parametrize("fps", [10, 15, 30, 50, 29.97])
def test_padding_begins_one_step_less_1e_4_s_outside(fps: float) -> None:
    threshold = 1 / fps - 1e-4
    assert tolerance_s(fps) == pytest.approx(threshold)
    inside, beyond = threshold - 1e-7, threshold + 1e-7
    assert integer(8, 0, 9, [inside, beyond], fps)[1] == [F, T]
    assert integer(0, 0, 9, [-inside, -beyond], fps)[1] == [F, T]


def test_a_tolerance_never_leaves_times_that_no_frame_is_near_to() -> None:
    for fps in (1, 100, 5_000, 20_000, 1e6):
        assert tolerance_s(fps) >= 0.5 / fps


def test_windows_of_a_half_overwritten_episode_begin_at_the_first_frame_that_survives() -> None:
    # Slots 10 to 15 were one episode; 10 to 12 are overwritten.
    assert integer(13, 13, 16, [-0.2, -0.1, 0, 0.1]) == ([13, 13, 13, 14], [T, T, F, F])
    assert integer(15, 13, 16, [-0.3, -0.2, 0.1]) == ([13, 13, 15], [T, F, T])


def test_an_episode_of_one_frame_pads_on_both_sides() -> None:
    assert integer(7, 7, 8, [-0.1, -0.05, 0, 0.05, 0.1]) == ([7] * 5, [T, F, F, F, T])


def test_each_frame_of_a_batch_stays_in_its_own_episode() -> None:
    deltas = parse_deltas("index", [-0.1, 0, 0.1], 10)
    position, lo, hi = np.array([0, 4, 5, 9]), np.array([0, 0, 5, 5]), np.array([5, 5, 10, 10])
    slots, is_pad = integer_windows(position, lo, hi, deltas)
    assert slots.tolist() == [[0, 0, 1], [3, 4, 4], [5, 5, 6], [8, 9, 9]]
    assert is_pad.tolist() == [[T, F, F], [F, F, T], [T, F, F], [F, F, T]]


@pytest.mark.parametrize("seconds", [[], [[0.1]], 0.1, ["a"], None, [math.nan], [math.inf], [1e300]])
def test_offsets_that_are_no_list_of_finite_numbers_are_refused_by_key(seconds: list[float]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"delta_timestamps\['action'\].*at 10 Hz"):
        parse_deltas("action", seconds, 10)


@given(
    fps=st.sampled_from([10.0, 15.0, 29.97, 30.0, 50.0]),
    seconds=st.lists(st.floats(-3, 3), min_size=1, max_size=6),
    lo=st.integers(0, 50),
    before=st.integers(0, 40),
    after=st.integers(0, 40),
)
def test_integer_windows_equal_exact_arithmetic(
    fps: float, seconds: list[float], lo: int, before: int, after: int
) -> None:
    position, hi = lo + before, lo + before + after + 1
    slots, is_pad = integer(position, lo, hi, seconds, fps)
    for second, slot, pad in zip(seconds, slots, is_pad, strict=True):
        frames = Fraction(second) * Fraction(fps)
        nearest = sorted(range(lo, hi), key=lambda k: (abs(k - position - frames), k))
        # A millionth of a step counts as none (0.3 s at 10 Hz is not 3 in binary): next to a tie both are right.
        assert slot == nearest[0] or (
            slot in nearest[:2] and abs((frames * 2) - round(frames * 2)) < Fraction(3, 1_000_000)
        )
        outside = max(lo - position - frames, position + frames - (hi - 1)) / Fraction(fps)
        over = outside - Fraction(tolerance_s(fps))
        assert pad == (over > 0) or abs(over) < Fraction(1, 10_000_000)


# Windows by time


@pytest.mark.parametrize(
    ("position", "seconds", "slots", "is_pad", "hole"),
    [
        (1, [-1, 0, 0.15], [0, 1, 1], [T, F, F], [F, F, T]),
        (1, [-0.1, 0.1], [0, 1], [F, F], [F, T]),  # 0.2 s: 0.1 s from frame 1, just beyond the tolerance
        (1, [0.35, 0.4, 0.5], [2, 2, 3], [F, F, F], [F, F, F]),
        (3, [0, 0.09, 0.11], [3, 3, 3], [F, F, T], [F, F, F]),
        (0, [-0.09, -0.11], [0, 0], [F, T], [F, F]),
    ],
)
def test_time_windows_with_a_hole(
    position: int, seconds: list[float], slots: list[int], is_pad: list[bool], hole: list[bool]
) -> None:
    assert by_time([0.0, 0.1, 0.5, 0.6], position, seconds) == (slots, is_pad, hole)


def test_of_two_frames_as_near_the_earlier_is_taken() -> None:
    # At 4 Hz all of these are exact in binary: no rounding decides.
    assert by_time([0, 0.25, 0.5, 0.75], 1, [-0.125, 0.125], fps=4)[0] == [0, 1]
    assert by_time([0, 0.25, 0.5, 0.75], 1, [-0.1249, 0.1251], fps=4)[0] == [1, 2]


UNEVEN = [0.0, 0.06, 0.18, 0.24, 0.3, 0.42, 0.48]
"""Timestamps whose half-way times are exact in decimal and not in binary, where a third of the ties goes either way."""


@pytest.mark.parametrize(
    ("position", "seconds", "slots", "is_pad"),
    [
        # Half-way between two frames, before and after the current one: the earlier.
        (0, [0.03, 0.12, 0.21, 0.27, 0.36, 0.45], [0, 1, 2, 3, 4, 5], [F] * 6),
        (1, [-0.03, 0.06, 0.15, 0.21, 0.3, 0.39], [0, 1, 2, 3, 4, 5], [F] * 6),
        (3, [-0.21, -0.12, -0.03, 0.03, 0.12, 0.21], [0, 1, 2, 3, 4, 5], [F] * 6),
        (6, [-0.45, -0.36, -0.27, -0.21, -0.12, -0.03], [0, 1, 2, 3, 4, 5], [F] * 6),
        # A little more than half-way is no tie.
        (0, [0.030001, 0.120001, 0.210001, 0.270001, 0.360001, 0.450001], [1, 2, 3, 4, 5, 6], [F] * 6),
        (6, [-0.450001, -0.359999], [0, 2], [F, F]),
        # Start and end: the edge frame, and padding from a step − 1e-4 s outside, as in regular episodes.
        (0, [-0.05, -0.0998, -0.1, -9], [0, 0, 0, 0], [F, F, T, T]),
        (6, [0.05, 0.0998, 0.1, 9], [6, 6, 6, 6], [F, F, T, T]),
        (1, [-0.1, -0.1598, -0.16], [0, 0, 0], [F, F, T]),
        (5, [0.1, 0.1598, 0.16], [6, 6, 6], [F, F, T]),
    ],
)
@pytest.mark.parametrize("clock", [0.0, 5.0, -0.24, 1_700_000_000.0])
def test_time_windows_of_uneven_steps_at_10_hz(
    clock: float, position: int, seconds: list[float], slots: list[int], is_pad: list[bool]
) -> None:
    times = [clock + time for time in UNEVEN]
    assert by_time(times, position, seconds) == (slots, is_pad, [F] * len(seconds))
    others = [-7.0] * 3 + times + [1e10]  # the episodes before and after it
    moved = [slot + 3 for slot in slots]
    assert by_time(others, position + 3, seconds, lo=3, hi=10) == (moved, is_pad, [F] * len(seconds))


@pytest.mark.parametrize("fps", [10, 20, 30, 50, 240])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_half_steps_go_to_the_earlier_frame_however_times_were_rounded(fps: int, dtype: Any) -> None:
    steps = np.full(4000, 1 / fps)
    steps[5] = 2 / fps  # a frame was dropped: it is by time that windows are found
    times = np.cumsum(steps).astype(dtype).astype(np.float64)
    position = np.arange(10, 3990)
    lo, hi = np.zeros_like(position), np.full_like(position, 4000)
    deltas = parse_deltas("index", [-0.5 / fps, 0, 0.5 / fps, 1.5 / fps], fps)
    slots, is_pad, hole = time_windows(times.__getitem__, position, lo, hi, deltas)
    assert (slots - position[:, None] == [-1, 0, 0, 1]).all()
    assert not is_pad.any()
    assert not hole.any()


def test_times_of_more_digits_are_told_apart_by_them() -> None:
    """1000 s are 6e-5 s apart in float32, and the nearer of two frames may be nearer by less."""
    times = np.array([1000, 1000.1 + 1e-9, 1000.2 - 1e-6])
    deltas = parse_deltas("index", [0.15], 10)
    slots, _, _ = time_windows(times.__getitem__, np.array([0]), np.array([0]), np.array([3]), deltas)
    assert slots.tolist() == [[2]]


@pytest.mark.parametrize(
    ("lo", "position", "seconds", "slots", "is_pad"),
    [
        (2, 2, [-0.06, -0.12, 0, 0.03, 0.06], [2, 2, 2, 2, 3], [F, T, F, F, F]),
        (2, 3, [-0.03, -0.06, -0.15, -0.18, 0.12], [2, 2, 2, 2, 4], [F, F, F, T, F]),
        (4, 6, [-0.03, -0.12, -0.18, -0.27, -0.28], [5, 4, 4, 4, 4], [F, F, F, F, T]),
        (6, 6, [-0.09, -0.1, 0, 0.09, 0.1], [6] * 5, [F, T, F, F, T]),
    ],
)
def test_time_windows_of_what_survives_of_an_overwritten_episode(
    lo: int, position: int, seconds: list[float], slots: list[int], is_pad: list[bool]
) -> None:
    # the slots before `lo` are a newer episode's
    times = [9.0 + 0.1 * k for k in range(lo)] + UNEVEN[lo:]
    assert by_time(times, position, seconds, lo=lo) == (slots, is_pad, [F] * len(seconds))


def test_of_repeated_timestamps_the_first_is_taken_but_now_is_the_frame_itself() -> None:
    times = [0.0, 0.1, 0.1, 0.1, 0.2]
    for position in (1, 2, 3):
        assert by_time(times, position, [-0.1, 0, 0.1])[0] == [0, position, 4]
    assert by_time(times, 0, [0.1])[0] == [1]
    assert by_time(times, 4, [-0.1])[0] == [1]
    assert by_time(times, 2, [1e-9, -1e-9])[0] == [1, 1]


def test_time_windows_look_at_no_frame_outside_the_episode() -> None:
    times = [0.0, 0.1, 0.2, 0.0, 0.1, 0.2, 0.0, 0.1]
    assert by_time(times, 4, [-0.2, -0.1, 0.1, 0.2], lo=3, hi=6) == ([3, 3, 5, 5], [T, F, F, T], [F, F, F, F])
    assert by_time(times, 4, [-0.2, -0.1, 0.1], lo=4, hi=6) == ([4, 4, 5], [T, T, F], [F, F, F])
    assert by_time(times, 4, [-0.1, 0.1], lo=4, hi=5) == ([4, 4], [T, T], [F, F])


@given(
    steps=st.lists(st.integers(0, 24), min_size=0, max_size=25),
    offsets=st.lists(st.integers(-80, 80), min_size=1, max_size=5),
    data=st.data(),
)
def test_time_windows_equal_a_search_over_all_frames(steps: list[int], offsets: list[int], data: st.DataObject) -> None:
    unit = Fraction(1, 64)  # exact in binary, so that the float arithmetic of the windows has nothing to round
    exact = [sum(steps[:k]) * unit for k in range(len(steps) + 1)]
    lo = data.draw(st.integers(0, len(exact) - 1))
    position = data.draw(st.integers(lo, len(exact) - 1))
    seconds = [float(offset * unit) for offset in offsets]
    slots, is_pad, hole = by_time([float(time) for time in exact], position, seconds, fps=8, lo=lo)
    tolerance = Fraction(tolerance_s(8))
    for offset, slot, pad, in_hole in zip(offsets, slots, is_pad, hole, strict=True):
        wanted = exact[position] + offset * unit
        nearest = min(range(lo, len(exact)), key=lambda k: (abs(exact[k] - wanted), k))
        assert slot == (position if offset == 0 else nearest)
        too_far = offset != 0 and abs(exact[nearest] - wanted) > tolerance
        outside = wanted < exact[lo] or wanted > exact[-1]
        assert (pad, in_hole) == (too_far and outside, too_far and not outside)


@given(
    fps=st.sampled_from([4, 8, 16, 32]),
    offsets=st.lists(st.integers(-200, 200), min_size=1, max_size=6),
    lo=st.integers(0, 40),
    before=st.integers(0, 30),
    after=st.integers(0, 30),
)
def test_on_regular_episodes_time_and_integer_windows_agree(
    fps: int, offsets: list[int], lo: int, before: int, after: int
) -> None:
    position, hi = lo + before, lo + before + after + 1
    times = [k / fps for k in range(hi)]  # exact in binary, half steps too
    seconds = [offset / 256 for offset in offsets]
    slots, is_pad, hole = by_time(times, position, seconds, fps, lo, hi)
    assert (slots, is_pad) == integer(position, lo, hi, seconds, fps)
    assert not any(hole)


def test_integer_windows_pad_where_float_time_would_miss_it() -> None:
    """At 30 Hz, float32 timestamps put a quarter of the edge requests a hair inside the tolerance."""
    fps, frames = 30, 10_000
    deltas = parse_deltas("index", [1 / fps], fps)
    _, is_pad = integer_windows(np.array([frames - 1]), np.array([0]), np.array([frames]), deltas)
    assert is_pad.tolist() == [[True]]


@given(
    fps=st.sampled_from([1, 10, 29.97, 5000]),
    frames=st.lists(st.lists(st.floats(-12, 12), min_size=1, max_size=5), min_size=1, max_size=3),
    lo=st.integers(0, 50),
    length=st.integers(1, 40),
)
def test_windows_made_beforehand_are_those_of_every_place(
    fps: float, frames: list[list[float]], lo: int, length: int
) -> None:
    several = [parse_deltas("index", [frame / fps for frame in some], fps) for some in frames]
    near = NearEnds.of(several, most_bytes=1 << 24)
    assert near is not None
    position = np.arange(lo, lo + length)
    ends = np.full(length, lo), np.full(length, lo + length)
    cells = near.cells(position, *ends)
    for deltas, (taken, is_pad) in zip(several, near.tables, strict=True):
        slots, padded = integer_windows(position, *ends, deltas)
        assert np.array_equal(taken[cells] + position[:, None], slots)
        assert np.array_equal(is_pad[cells], padded)


def test_windows_that_reach_far_are_not_made_beforehand() -> None:
    far = parse_deltas("index", [-1e6, 0, 1e6], 10)
    assert NearEnds.of([far], most_bytes=1 << 18) is None
    assert NearEnds.of([parse_deltas("index", [-1, 0, 1], 10)], most_bytes=1 << 18) is not None


def test_no_frames_asked_for_gives_no_windows() -> None:
    none = np.zeros(0, np.int64)
    deltas = parse_deltas("index", [0, 0.1], 10)
    assert integer_windows(none, none, none, deltas)[0].shape == (0, 2)
    assert time_windows(np.zeros(1).__getitem__, none, none, none, deltas)[0].shape == (0, 2)
