"""What a foreign dataset must give to be taken in: its keys once, then its episodes one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from roboreel.schema import KeySpec
from roboreel.store import CameraFrames, PngFrames


@dataclass(frozen=True)
class SourceEpisode:
    """One episode of a foreign dataset; `length` frames, which are read or decoded when they are asked for."""

    index: int
    """The number that the source gives it; errors name it."""
    length: int
    columns: Mapping[str, NDArray[Any]]
    """(length, *shape) for every key that is neither a camera nor a string."""
    strings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """One string a frame, e.g. `task`."""
    cameras: Mapping[str, CameraFrames] = field(default_factory=dict)
    integer_windows: bool = True
    """Row k is frame k whatever its timestamp says; False: where the timestamps are regular."""


@dataclass(frozen=True)
class DecodedImages(CameraFrames):
    """Images that are not PNG: they are decoded for every image mode."""

    files: PngFrames

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.files.length

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return self.files.shape

    def blocks(self) -> Iterator[NDArray[Any]]:
        return self.files.blocks()


class ForeignDataset(Protocol):
    """A foreign dataset, opened: what can be checked without reading the frames has been checked."""

    @property
    def format(self) -> str:
        """Name and version, e.g. `LeRobot v2.1`."""

    @property
    def fps(self) -> float: ...

    @property
    def keys(self) -> Sequence[KeySpec]:
        """Every key but `index`, `episode_index`, `frame_index` and `timestamp`, which every dataset has.

        A camera's `image_mode` is the one that keeps it as it is: `video` or `png`.
        """

    @property
    def num_episodes(self) -> int: ...

    @property
    def num_frames(self) -> int: ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What is known of where it comes from: any JSON object."""

    @property
    def warnings(self) -> Sequence[str]:
        """What was found wrong and worked around, a sentence each; complete once the episodes are through."""

    @property
    def row_bytes(self) -> int:
        """Bytes of the files that hold what is no camera's; other things may be in them too."""

    def camera_files(self, key: str) -> Mapping[Path, int]:
        """The files that hold a camera's frames and nothing else, and their bytes; none where images lie among rows."""

    def episodes(self) -> Iterator[SourceEpisode]:
        """Every episode, in order; `SourceError` names the file, key or episode that cannot be read."""


@runtime_checkable
class StreamedSource(Protocol):
    """A source whose files may be fetched while its episodes are gone through."""

    @property
    def is_remote(self) -> bool:
        """Whether they are."""

    def episodes_from(self, first: int) -> Iterator[SourceEpisode]:
        """The episodes from number `first` on, counted from 0: of those before, nothing is fetched."""

    def release(self, number: int) -> None:
        """Let go of the files that no episode after this one, counted from 0, needs."""

    @property
    def released_bytes(self) -> int:
        """Bytes of files that are here before the first episode and will go one after the other, as they are let go."""
