"""Images of a block of episodes, each decoded whole and kept in memory until others are wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.base import Frames

Held = OrderedDict[int, tuple[int, NDArray[Any]]]
"""Episode row → the position of its first frame, and its decoded frames."""


def read_held(
    held: Held, most: int, frames: Frames, out: NDArray[Any], decoded: Callable[[int], tuple[int, NDArray[Any]]]
) -> None:
    """Fill `out` (N, *shape) from the held episodes; `decoded` makes one that is missing, of which `most` are kept."""
    rows = list(dict.fromkeys(frames.rows.tolist()))
    for row in sorted(rows, key=lambda row: row not in held):  # what is here first: the new push the old out
        if row not in held:
            while len(held) >= most:
                held.popitem(last=False)
            held[row] = decoded(row)
        held.move_to_end(row)
        first, images = held[row]
        at = np.flatnonzero(frames.rows == row)
        out[at] = images[frames.positions[at] - first]
