"""Where episodes go, how storage grows, and what survives: against painting the slots one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from roboreel.errors import CapacityError, DiskSpaceError
from roboreel.format.records import FLAG_INTEGER_WINDOWS, FLAG_LOST, episode_dtype
from roboreel.store.episodes import EpisodeTable
from roboreel.store.ring import Place, check_space, grown_capacity, place_episode

# Places


@pytest.mark.parametrize(
    ("length", "next_slot", "capacity", "fixed", "ring", "place"),
    [
        (3, 0, 10, True, True, (0, 3, 10)),
        (10, 0, 10, True, True, (0, 10, 10)),
        (3, 7, 10, True, True, (7, 10, 10)),  # to the last slot
        (4, 7, 10, True, True, (0, 4, 10)),  # does not fit before the end: whole to the start
        (1, 10, 10, True, True, (0, 1, 10)),
        (10, 1, 10, True, True, (0, 10, 10)),
        (3, 7, 10, True, False, (7, 10, 10)),
        (4, 7, 10, False, False, (7, 11, 11)),  # the caller grows the storage
        (100, 0, 10, False, False, (0, 100, 100)),
    ],
)
def test_place(
    length: int, next_slot: int, capacity: int, fixed: bool, ring: bool, place: tuple[int, int, int]
) -> None:
    assert place_episode(length, next_slot, capacity, fixed=fixed, ring=ring) == Place(*place)


@pytest.mark.parametrize("ring", [False, True])
def test_an_episode_longer_than_a_fixed_capacity_is_refused(ring: bool) -> None:
    with pytest.raises(CapacityError, match=r"11 frames is longer than buffer_capacity=10.*buffer_capacity=11"):
        place_episode(11, 0, 10, fixed=True, ring=ring)


def test_an_episode_for_which_no_room_is_left_is_refused_with_the_capacity_that_would_do() -> None:
    with pytest.raises(
        CapacityError, match=r"exceeds buffer_capacity=10 by 1: 7 frames are stored.*buffer_capacity=11"
    ):
        place_episode(4, 7, 10, fixed=True, ring=False)


@pytest.mark.parametrize(
    ("capacity", "needed", "free", "grown"),
    [
        (100, 101, 10_000, 200),
        (100, 200, 10_000, 200),
        (100, 201, 10_000, 400),
        (100, 1000, 100_000, 1600),
        (0, 5, 10_000, 8),
        (100, 101, 1250, 200),  # 1,000 bytes more: just 80 % of what is free
        (100, 101, 1249, 101),
        (100, 101, 10, 101),  # the last free byte
    ],
)
def test_growth(capacity: int, needed: int, free: int, grown: int) -> None:
    assert grown_capacity(capacity, needed, frame_bytes=10, free=free) == grown


def test_growth_without_room_says_what_it_needs() -> None:
    with pytest.raises(DiskSpaceError, match=r"needs 1,010 bytes and 1,009 are free"):
        grown_capacity(100, 201, frame_bytes=10, free=1009)


def test_a_share_of_the_free_space_is_left_to_others() -> None:
    check_space(80, 100)
    with pytest.raises(DiskSpaceError, match="at most 80% of that is taken"):
        check_space(81, 100)


# What survives


def rows(spans: list[tuple[int, int]], flags: int = FLAG_INTEGER_WINDOWS, first: int = 0) -> NDArray[np.void]:
    table = np.zeros(len(spans), episode_dtype(0))
    for k, (start, length) in enumerate(spans):
        table[k]["start"], table[k]["length"], table[k]["episode_index"] = start, length, first + k
        table[k]["flags"] = flags
    return table


def painted(spans: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(row, first slot, stop) of each row that still shows after all are painted over one another."""
    slots = [-1] * max(start + length for start, length in spans)
    for row, (start, length) in enumerate(spans):
        slots[start : start + length] = [row] * length
    shown = []
    for row in range(len(spans)):
        held = [slot for slot, owner in enumerate(slots) if owner == row]
        if held:
            assert held == list(range(held[0], held[-1] + 1)), "a ring leaves one piece of an episode, its end"
            shown.append((row, held[0], held[-1] + 1))
    return shown


def surviving(table: EpisodeTable) -> list[tuple[int, int, int]]:
    live = table.live
    return list(zip(live.tolist(), table.live_starts[live].tolist(), table.stops[live].tolist(), strict=True))


@st.composite
def placed(draw: st.DrawFn, capacity: int, most: int) -> list[tuple[int, int]]:
    """Spans of episodes as a ring places them."""
    spans, next_slot = [], 0
    for length in draw(st.lists(st.integers(1, capacity), min_size=1, max_size=most)):
        place = place_episode(length, next_slot, capacity, fixed=True, ring=True)
        spans.append((place.start, length))
        next_slot = place.stop
    return spans


def test_what_survives_by_hand() -> None:
    table = EpisodeTable(episode_dtype(0))
    table.append(rows([(0, 4), (4, 3), (7, 3)]))  # full
    assert surviving(table) == [(0, 0, 4), (1, 4, 7), (2, 7, 10)]
    table.append(rows([(0, 2)]))
    assert surviving(table) == [(0, 2, 4), (1, 4, 7), (2, 7, 10), (3, 0, 2)]
    table.append(rows([(2, 4)]))  # the rest of the first, and a part of the second
    assert surviving(table) == [(1, 6, 7), (2, 7, 10), (3, 0, 2), (4, 2, 6)]
    table.append(rows([(0, 10)]))
    assert surviving(table) == [(5, 0, 10)]


@given(spans=st.integers(1, 30).flatmap(lambda capacity: placed(capacity, 25)), data=st.data())
def test_what_survives_equals_painting_however_the_rows_come(spans: list[tuple[int, int]], data: st.DataObject) -> None:
    expected = painted(spans)
    at_once = EpisodeTable(episode_dtype(0))
    at_once.append(rows(spans))
    assert surviving(at_once) == expected

    one_by_one = EpisodeTable(episode_dtype(0))
    for k, span in enumerate(spans):
        one_by_one.append(rows([span], first=k))
        assert surviving(one_by_one) == painted(spans[: k + 1])

    cut = data.draw(st.integers(0, len(spans)))
    in_two = EpisodeTable(episode_dtype(0))
    in_two.append(rows(spans[:cut]))
    in_two.append(rows(spans[cut:], first=cut))
    assert surviving(in_two) == expected
    assert np.array_equal(in_two.rows, at_once.rows)


def test_many_rows_in_one_go_over_a_table_that_has_wrapped() -> None:
    rng = np.random.default_rng(0)
    spans: list[tuple[int, int]] = []
    next_slot = 0
    for length in rng.integers(1, 12, 400).tolist():
        place = place_episode(length, next_slot, 50, fixed=True, ring=True)
        spans.append((place.start, length))
        next_slot = place.stop
    table = EpisodeTable(episode_dtype(0))
    for start, stop in ((0, 30), (30, 31), (31, 200), (200, 264), (264, 400)):  # both ways of taking rows in
        table.append(rows(spans[start:stop], first=start))
        assert surviving(table) == painted(spans[:stop])
    assert table.rows["episode_index"].tolist() == list(range(400))


def test_lost_slots_are_taken_from_those_who_hold_them() -> None:
    table = EpisodeTable(episode_dtype(0))
    table.append(rows([(0, 4), (4, 3), (7, 3)]))
    table.lose(0, 5)
    assert surviving(table) == [(1, 5, 7), (2, 7, 10)]
    assert not table.has_losses


def test_a_row_that_says_lost_takes_slots_and_is_no_episode() -> None:
    table = EpisodeTable(episode_dtype(0))
    table.append(rows([(0, 4), (4, 3), (7, 3)]))
    table.append(rows([(0, 5)], FLAG_LOST))
    assert surviving(table) == [(1, 5, 7), (2, 7, 10)]
    assert table.has_losses
    table.append(rows([(0, 2)]))
    assert surviving(table) == [(1, 5, 7), (2, 7, 10), (4, 0, 2)]
    again = EpisodeTable(episode_dtype(0))
    again.append(table.rows.copy())
    assert surviving(again) == surviving(table)


def test_windows_are_all_by_number_once_no_irregular_episode_is_left() -> None:
    table = EpisodeTable(episode_dtype(0))
    table.append(rows([(0, 4)], flags=0))
    table.append(rows([(4, 3)]))
    assert not table.integer_windows
    assert table.integer_windows_of(np.array([1, 0, 1])).tolist() == [True, False, True]
    table.append(rows([(0, 4)]))
    assert table.integer_windows


def test_an_empty_table_holds_nothing() -> None:
    table = EpisodeTable(episode_dtype(1))
    table.append(np.zeros(0, episode_dtype(1)))
    assert len(table) == 0
    assert table.live.tolist() == []
    assert table.integer_windows
