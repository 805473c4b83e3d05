"""The row of the episode table that a new episode gets."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from roboreel.format.records import FLAG_INTEGER_WINDOWS, NO_STRING
from roboreel.schema import TASK_KEY, TIMESTAMP_KEY
from roboreel.store.episode import Episode, is_regular
from roboreel.store.ring import Place
from roboreel.store.store import Store


def episode_row(
    store: Store, episode: Episode, place: Place, clips: list[tuple[int, int]], code_of: Callable[[str], int]
) -> NDArray[np.void]:
    """Return the row, (1,), not sealed yet; `clips` are (video file, first frame) of each video camera."""
    state, times = store.state, episode.columns[TIMESTAMP_KEY]
    regular = episode.integer_windows or is_regular(times, store.manifest.fps)
    row = np.zeros(1, store.table.rows.dtype)
    row["uuid"] = np.void(uuid.uuid4().bytes)
    row["start"], row["length"] = place.start, episode.length
    row["first_index"], row["episode_index"] = state.next_index, state.next_episode_index
    row["flags"] = FLAG_INTEGER_WINDOWS if regular else 0
    row["task"] = code_of(episode.strings[TASK_KEY][0]) if TASK_KEY in episode.strings else NO_STRING
    row["source"] = NO_STRING if episode.source is None else code_of(episode.source)
    row["source_episode"] = episode.source_episode
    row["max_gap"] = np.max(np.diff(times), initial=0.0)
    row["wall_start"] = episode.wall_start
    if clips:
        row["clips"] = np.array([clips], row["clips"].dtype)
    return row
