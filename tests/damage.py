"""Datasets that are damaged on purpose, and what of them is left: for the tests of `verify` and `repair`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from roboreel import LeRobotDatasetV2
from roboreel.format import paths
from roboreel.format.records import DURABLE_OFFSETS, STATE_RECORD_BYTES
from roboreel.schema import LeRobotDatasetV2ImageMode
from roboreel.store import Store
from tests.recordings import recording

MODES = [mode.value for mode in LeRobotDatasetV2ImageMode]
LENGTHS = [4, 3, 5, 3]


def dataset(root: Path, mode: str) -> Path:
    """Write four episodes and close; in raw pixels a ring in which a fifth has taken the first one's first 3 frames."""
    ring: dict[str, Any] = {"buffer_capacity": 16, "use_as_fifo_buffer": True} if mode == "memmap" else {}
    with LeRobotDatasetV2(root, fps=10, image_mode=mode, **ring) as one:
        for number, length in enumerate([*LENGTHS, 3] if ring else LENGTHS):
            first = sum(LENGTHS[:number])
            one.add_episodes(recording(length, first, camera=True, task=f"task {number % 3}"))
    return root


def episodes(root: Path) -> dict[int, dict[str, bytes]]:
    """Return every byte that each episode consists of: episode number → file or key → bytes."""
    store = Store.open(root)
    found = {}
    for row in store.table.live.tolist():
        start, stop = int(store.table.live_starts[row]), int(store.table.stops[row])
        parts = {"row": store.table.rows[row].tobytes(), "owners": store.owner_words(start, stop).tobytes()}
        for key, spec in store.manifest.keys.items():
            if not spec.needs_decoding:
                parts[key] = store.memmap(key)[start:stop].tobytes()
            if spec.is_string:
                parts[key] += repr([store.strings[code] for code in store.memmap(key)[start:stop].tolist()]).encode()
            if spec.has_checksums:
                parts[f"{key} sums"] = store.checksums[key][start:stop].tobytes()
            if spec.image_mode is LeRobotDatasetV2ImageMode.PNG:
                images = range(start - int(store.table.starts[row]), stop - int(store.table.starts[row]))
                parts[key] = b"".join(paths.image_path(root, key, row, image).read_bytes() for image in images)
            if spec.image_mode is LeRobotDatasetV2ImageMode.VIDEO:
                file = int(store.table.rows["clips"]["file"][row, store.manifest.video_keys.index(key)])
                parts[key] = b"".join(
                    one(root, key, file).read_bytes() for one in (paths.video_path, paths.frame_table_path)
                )
        found[int(store.table.rows["episode_index"][row])] = parts
    store.close()
    return found


def depended(root: Path) -> dict[Path, np.ndarray]:
    """Return each file → the offsets of its bytes that a committed frame, row or key depends on."""
    store = Store.open(root)
    slots = np.concatenate(
        [np.arange(store.table.live_starts[row], store.table.stops[row]) for row in store.table.live.tolist()]
    )
    found = {}
    for key, spec in store.manifest.keys.items():
        if not spec.needs_decoding:
            found[paths.column_path(root, key)] = _bytes_of(slots, spec.frame_bytes)
        if spec.has_checksums:
            found[paths.checksum_path(root, key)] = _bytes_of(slots, 8)
    found[root / paths.OWNERS] = np.array([at for at in _bytes_of(slots, 8) if at % 8 < 5])  # above: the edit counter
    found[root / paths.EPISODES] = np.arange(store.state.rows * store.table.rows.dtype.itemsize)
    found[root / paths.STRINGS] = np.arange(store.state.string_bytes)
    found[root / paths.METADATA] = np.arange((root / paths.METADATA).stat().st_size)
    found[root / paths.STATE] = np.concatenate(
        [np.arange(offset, offset + STATE_RECORD_BYTES) for offset in (0, *DURABLE_OFFSETS)]
    )
    for path in media(root):
        found[path] = np.arange(path.stat().st_size)
    store.close()
    return found


def media(root: Path) -> Iterator[Path]:
    for folder in (paths.IMAGES, paths.VIDEOS):
        yield from sorted(path for path in (root / folder).rglob("*") if path.is_file())


def _bytes_of(slots: Any, size: int) -> Any:
    return (slots[:, None] * size + np.arange(size)).ravel()


def flip(path: Path, offset: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([old ^ bits]))
