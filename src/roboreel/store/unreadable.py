"""An image that cannot be decoded, said by episode, frame and camera."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np

from roboreel.columns.base import Frames
from roboreel.errors import SourceError
from roboreel.store.episodes import EpisodeTable


@contextlib.contextmanager
def saying_which(table: EpisodeTable, key: str, frames: Frames) -> Iterator[None]:
    """Have an error about an image of these frames say where in the dataset that is, and what would do."""
    try:
        yield
    except SourceError as error:
        if error.slot is None:
            raise
        at = int(np.argmax(frames.slots == error.slot))
        episode = int(table.rows["episode_index"][frames.rows[at]])
        raise type(error)(
            f"episode {episode}, frame {int(frames.positions[at])} of {key!r}: {error}; record or import the episode "
            "again, or leave it out (episodes=[...] opens others alone)"
        ) from error
