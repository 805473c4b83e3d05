"""Every benchmark, in the order of the table."""

from __future__ import annotations

from benchmarks.cases import (
    cold,
    dataset_size,
    decoded_cache,
    memory,
    png,
    pusht_windows,
    pusht_workers,
    ring_written,
    single_items,
    video,
    writing,
)

SUITE = (
    pusht_windows.STATE,
    pusht_windows.IMAGE,
    pusht_windows.IMAGE_FLOAT,
    pusht_windows.FRAMES,
    cold.COLD,
    pusht_workers.STATE,
    pusht_workers.IMAGE,
    pusht_workers.TRANSFORM,
    single_items.ITEMS,
    dataset_size.SIZE,
    ring_written.RING,
    memory.WORKERS,
    video.WINDOWS,
    video.TWO_CAMERAS,
    video.PUSHT,
    video.SPARSE_KEYS,
    decoded_cache.CACHE,
    memory.VIDEOS,
    png.PNG,
    writing.MEMMAP,
    writing.VIDEO,
)
