"""Whether info.json's fps is that of the data: windows are found by it, so that a wrong one gives wrong frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from roboreel.convert.lerobot_columns import read_timestamps
from roboreel.convert.lerobot_info import Info
from roboreel.convert.lerobot_layout import EpisodeEntry, Warnings
from roboreel.errors import SourceError
from roboreel.store import FrameTable

_EPISODES = 10
"""So many are looked at: a wrong fps is wrong from the first one on."""

_CLOSE, _FAR = 1.1, 1.5
"""Factors between two rates: up to the first they agree (recorded clocks jitter), beyond the second one is wrong."""
LEAST_DRIFT = 0.5
"""Frames: over fewer, a frame for each row and the frame nearest to its time are the same."""


def check_rate(
    info: Info, entries: Sequence[EpisodeEntry], video_rates: Mapping[str, float], warnings: Warnings
) -> None:
    """Compare fps with the timestamps' median step, and with the average rate of each camera's first video.

    `SourceError` where the timestamps go at quite another rate, unless every video goes at fps: then, and where they
    are merely somewhat off or do not advance, it is a warning.
    """
    for key, rate in video_rates.items():
        if rates_differ(rate, info.fps):
            warnings.add(
                f"{info.path}: fps is {info.fps:g}, and the video of camera {key!r} has {rate:.4g} frames a second: "
                "one frame is taken for each row, by number where there are as many, else by timestamp"
            )
    step = _median_step(entries)
    if step is None:
        return
    if step <= 0:
        warnings.add(f"{entries[0].where}: the timestamps do not advance from row to row: kept as they are")
        return
    factor = _factor(1 / step, info.fps)
    if factor <= _CLOSE:
        return
    said = (
        f"{info.path}: fps is {info.fps:g}, and the timestamps step by {step:.4g} s, which is {1 / step:.4g} a second"
    )
    videos_agree = bool(video_rates) and all(_factor(rate, info.fps) <= _CLOSE for rate in video_rates.values())
    if factor > _FAR and not videos_agree:
        # a video's rate is exact where a recorded clock jitters
        rates = [rate for rate in video_rates.values() if _factor(rate, 1 / step) <= _CLOSE]
        raise SourceError(
            f'{said}; type "fps": {rates[0] if rates else 1 / step:.4g} there, or correct the timestamps (in seconds)'
        )
    warnings.add(f"{said}" + (" (the videos agree with fps)" if videos_agree else "") + ": fps is taken as it is")


def rates_differ(rate: float, other: float) -> bool:
    """Whether two rates are further apart than recorded clocks jitter."""
    return _factor(rate, other) > _CLOSE


def average_rate(table: FrameTable) -> float | None:
    """Frames a second on average; None where there is only one frame."""
    return (len(table) - 1) / float(table.times[-1] - table.times[0]) if len(table) > 1 else None


def is_steady(table: FrameTable) -> bool:
    """Whether the frames come at one rate, but for what the clock of the file rounds: that rate is then exact."""
    return len(table) > 1 and int(np.ptp(np.diff(table.pts))) <= 1


def drift(rows: int, rate: float, fps: float) -> float:
    """Return by how many frames a video of this rate is longer than its rows, if it lasts as long.

    >>> drift(240, rate=25, fps=24), drift(200, rate=48, fps=50)
    (10.0, -8.0)
    """
    return rows * rate / fps - rows


def lasts_as_rows(frames: float, rows: int, rate: float, fps: float) -> bool:
    """Whether a video has the frames that the rows' time takes at its rate, rather than one frame a row.

    Of 240 rows at 24 Hz, beside a video of 25 frames a second: 250 frames are those of the same 10 seconds, 243 are
    one for each row and 3 more. Rates that differ by less than half a frame over all rows are the same.

    >>> [lasts_as_rows(frames, 240, rate=25, fps=24) for frames in (240, 243, 250, 252)]
    [False, False, True, True]
    >>> lasts_as_rows(192, 200, rate=48, fps=50), lasts_as_rows(250, 240, rate=24.01, fps=24)
    (True, False)
    """
    extra = drift(rows, rate, fps)
    return abs(extra) >= LEAST_DRIFT and abs(frames - rows - extra) < abs(frames - rows)


def _factor(rate: float, other: float) -> float:
    return max(rate / other, other / rate)


def _median_step(entries: Sequence[EpisodeEntry]) -> float | None:
    """Seconds between two rows; None where no row tells."""
    steps = []
    for entry in entries[:_EPISODES]:
        seconds = read_timestamps(entry)
        if seconds is not None:
            steps.append(np.diff(seconds[np.isfinite(seconds)]))
    found = np.concatenate(steps) if steps else np.zeros(0)
    return float(np.median(found)) if len(found) else None
