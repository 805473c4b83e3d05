"""Decoding by torchcodec, for those who have it and ask for it: the same frames by the same numbers.

torchcodec is given our frame table, so that it neither scans the file nor counts for itself, and tells the time of
each frame that it gives, which is compared with the table's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from roboreel._optional import require
from roboreel.columns.ffmpeg_files import ffmpeg_path
from roboreel.columns.frame_table import FrameTable
from roboreel.errors import MissingDependencyError, VideoError


def load_torchcodec() -> Any:
    """Return the module `torchcodec.decoders`; `MissingDependencyError` where it cannot be used."""
    try:
        return require("torchcodec.decoders", extra="torchcodec", purpose="video_decoder='torchcodec'")
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise MissingDependencyError(
            f"torchcodec is installed and cannot be loaded ({reason}): it needs the shared libraries of FFmpeg 4 to 8 "
            "and a torch that fits it; type: conda install ffmpeg, or leave video_decoder out"
        ) from error


class TorchcodecDecoder:
    """One open video file; not safe for use by two threads at once."""

    def __init__(self, path: Path | str, table: FrameTable) -> None:
        self.path = Path(path)
        self.table = table
        self._tolerance_s = float(np.diff(table.times).min()) / 2 if len(table) > 1 else np.inf
        decoders = load_torchcodec()
        try:
            self._decoder: Any = decoders.VideoDecoder(
                ffmpeg_path(path), dimension_order="NHWC", num_ffmpeg_threads=1, custom_frame_mappings=_mappings(table)
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise VideoError(f"{path}: cannot be opened by torchcodec ({_first_line(error)})") from error

    def read(self, indices: NDArray[np.int64], rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Decode frame `indices[j]` into `out[rows[j]]`; see `VideoDecoder.read`."""
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self.table):
            wrong = next(i for i in indices.tolist() if not 0 <= i < len(self.table))
            raise VideoError(f"{self.path}: frame {wrong} asked for, but the file has {len(self.table)} frames", wrong)
        try:
            batch = self._decoder.get_frames_at(indices=indices.tolist())
        except (IndexError, RuntimeError, ValueError) as error:
            if len(indices) > 1:  # which of them it is
                for index, row in zip(indices, rows, strict=True):
                    self.read(np.array([index]), np.array([row]), out)
            raise VideoError(
                f"{self.path}: frame {indices[0]} cannot be decoded by torchcodec ({_first_line(error)}); leave "
                "video_decoder out",
                int(indices[0]),
            ) from error
        pixels, times = batch.data.numpy(), batch.pts_seconds.numpy()
        missed = np.abs(times - self.table.times[indices]) >= self._tolerance_s
        if missed.any():
            k = int(np.argmax(missed))
            raise VideoError(
                f"{self.path}: torchcodec gave the frame at {times[k]:.3f} s for frame {indices[k]}, which is at "
                f"{self.table.times[indices[k]]:.3f} s; leave video_decoder out",
                int(indices[k]),
            )
        if pixels.shape[1:] != out.shape[1:]:
            raise VideoError(
                f"{self.path}: frame {indices[0]} is {pixels.shape[2]}x{pixels.shape[1]} pixels, where "
                f"{out.shape[2]}x{out.shape[1]} was expected",
                int(indices[0]),
            )
        out[rows] = pixels

    def close(self) -> None:
        self._decoder = None


def _mappings(table: FrameTable) -> str:
    steps = np.diff(table.pts)
    durations = np.append(steps, steps[-1] if len(steps) else 1)
    frames = zip(table.pts.tolist(), durations.tolist(), table.key.tolist(), strict=True)
    return json.dumps({"frames": [{"pts": pts, "duration": step, "key_frame": int(key)} for pts, step, key in frames]})


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
