"""The floor of reading video: the packets that must be decoded, decoded and converted by PyAV, and nothing around."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.benchmark import Setup
from benchmarks.recorded import batches
from benchmarks.recordings import EPISODES, VIDEO

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Stretch:
    """Frames that are decoded in one go: from a key frame on, or on from where the decoder stands."""

    seek_to: int | None
    """A presentation time, in the stream's units."""
    places: dict[int, list[int]]
    """For each wanted frame, by presentation time, the rows of the output that it goes to."""
    last: int


class Video:
    """One camera's file, kept open."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        self._pts = sorted(packet.pts for packet in packets if packet.pts is not None)
        self._keys = np.asarray(sorted(self._pts.index(p.pts) for p in packets if p.is_keyframe and p.pts is not None))
        self._container: Any = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        self._to_rgb = av.video.reformatter.VideoReformatter()
        self.shape = (self._stream.height, self._stream.width, 3)

    def plan(self, frames: Ints) -> list[Stretch]:
        """Return what has to be decoded for the frames (n,), in order; no frame of a stretch is decoded twice."""
        stretches: list[Stretch] = []
        at = -1
        for frame in np.unique(frames).tolist():
            key = int(self._keys[np.searchsorted(self._keys, frame, side="right") - 1])
            if key > at + 1 or not stretches:
                stretches.append(Stretch(self._pts[key], {}, 0))
            places = {**stretches[-1].places, self._pts[frame]: np.flatnonzero(frames == frame).tolist()}
            stretches[-1] = Stretch(stretches[-1].seek_to, places, self._pts[frame])
            at = frame
        return stretches

    def read(self, stretches: Sequence[Stretch], out: NDArray[np.uint8]) -> None:
        for stretch in stretches:
            self._container.seek(stretch.seek_to, stream=self._stream)
            for frame in self._decoded():
                rows = stretch.places.get(frame.pts)
                if rows is not None:
                    rgb = self._to_rgb.reformat(frame, format="rgb24", threads=1)
                    plane: Any = rgb.planes[0]
                    lines = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
                    for row in rows:
                        out[row] = lines[:, : 3 * rgb.width].reshape(out.shape[1:])
                if frame.pts == stretch.last:
                    break

    def _decoded(self) -> Iterator[Any]:
        for packet in self._container.demux(self._stream):
            yield from packet.decode()


def libav(setup: Setup) -> Iterator[Any]:
    """A contender: the windows of every camera, into ready arrays; which packets, is known beforehand."""
    folder = Path(setup["folder"])
    episodes = pq.read_table(folder / EPISODES, columns=["dataset_from_index", "dataset_to_index"])
    starts, stops = (episodes[name].to_numpy() for name in episodes.column_names)
    work = []
    out: dict[str, NDArray[np.uint8]] = {}
    for camera in setup["cameras"]:
        video = Video(folder / VIDEO.format(camera=camera))
        offsets = np.rint(np.asarray(setup["deltas"].get(camera, [0])) * setup["fps"]).astype(np.int64)
        plans = []
        for indices in batches(setup):
            episode = np.searchsorted(starts, indices, side="right") - 1
            rows = np.clip(indices[:, None] + offsets, starts[episode][:, None], stops[episode][:, None] - 1)
            plans.append(video.plan(rows.reshape(-1)))
        out[camera] = np.zeros((setup["batch_size"] * len(offsets), *video.shape), np.uint8)
        work.append((video, plans, out[camera]))
    at = 0

    def run(count: int) -> dict[str, NDArray[np.uint8]]:
        nonlocal at
        for _ in range(count):
            for video, plans, frames in work:
                video.read(plans[at % len(plans)], frames)
            at += 1
        return out

    yield run
