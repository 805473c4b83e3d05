"""What lies in a dataset directory and belongs to no committed frame: left by a writer that died, or foreign."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from roboreel.format import files, paths
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store.store import Store

_CACHED = (paths.cache_slots_path, paths.cache_pixels_path)
_MODES = LeRobotDatasetV2ImageMode


def foreign_files(store: Store) -> Iterator[Path]:
    """Yield what roboreel did not put there, and the copies that `roboreel repair` keeps."""
    root, keys = store.root, store.manifest.keys
    expected = {
        root: paths.ENTRIES,
        root / paths.COLUMNS: {paths.column_path(root, key).name for key in keys},
        root / paths.CHECKSUMS: {paths.checksum_path(root, key).name for key in keys},
        **{
            root / folder: {paths.encode_key(key) for key, spec in keys.items() if spec.image_mode is mode}
            for folder, mode in ((paths.IMAGES, _MODES.PNG), (paths.VIDEOS, _MODES.VIDEO))
        },
    }
    expected[root / paths.CACHE] = {paths.CACHE_LOCK, *(path_of(root, key).name for key in keys for path_of in _CACHED)}
    for folder, names in expected.items():
        yield from (path for path in _entries(folder) if path.name not in names)
    ours = set(leftovers(store))
    for folder, used in _media(store).items():
        for path in _entries(folder):
            if path not in ours and path.name not in used:
                yield path
            elif path.is_dir():  # of one episode's images
                yield from (image for image in _entries(path) if not _is_image(image.name))


def leftovers(store: Store) -> Iterator[Path]:
    """Yield what a writer was about to add or to remove when it died; nothing refers to it.

    Beside a living writer these are what it is working on.
    """
    root = store.root
    for name in sorted(paths.IN_THE_MAKING):
        if (root / name).exists():
            yield root / name
    if not store.state.redo and (root / paths.REDO).exists():
        yield root / paths.REDO
    for folder, used in _media(store).items():
        number_in = paths.video_number if folder.parent.name == paths.VIDEOS else paths.image_dir_number
        for path in _entries(folder):
            if path.name not in used and (path.name == "new.mp4" or number_in(path.name) is not None):
                yield path


def _is_image(name: str) -> bool:
    return paths.image_number(name) is not None


def _media(store: Store) -> dict[Path, set[str]]:
    """Return the folder of each camera → the names in it that live episodes need."""
    used: dict[Path, set[str]] = {}
    live = store.table.live
    for key, spec in store.manifest.keys.items():
        if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
            names = {paths.image_dir(store.root, key, row).name for row in live.tolist()}
            used[paths.image_dir(store.root, key, 0).parent] = names
        elif spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
            clips = store.table.rows["clips"]["file"][live, store.manifest.video_keys.index(key)]
            path_of = (paths.video_path, paths.frame_table_path)
            names = {one(store.root, key, file).name for file in np.unique(clips).tolist() for one in path_of}
            used[paths.video_path(store.root, key, 0).parent] = names
    return used


def _entries(folder: Path) -> list[Path]:
    with files.looking_at(folder):
        try:
            return sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):  # also where a writer has just evicted it
            return []
