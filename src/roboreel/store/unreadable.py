"""An image that cannot be read, said by episode, frame and camera."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from roboreel.columns.base import Frames
from roboreel.errors import SourceError, StorageDirCorruptError, UnreadableImageError
from roboreel.format import paths
from roboreel.format.manifest import Manifest
from roboreel.store.episodes import EpisodeTable

_WHAT_WOULD_DO = (
    "type roboreel verify DIR for all that is damaged; restore the file from a copy, or open the other episodes alone "
    "(episodes=[...]), or drop this one with roboreel repair DIR"
)


@contextlib.contextmanager
def saying_which(root: Path, table: EpisodeTable, key: str, frames: Frames) -> Iterator[None]:
    """Have an error about an image of these frames say where in the dataset that is, and what would do."""
    try:
        yield
    except (SourceError, StorageDirCorruptError) as error:
        if error.slot is None or isinstance(error, UnreadableImageError):
            raise
        at = int(np.argmax(frames.slots == error.slot))
        episode = int(table.rows["episode_index"][frames.rows[at]])
        raise UnreadableImageError(
            f"episode {episode}, frame {int(frames.positions[at])} of {key!r}: {error}; "
            + _WHAT_WOULD_DO.replace("DIR", str(root))
        ) from error


def missing(path: Path, root: Path, manifest: Manifest, table: EpisodeTable) -> StorageDirCorruptError:
    """Return the error of a file that is not there, which names episode and camera where it holds images."""
    told = f"{path} is missing; restore it from a copy"
    try:
        folder, name, *rest = path.relative_to(root).parts
    except ValueError:
        return StorageDirCorruptError(told)
    key = next((key for key in manifest.keys if paths.encode_key(key) == name), None)
    rows = np.zeros(0, np.int64)
    if folder == paths.IMAGES and rest and (row := paths.image_dir_number(rest[0])) is not None:
        rows = np.intersect1d(table.live, [row])
    elif folder == paths.VIDEOS and rest and key in manifest.video_keys:
        clips = table.rows["clips"]["file"][table.live, manifest.video_keys.index(key)]
        rows = table.live[clips == paths.video_number(rest[0])]
    if key is None or not len(rows):
        return StorageDirCorruptError(told)
    episodes = table.rows["episode_index"][rows]
    which = f"episode {episodes[0]}" if len(episodes) == 1 else f"{len(episodes)} episodes from {episodes[0]} on"
    return UnreadableImageError(
        f"{which}, camera {key!r}: {told}, or drop what needs it with roboreel repair {root}; type roboreel verify "
        f"{root} for all that is damaged"
    )
