"""Which frames of a video are decoded together: integers in, integers out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

FEWEST = 16
"""Frames to decode that are worth a part of their own: opening one more decoder costs as much as some of them."""


def parts(indices: Ints, keys: Ints, most: int, fewest: int = FEWEST) -> Iterator[slice]:
    """Cut increasing frame numbers into at most `most` parts that cost about the same.

    A cut is made only where decoding begins anew in any case, at the first wanted frame of a key frame's group, so
    that no frame is decoded twice. The cost of a group is the frames from its key frame to the last one wanted.

    Args:
        indices: (n,) int64, n >= 1, strictly increasing.
        keys: (k,) int64 numbers of the key frames, increasing.
        most: at least 1.
        fewest: frames to decode in a part at least, whatever `most` says.

    Key frames 0, 10, 20 and 30; frames 3, 8, 12, 25 and 31 are 9 + 3 + 6 + 2 frames to decode:

    >>> wanted, keys = np.array([3, 8, 12, 25, 31]), np.array([0, 10, 20, 30])
    >>> [wanted[part].tolist() for part in parts(wanted, keys, most=2, fewest=1)]
    [[3, 8], [12, 25, 31]]
    """
    groups = np.searchsorted(keys, indices, side="right")
    firsts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    lasts = np.append(firsts[1:], len(indices)) - 1
    starts = np.append(0, keys)[groups[firsts]] if len(keys) else np.zeros(len(firsts), np.int64)
    done = np.cumsum(indices[lasts] - starts + 1)
    count = int(max(1, min(most, done[-1] // fewest, len(firsts))))
    shares = done[-1] * np.arange(1, count) / count
    after = np.searchsorted(done, shares)
    before = np.append(0, done)[after]
    ends = after + (done[after] - shares <= shares - before)  # the border between groups that is nearest to the share
    borders = np.append(firsts, len(indices))[ends]
    edges = np.unique([0, *borders.tolist(), len(indices)]).tolist()
    for start, stop in itertools.pairwise(edges):
        yield slice(start, stop)
