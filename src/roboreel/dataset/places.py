"""Where the windows of frames lie, made beforehand: for every frame, or, where there are many, for blocks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from roboreel.windows import NearEnds

Ints = NDArray[np.int64]
Window = tuple[Ints, NDArray[np.bool_]]
"""The frames that it takes, and which of them are padding, (B, T)."""

_MOST_BYTES = 1 << 24
"""Of windows that are kept."""
_MOST_BLOCKS = 1 << 21
_MOST_STEPS = 4
"""From the episode that a block begins with, to the one that a frame is of."""


class Places(Protocol):
    """What finds the windows of frames."""

    def windows(self, slots: Ints) -> list[Window]:
        """Return for each key, or group of them, the windows around frames, (B,), that are there."""

    def window(self, slot: int) -> list[Window]:
        """Return those around one frame, (T,), in memory that is not to be given away."""


def places_of(near: NearEnds, starts: Ints, stops: Ints, frames: int) -> Places | None:
    """Return what finds them in these episodes; None where there are frames of none, or it would look for long.

    Args:
        near: The windows, by how far the ends of an episode are.
        starts: The first slot of each episode.
        stops: The slots after their last.
        frames: So many slots there are.
    """
    order = starts.argsort()
    starts, stops = starts[order], stops[order]
    if not np.array_equal(np.append(0, stops), np.append(starts, frames)):
        return None
    if frames * sum(taken[0].nbytes + is_pad[0].nbytes for taken, is_pad in near.tables) <= _MOST_BYTES:
        return ByFrame.of(near, starts, stops)
    shift = (frames // _MOST_BLOCKS).bit_length()
    first = starts.searchsorted(np.arange(0, frames, 1 << shift), "right") - 1
    steps = int(np.diff(first, append=len(starts) - 1).max())
    return ByBlock(near, starts, stops, shift, first, steps) if steps <= _MOST_STEPS else None


def places_made(frames: int) -> int:
    """How many of them are made beforehand for so many frames, at most."""
    return min(frames, _MOST_BLOCKS)


@dataclass(frozen=True)
class ByFrame:
    """The windows of each frame."""

    tables: list[Window]

    @classmethod
    def of(cls, near: NearEnds, starts: Ints, stops: Ints) -> ByFrame:
        """Make them."""
        lengths = stops - starts
        slots = np.arange(int(lengths.sum()))
        cells = near.cells(slots, np.repeat(starts, lengths), np.repeat(stops, lengths))
        return cls([(taken[cells] + slots[:, None], is_pad[cells]) for taken, is_pad in near.tables])

    def windows(self, slots: Ints) -> list[Window]:
        # "clip" because numpy gathers through a second buffer when it has to check the bounds
        return [
            (taken.take(slots, 0, None, "clip"), is_pad.take(slots, 0, None, "clip")) for taken, is_pad in self.tables
        ]

    def window(self, slot: int) -> list[Window]:
        return [(taken[slot], is_pad[slot]) for taken, is_pad in self.tables]


@dataclass(frozen=True)
class ByBlock:
    """The episodes of blocks of frames, from which those of the frames are a few steps away."""

    near: NearEnds
    starts: Ints
    stops: Ints
    """Each is the next one's start, in the order of slots."""
    shift: int
    """2**shift frames a block."""
    first: Ints
    """The episode that each block begins with."""
    steps: int
    """So many more begin in a block at most."""

    def windows(self, slots: Ints) -> list[Window]:
        episodes = self.first.take(slots >> self.shift, mode="clip")
        for _ in range(self.steps):
            episodes += self.stops.take(episodes, mode="clip") <= slots
        lo, hi = self.starts.take(episodes, mode="clip"), self.stops.take(episodes, mode="clip")
        cells, column = self.near.cells(slots, lo, hi), slots[:, None]
        return [
            (taken.take(cells, 0, None, "clip") + column, is_pad.take(cells, 0, None, "clip"))
            for taken, is_pad in self.near.tables
        ]

    def window(self, slot: int) -> list[Window]:
        return [(taken[0], is_pad[0]) for taken, is_pad in self.windows(np.array([slot]))]
