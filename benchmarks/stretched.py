"""A dataset of any length without its bytes: columns are sparse files, all zeros; owners and episodes are real."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from benchmarks.recordings import FPS
from roboreel import LeRobotDatasetV2
from roboreel.format import paths
from roboreel.format.manifest import metadata_hash
from roboreel.format.records import CHECKSUM_DTYPE, OWNER_DTYPE, seal_row
from roboreel.store import Store
from roboreel.store.records import StateFile

EPISODE_FRAMES = 125
"""Those of PushT have 125 frames on average."""
_BLOCK = 1 << 22


def make(folder: Path, frames: int) -> None:
    """Make a dataset of PushT's keys without its camera, `frames` long, a whole number of episodes."""
    one = {
        "observation.state": np.zeros((EPISODE_FRAMES, 2), np.float32),
        "action": np.zeros((EPISODE_FRAMES, 2), np.float32),
        "next.reward": np.zeros(EPISODE_FRAMES, np.float32),
        "next.done": np.zeros(EPISODE_FRAMES, bool),
        "next.success": np.zeros(EPISODE_FRAMES, bool),
        "task_index": np.zeros(EPISODE_FRAMES, np.int64),
    }
    dataset = LeRobotDatasetV2(folder, fps=FPS)
    dataset.add_episodes(one)
    dataset.close()
    store = Store.open(folder)
    store.refresh()
    manifest, state, row = store.manifest, store.state, store.table.rows[:1].copy()
    store.close()
    episodes = frames // EPISODE_FRAMES
    frames = episodes * EPISODE_FRAMES
    for key, spec in manifest.keys.items():
        os.truncate(paths.column_path(folder, key), frames * spec.frame_bytes)
        if spec.has_checksums:
            os.truncate(paths.checksum_path(folder, key), frames * CHECKSUM_DTYPE.itemsize)
    with (folder / paths.OWNERS).open("wb") as file:
        for start in range(0, frames, _BLOCK):
            slots = np.arange(start, min(start + _BLOCK, frames))
            file.write((slots // EPISODE_FRAMES + 1).astype(OWNER_DTYPE).tobytes())
    rows = np.repeat(row, episodes)
    rows["start"] = rows["first_index"] = np.arange(episodes) * EPISODE_FRAMES
    rows["episode_index"] = np.arange(episodes)
    (folder / paths.EPISODES).write_bytes(b"".join(seal_row(rows[k : k + 1]) for k in range(episodes)))
    metadata = dataclasses.replace(manifest, capacity=frames).to_bytes()
    (folder / paths.METADATA).write_bytes(metadata)
    grown = dataclasses.replace(
        state,
        generation=episodes,
        seq=2 * episodes,
        rows=episodes,
        frames=frames,
        capacity=frames,
        next_slot=frames,
        next_index=frames,
        next_episode_index=episodes,
        metadata_hash=metadata_hash(metadata),
    )
    file_of_states = StateFile(folder)
    file_of_states.put_live(grown)
    file_of_states.put_durable(grown)
    file_of_states.close()
