"""The survivors nearest to a slot that was lost: looked for from the slot outwards, not among all there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_REACH = 64
"""Slots that are looked at first; then eight times as many, and so on."""


def survivors_around(
    slot: int, frames: int, is_lost: Callable[[NDArray[np.int64]], NDArray[np.bool_]]
) -> tuple[int, int]:
    """Return the nearest slots before and after that are not lost; -1, or the number of frames, where none is.

    >>> survivors_around(5, 10, lambda slots: (slots >= 3) & (slots < 7))
    (2, 7)
    >>> survivors_around(1, 9, lambda slots: slots < 9)
    (-1, 9)
    """
    before, reach = slot, _REACH
    while before >= 0:
        some = np.arange(max(0, before - reach), before)
        if len(alive := some[~is_lost(some)]):
            before = int(alive[-1])
            break
        before, reach = int(some[0]) if len(some) else -1, 8 * reach
    after, reach = slot, _REACH
    while after < frames:
        some = np.arange(after + 1, min(frames, after + 1 + reach))
        if len(alive := some[~is_lost(some)]):
            after = int(alive[0])
            break
        after, reach = int(some[-1]) if len(some) else frames, 8 * reach
    return before, after
