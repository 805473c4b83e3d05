"""What can be wrong with a dataset directory that opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from roboreel.columns.video import VideoColumn
from roboreel.errors import RoboreelError
from roboreel.format import paths
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store.store import Store


def is_dataset(root: Path) -> bool:
    """Whether there is a dataset in the directory; `metadata.json` is the last file that its making writes."""
    return (root / paths.METADATA).exists()


def find_problems(store: Store) -> list[str]:
    """Return a sentence for each thing in which the files contradict each other; none where all is well."""
    table, frames = store.table, store.state.frames
    problems: list[str] = []
    lost = store.lost_slots(0, frames)
    accounted = np.zeros(frames, bool)
    for row in table.live.tolist():
        start, stop = int(table.live_starts[row]), int(table.stops[row])
        accounted[start:stop] = True
        owners = store.owner_rows(start, stop)
        if not np.all(owners == row):
            problems.append(f"episode {table.rows['episode_index'][row]}: slots {start} to {stop} name other owners")
    accounted[lost] = True
    if not np.all(accounted):
        problems.append(f"{np.count_nonzero(~accounted)} slots name an owner that the table does not place there")
    for key, spec in store.manifest.keys.items():
        if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            problems += _video_problems(store, key)
        elif spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
            problems += _png_problems(store, key)
    return problems


def _video_problems(store: Store, key: str) -> list[str]:
    column = store.columns[key]
    assert isinstance(column, VideoColumn)
    clips = store.table.rows["clips"][store.table.live, store.manifest.video_keys.index(key)]
    ends = clips["first"] + store.table.rows["length"][store.table.live]
    problems = []
    for file in np.unique(clips["file"]).tolist():
        path = paths.video_path(store.root, key, file)
        try:
            held = len(column.table(file))
        except (OSError, RoboreelError) as error:
            problems.append(f"{paths.frame_table_path(store.root, key, file)} cannot be read: {error}")
            continue
        if not path.exists():
            problems.append(f"{path} is missing")
        if held < int(ends[clips["file"] == file].max()):
            problems.append(f"{path} holds {held} frames, its episodes need {int(ends[clips['file'] == file].max())}")
    return problems


def _png_problems(store: Store, key: str) -> list[str]:
    problems = []
    table = store.table
    for row in table.live.tolist():
        first = int(table.live_starts[row] - table.starts[row])
        missing = [
            position
            for position in range(first, int(table.rows["length"][row]))
            if not paths.image_path(store.root, key, row, position).exists()
        ]
        if missing:
            path = paths.image_path(store.root, key, row, missing[0])
            problems.append(f"{len(missing)} images of episode {table.rows['episode_index'][row]} are missing: {path}")
    return problems
