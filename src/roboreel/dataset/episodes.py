"""Episodes of an open store: their slots, their values as they are given, statistics over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel.dataset.reading import gather
from roboreel.errors import EpisodeNotFoundError
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


def statistics(store: Store, slots: Ints) -> dict[str, KeyStats]:
    """Return statistics of all numeric keys; of cameras from frames spread evenly over those given."""
    stats: dict[str, KeyStats] = {}
    for key, spec in store.manifest.keys.items():
        if spec.is_string:
            continue
        running = _running(spec)
        step = max(1, len(slots) // _SAMPLED_IMAGES) if spec.is_camera else 1
        wanted = slots[::step]
        block = max(1, _BLOCK_BYTES // max(1, spec.frame_bytes))
        for start in range(0, len(wanted), block):
            running.add(gather(store, wanted[start : start + block], [key])[key])
        stats[key] = running.result()
    return stats


def _running(spec: KeySpec) -> RunningStats | RunningImageStats | RunningDepthStats:
    if spec.is_depth:
        assert spec.unit is not None
        return RunningDepthStats(DEPTH_UNITS[spec.unit])
    return RunningImageStats(spec.shape[-1]) if spec.is_camera else RunningStats()
