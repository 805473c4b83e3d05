"""Episodes of an open store: their slots, a choice of them, statistics over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.reading import Windows, gather
from roboreel.errors import EpisodeNotFoundError, InvalidArgumentError
from roboreel.schema import DEPTH_UNITS, KeySpec
from roboreel.stats import KeyStats, RunningDepthStats, RunningImageStats, RunningStats
from roboreel.store import Store

Ints = NDArray[np.int64]

_BLOCK_BYTES = 16 << 20
_SAMPLED_IMAGES = 1000
"""So many frames of a camera, evenly spread, tell its mean and spread to far better than a policy can notice."""


def episode_slots(store: Store, episode_index: int) -> Ints | None:
    """Return the surviving slots of an episode in order, or None where the dataset does not hold it."""
    with store.lock:
        store.settle()
        table = store.table
        row = table.live[table.rows["episode_index"][table.live] == episode_index]
        return np.arange(table.live_starts[row[0]], table.stops[row[0]]) if len(row) else None


def episode_not_found(episode_index: int, held: Ints) -> EpisodeNotFoundError:
    span = f"{held[0]} to {held[-1]}" if len(held) else "none"
    return EpisodeNotFoundError(
        f"episode {episode_index} is not in the dataset, which holds {len(held)} episodes: {span}"
    )


def as_given(store: Store, key: str, array: NDArray[Any]) -> Any:
    """Return a key's values as users are given them: strings for their codes, `timestamp` as float32."""
    spec = store.manifest.keys[key]
    if spec.is_string:
        return [store.strings[code] for code in array.tolist()]  # `gather` has looked at the codes
    return array.astype(spec.item_dtype, copy=False)


def chosen_slots(store: Store, episodes: Sequence[int]) -> Ints:
    """Return the slots of the chosen episodes, in the order in which they were given."""
    if store.manifest.ring:
        raise InvalidArgumentError("episodes= cannot choose from a ring, whose episodes are overwritten; leave it out")
    if len(set(episodes)) != len(episodes):
        raise InvalidArgumentError(f"episodes={list(episodes)} names an episode twice")
    found = {episode: episode_slots(store, episode) for episode in episodes}
    if missing := [episode for episode, slots in found.items() if slots is None]:
        held = len(store.table.live)
        raise EpisodeNotFoundError(f"episodes {missing[:10]} are not in the dataset, which holds {held} episodes")
    return np.concatenate([np.zeros(0, np.int64), *(slots for slots in found.values() if slots is not None)])


def episode_ranges(store: Store, episodes: Sequence[int] | None) -> dict[str, Ints]:
    """Return the first index of each readable episode, and the one after its last."""
    table = store.table
    starts, stops = table.live_starts[table.live], table.stops[table.live]
    if episodes is None:
        return {"from": starts.copy(), "to": stops}
    numbers = table.rows["episode_index"][table.live]
    order = [int(np.flatnonzero(numbers == episode)[0]) for episode in episodes]
    ends = np.cumsum((stops - starts)[order], dtype=np.int64)
    return {"from": ends - (stops - starts)[order], "to": ends}


def statistics(store: Store, chosen: Ints | None) -> dict[str, KeyStats]:
    """Return statistics of all numeric keys; of cameras from frames spread evenly over the dataset."""
    slots = np.arange(store.state.frames) if chosen is None else chosen
    stats: dict[str, KeyStats] = {}
    for key, spec in store.manifest.keys.items():
        if spec.is_string:
            continue
        running = _running(spec)
        step = max(1, len(slots) // _SAMPLED_IMAGES) if spec.is_camera else 1
        wanted = slots[::step]
        block = max(1, _BLOCK_BYTES // max(1, spec.frame_bytes))
        for start in range(0, len(wanted), block):
            arrays, _ = gather(store, wanted[start : start + block], [key], Windows({}))
            running.add(arrays[key])
        stats[key] = running.result()
    return stats


def _running(spec: KeySpec) -> RunningStats | RunningImageStats | RunningDepthStats:
    if spec.is_depth:
        assert spec.unit is not None
        return RunningDepthStats(DEPTH_UNITS[spec.unit])
    return RunningImageStats(spec.shape[-1]) if spec.is_camera else RunningStats()
