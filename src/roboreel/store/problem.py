"""One thing that is wrong with a dataset directory: where, what, and which episodes suffer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Problem:
    """Printed as one line: `columns/action.bin: episode 3: frame 2: not matching the checksum in …`."""

    file: str
    """Relative to the dataset directory."""
    what: str
    row: int = -1
    """The row of `episodes.bin` that suffers; -1: none alone."""
    episode: int = -1
    slots: tuple[int, ...] = ()
    """The frames that suffer, as slots."""
    key: str = ""
    """The data key whose frames suffer; empty: all, or none."""

    def __str__(self) -> str:
        return f"{self.file}: {f'episode {self.episode}: ' if self.episode >= 0 else ''}{self.what}"


def frames_text(positions: Ints) -> str:
    """Name frames by their number within the episode, the first ones where there are many.

    >>> frames_text(np.array([2])), frames_text(np.array([0, 1, 2, 3])), frames_text(np.array([0, 4]))
    ('frame 2', 'frames 0 to 3', '2 frames from 0 to 4')
    """
    low, high = int(positions[0]), int(positions[-1])
    if low == high:
        return f"frame {low}"
    return (
        f"frames {low} to {high}"
        if high - low + 1 == len(positions)
        else f"{len(positions)} frames from {low} to {high}"
    )
