"""What every way of storing a key can do: read frames, and take those of a new episode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from roboreel.columns.decode_torchcodec import load_torchcodec
from roboreel.errors import InvalidArgumentError
from roboreel.format.threads import available_cores
from roboreel.schema import KeySpec

Ints = NDArray[np.int64]

VideoDecoderName = Literal["pyav", "torchcodec"]


@dataclass
class Decoding:
    """How the images of a dataset are decoded; shared by its columns, and not stored.

    >>> Decoding(threads=3).limit
    3
    """

    video_decoder: VideoDecoderName = "pyav"
    threads: int | None = None
    """Images decoded at once in each process; None: the cores available, divided by `workers`."""
    workers: int = 1
    """Processes that read beside each other on this machine, as the workers of a DataLoader do."""

    def __post_init__(self) -> None:
        known = get_args(VideoDecoderName)
        if self.video_decoder not in known:
            would_do = " and ".join(map(repr, known))
            raise InvalidArgumentError(f"video_decoder={self.video_decoder!r}; {would_do} would do")
        if self.video_decoder == "torchcodec":
            load_torchcodec()  # where it is missing, this says so at once, not in the middle of training
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise InvalidArgumentError(f"decode_threads={self.threads!r}; a number of at least 1, or None, would do")

    def take(self, other: Decoding) -> None:
        """Become as `other`."""
        self.__dict__.update(other.__dict__)

    @property
    def limit(self) -> int:
        """How many threads a read uses."""
        return self.threads or max(1, available_cores() // self.workers)


@dataclass(frozen=True)
class Frames:
    """Frames to read, in the order in which they are wanted; arrays of shape (N,)."""

    slots: Ints
    rows: Ints
    """The episode rows that own the slots; this and the following are left empty where nothing is to be decoded."""
    positions: Ints
    """Frames since the beginning of the episode as it was recorded."""
    clips: NDArray[np.void] | None
    """(N, video cameras): video file and its frame at which the episode begins; None without video cameras."""

    def __getitem__(self, part: slice | Ints) -> Frames:
        """Return some of the frames."""
        clips = None if self.clips is None else self.clips[part]
        return Frames(self.slots[part], self.rows[part], self.positions[part], clips)


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
