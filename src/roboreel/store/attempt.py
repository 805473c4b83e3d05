"""What one look at the data gives, so that it can be told whether a writer was there meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class Touched:
    """The slots that an attempt read, and the owner words it found there before reading."""

    slots: Ints
    words: NDArray[np.uint64]


Attempt: TypeAlias = Callable[[bool], "tuple[T, Touched | None]"]
"""Gathers something. Given True it must tell what it touched, and end where owners are not as they should be; given
False, nothing is being written, and if that stays so until it has gathered, owners need not be looked at."""


class UnsettledError(Exception):
    """An attempt met slots that hold no committed frame just now."""
