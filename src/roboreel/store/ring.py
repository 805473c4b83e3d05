"""Where an episode goes, and how storage grows: pure arithmetic on slots and bytes."""

from __future__ import annotations

from dataclasses import dataclass

from roboreel.errors import CapacityError, DiskSpaceError

FREE_SHARE = 0.8
"""No more than this share of the free space is taken ahead of need."""


@dataclass(frozen=True)
class Place:
    """Slots [start, stop) for an episode, in storage of `capacity` slots."""

    start: int
    stop: int
    capacity: int


def place_episode(length: int, next_slot: int, capacity: int, *, fixed: bool, ring: bool) -> Place:
    """Return where an episode of `length` frames goes; the capacity returned may have to be reached by growing.

    A ring of 10 slots, filled up to slot 7: four frames do not fit before the end and go whole to the start.

    >>> place_episode(4, 7, 10, fixed=True, ring=True)
    Place(start=0, stop=4, capacity=10)

    Raises:
        CapacityError: the capacity is fixed and the episode does not fit.
    """
    if fixed and length > capacity:
        raise CapacityError(
            f"an episode of {length} frames is longer than buffer_capacity={capacity}; "
            f"reopen with buffer_capacity={length} or more"
        )
    stop = next_slot + length
    if stop <= capacity:
        return Place(next_slot, stop, capacity)
    if ring:
        return Place(0, length, capacity)
    if fixed:
        raise CapacityError(
            f"an episode of {length} frames exceeds buffer_capacity={capacity} by {stop - capacity}: {next_slot} "
            f"frames are stored; reopen with buffer_capacity={stop} or more, or create with use_as_fifo_buffer=True"
        )
    return Place(next_slot, stop, stop)


def grown_capacity(capacity: int, needed: int, frame_bytes: int, free: int) -> int:
    """Return the new capacity, in frames, when `needed` frames must fit: doubled, or just that where space is short.

    >>> grown_capacity(100, 150, frame_bytes=10, free=10_000)
    200
    >>> grown_capacity(100, 150, frame_bytes=10, free=900)
    150

    Raises:
        DiskSpaceError: not even the needed frames fit into what is free.
    """
    doubled = max(capacity, 1)
    while doubled < needed:
        doubled *= 2
    if (doubled - capacity) * frame_bytes <= FREE_SHARE * free:
        return doubled
    check_space((needed - capacity) * frame_bytes, free, share=1.0)
    return needed


def ring_ranges(start: int, length: int, capacity: int) -> list[tuple[int, int]]:
    """Return the slot ranges of `length` slots that begin at `start` and go on around the ring.

    >>> ring_ranges(8, 5, 10), ring_ranges(3, 4, 10), ring_ranges(3, 0, 10)
    ([(8, 10), (0, 3)], [(3, 7)], [])
    """
    if length >= capacity:
        return [(0, capacity)]
    start %= capacity
    ranges = [(start, min(start + length, capacity)), (0, start + length - capacity)]
    return [(a, b) for a, b in ranges if a < b]


def at_risk_length(start: int, length: int, place: Place) -> int:
    """Return how long the range at risk from `start` on must be so that an episode's slots lie in it.

    It is lengthened in steps of a sixteenth of the ring, because each lengthening waits for the device.

    >>> at_risk_length(90, 0, Place(0, 8, 100)), at_risk_length(90, 18, Place(0, 8, 100))
    (24, 18)
    """
    needed = (place.start - start) % place.capacity + place.stop - place.start
    if needed <= length or length >= place.capacity:
        return length
    return min(needed + place.capacity // 16, place.capacity)


def check_space(wanted: int, free: int, share: float = FREE_SHARE) -> None:
    """Refuse to take `wanted` bytes where that is more than `share` of the free ones."""
    if wanted > share * free:
        raise DiskSpaceError(
            f"this needs {wanted:,} bytes and {free:,} are free (at most {share:.0%} of that is taken); "
            "free some space, choose another storage_dir, or a smaller buffer_capacity"
        )
