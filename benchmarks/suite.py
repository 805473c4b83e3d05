"""Every benchmark, in the order of the table."""

from __future__ import annotations

from benchmarks.cases import png, pusht_windows, pusht_workers, single_items, video

SUITE = (
    pusht_windows.STATE,
    pusht_windows.IMAGE,
    pusht_windows.IMAGE_FLOAT,
    pusht_windows.FRAMES,
    pusht_workers.STATE,
    pusht_workers.IMAGE,
    pusht_workers.TRANSFORM,
    single_items.ITEMS,
    video.WINDOWS,
    video.TWO_CAMERAS,
    video.PUSHT,
    video.SPARSE_KEYS,
    png.PNG,
)
