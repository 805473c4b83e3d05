"""What every way of storing a key can do: read frames, and take those of a new episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.schema import KeySpec

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Frames:
    """Frames to read, in the order in which they are wanted; arrays of shape (N,)."""

    slots: Ints
    rows: Ints
    """The episode rows that own the slots."""
    positions: Ints
    """Frames since the beginning of the episode as it was recorded."""
    clips: NDArray[np.void] | None
    """(N, video cameras): video file and its frame at which the episode begins; None without video cameras."""


class Column(ABC):
    """One key, for reading. Opened by readers and writers alike; holds nothing that a forked child must not use."""

    spec: KeySpec

    @abstractmethod
    def read(self, frames: Frames, out: NDArray[Any]) -> None:
        """Fill `out` (N, *shape) with the frames asked for.

        Raises:
            FileNotFoundError: a file is gone, as when a ring has just overwritten the episode.
        """

    def reopen(self, capacity: int) -> None:
        """Take notice that storage has grown to `capacity` slots."""

    def close(self) -> None:
        """Let go of files and mappings."""
