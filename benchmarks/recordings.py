"""The data that is measured on: PushT from the sample, frames made up, LeRobot folders of both; made once, and kept."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks.benchmark import Scene
from roboreel import LeRobotDatasetV2
from roboreel.columns.scheduling import ordinary_threads

os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 tells its settings otherwise

SAMPLE = Path(__file__).parents[1] / "examples" / "data" / "pusht"
CAMERA = "observation.image"
FPS = 10
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/{camera}/chunk-000/file-000.mp4"

Blocks = Iterable[NDArray[np.uint8]]
"""Frames (k, height, width, 3), in order."""

STATE_WINDOWS = {
    "observation.state": [k / FPS for k in range(6)],
    "action": [k / FPS for k in range(5)],
    "next.reward": [k / FPS for k in range(5)],
}
"""Those of TD-MPC with a horizon of 5: what PushT is measured with."""
IMAGE_WINDOWS = {**STATE_WINDOWS, CAMERA: [k / FPS for k in range(6)]}


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Return `path`, made by `make` under another name first, so that half of it is never taken for all."""
    if not path.exists():
        unfinished = path.with_name(path.name + ".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        make(unfinished)
        unfinished.rename(path)
    return path


@dataclass(frozen=True)
class Encoding:
    """How a video is coded. AV1 with a key frame every second frame is LeRobot's default."""

    encoder: str = "libsvtav1"
    gop: int = 2
    options: Mapping[str, str] = field(default_factory=lambda: {"crf": "30", "preset": "10"})


H264 = {"crf": "23", "preset": "veryfast", "bf": "0"}


def encode(path: Path, blocks: Blocks, encoding: Encoding, fps: int = FPS) -> int:
    """Write an MP4, frame k at k / fps seconds; returns the number of frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with ordinary_threads(), av.open(str(path), "w", format="mp4") as container:
        settings = {"g": str(encoding.gop), **encoding.options}
        stream: Any = container.add_stream(encoding.encoder, rate=fps, options=settings)
        for pixels in itertools.chain.from_iterable(blocks):
            if not count:
                stream.height, stream.width, _ = pixels.shape
                stream.pix_fmt = "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = count, Fraction(1, fps)
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count


def decoded(path: Path, frames: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the first `frames` frames of a video, one a block."""
    with av.open(str(path)) as container:
        for frame in itertools.islice(container.decode(video=0), frames):
            yield frame.to_ndarray(format="rgb24")[None].astype(np.uint8, copy=False)


def moving_frames(count: int, height: int, width: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Yield frames as a camera on an arm sees them, so that codecs find what they know: texture that slides, and noise.

    Blocks of one; (1, height, width, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 226, (height // 8 + 17, width // 8 + 17, 3))
    scene = coarse.repeat(8, axis=0).repeat(8, axis=1)
    for _ in range(2):  # soft edges
        scene = (scene + np.roll(scene, 3, 0) + np.roll(scene, 3, 1) + np.roll(scene, -5, 0)) // 4
    noise = rng.normal(0, 2, (height + 64, width + 64, 1))
    for k in range(count):
        down, right = int(32 + 31 * np.sin(k / 17)), int(32 + 31 * np.cos(k / 23))
        shake = rng.integers(0, 64, 2)
        grain = noise[shake[0] : shake[0] + height, shake[1] : shake[1] + width]
        frame = scene[down : down + height, right : right + width] + grain
        yield np.clip(frame, 0, 255).astype(np.uint8)[None]


# LeRobot folders


def pusht(scene: Scene) -> Path:
    """The sample; of a tiny scene its first two episodes, the video coded anew."""
    if scene.size != "tiny":
        return SAMPLE
    return once(scene.cache / "pusht", lambda folder: _pusht(folder, episodes=2, encoding=Encoding("libx264", 4, H264)))


def pusht_states(scene: Scene) -> Path:
    """PushT without its camera."""
    return once(scene.cache / "pusht_states", lambda folder: _pusht(folder, _episodes(scene)))


def pusht_images(scene: Scene) -> Path:
    """PushT with its images as PNG files in Parquet."""
    return once(scene.cache / "pusht_images", lambda folder: _pusht(folder, _episodes(scene), images=True))


def pusht_av1(scene: Scene) -> Path:
    """PushT as the official dataset has it: all of it in one AV1 file, a key frame every second frame."""
    return once(scene.cache / "pusht_av1", lambda folder: _pusht(folder, _episodes(scene), encoding=Encoding()))


def _episodes(scene: Scene) -> int:
    return scene.pick(2, 206, 206)


def _pusht(folder: Path, episodes: int, *, encoding: Encoding | None = None, images: bool = False) -> None:
    lengths = pq.read_table(SAMPLE / EPISODES)["length"].to_pylist()[:episodes]
    rows = pq.read_table(SAMPLE / DATA).slice(0, sum(lengths))
    source = decoded(SAMPLE / VIDEO.format(camera=CAMERA), sum(lengths))
    cameras = {} if encoding is None else {CAMERA: source}
    if images:
        pngs = [{"bytes": _png(block[0]), "path": f"frame-{k:06d}.png"} for k, block in enumerate(source)]
        rows = rows.append_column(CAMERA, pa.array(pngs))
    write_lerobot(folder, rows, lengths, cameras, encoding or Encoding())


def made_up(scene: Scene, name: str, lengths: Sequence[int], size: tuple[int, int], cameras: int = 1) -> Path:
    """A folder of made-up frames of (height, width), in AV1 with a key frame every second frame."""
    return once(scene.cache / name, lambda folder: _made_up(folder, lengths, size, cameras, Encoding()))


def made_up_sparse_keys(scene: Scene, name: str, lengths: Sequence[int], size: tuple[int, int]) -> Path:
    """As `made_up`, in H.264 with a key frame every 250 frames."""
    encoding = Encoding("libx264", 250, H264)
    return once(scene.cache / name, lambda folder: _made_up(folder, lengths, size, 1, encoding))


def _made_up(folder: Path, lengths: Sequence[int], size: tuple[int, int], cameras: int, encoding: Encoding) -> None:
    total = sum(lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * total, dtype=np.float32)), 2)
    columns = {
        "observation.state": pairs,
        "action": pairs,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "frame_index": position,
        "timestamp": (position / FPS).astype(np.float32),
        "index": np.arange(total),
        "task_index": np.zeros(total, np.int64),
    }
    videos = {f"observation.images.cam{k}": moving_frames(total, *size, seed=k) for k in range(cameras)}
    write_lerobot(folder, pa.table(columns), lengths, videos, encoding)


def write_lerobot(
    folder: Path, rows: pa.Table, lengths: Sequence[int], cameras: Mapping[str, Blocks], encoding: Encoding
) -> None:
    """Write a LeRobot v3.0 folder: one Parquet file, one video a camera; images that are among the rows stay there."""
    features: dict[str, dict[str, Any]] = {}
    for column in rows.schema:
        features[column.name] = _feature(column, rows)
    for camera, blocks in cameras.items():
        blocks = iter(blocks)
        first = next(blocks)
        encode(folder / VIDEO.format(camera=camera), itertools.chain([first], blocks), encoding)
        names = ["height", "width", "channels"]
        about = {"video.fps": FPS, "video.height": first.shape[1], "video.width": first.shape[2], "video.channels": 3}
        about |= {"video.codec": "av1", "video.pix_fmt": "yuv420p", "video.is_depth_map": False, "has_audio": False}
        features[camera] = {"dtype": "video", "shape": list(first.shape[1:]), "names": names, "info": about}
    for part in (DATA, EPISODES):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.replace_schema_metadata(None), folder / DATA, row_group_size=1024)
    pq.write_table(_episode_rows(lengths, list(cameras)), folder / EPISODES)
    shutil.copyfile(SAMPLE / "meta" / "tasks.parquet", folder / "meta" / "tasks.parquet")
    info = json.loads((SAMPLE / "meta" / "info.json").read_text())
    info |= {"total_episodes": len(lengths), "total_frames": rows.num_rows, "splits": {"train": f"0:{len(lengths)}"}}
    info |= {"features": features} | ({} if cameras else {"video_path": None})
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=1))
    (folder / "meta" / "stats.json").write_text(json.dumps(_stats(rows, list(cameras))))


def _feature(column: pa.Field, rows: pa.Table) -> dict[str, Any]:
    if pa.types.is_struct(column.type):
        height, width = _shape_of_png(rows[column.name][0].as_py()["bytes"])
        return {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]}
    if pa.types.is_fixed_size_list(column.type):
        return {"dtype": "float32", "shape": [column.type.list_size], "names": None}
    names = {pa.float32(): "float32", pa.int64(): "int64", pa.bool_(): "bool"}
    return {"dtype": names[column.type], "shape": [1], "names": None}


def _episode_rows(lengths: Sequence[int], cameras: Sequence[str]) -> pa.Table:
    ends = np.cumsum(lengths)
    starts = ends - lengths
    zeros = np.zeros(len(lengths), np.int64)
    columns: dict[str, Any] = {
        "episode_index": np.arange(len(lengths)),
        "data/chunk_index": zeros,
        "data/file_index": zeros,
        "dataset_from_index": starts,
        "dataset_to_index": ends,
        "length": np.asarray(lengths),
        "tasks": [["Push the T-shaped block onto the T-shaped target."]] * len(lengths),
        "meta/episodes/chunk_index": zeros,
        "meta/episodes/file_index": zeros,
    }
    for camera in cameras:
        columns |= {f"videos/{camera}/{name}_index": zeros for name in ("chunk", "file")}
        columns |= {f"videos/{camera}/from_timestamp": starts / FPS, f"videos/{camera}/to_timestamp": ends / FPS}
    return pa.table(columns)


def _stats(rows: pa.Table, cameras: Sequence[str]) -> dict[str, Any]:
    """Those of the columns; of images enough for a reader that wants some: nothing is normalised here."""
    sides = {"min": 0.0, "max": 1.0, "mean": 0.5, "std": 0.3}
    images = [*cameras, *(column.name for column in rows.schema if pa.types.is_struct(column.type))]
    stats: dict[str, Any] = {camera: {name: [[[value]]] * 3 for name, value in sides.items()} for camera in images}
    for key in ("observation.state", "action"):
        values = np.array(rows[key].to_pylist(), np.float64)
        stats[key] = {name: getattr(values, name)(axis=0).tolist() for name in sides}
    return {key: {**value, "count": [rows.num_rows]} for key, value in stats.items()}


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _shape_of_png(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        return image.height, image.width


# Ours


def imported(scene: Scene, folder: Path, *, decode: bool = False) -> Path:
    """The folder taken into a dataset of ours, raw pixels where `decode`."""
    name = f"{folder.name}_{'memmap' if decode else 'as_it_is'}"

    def make(place: Path) -> None:
        LeRobotDatasetV2.from_lerobot(folder, place, decode_images=decode, progress=False).close()

    return once(scene.cache / "ours" / name, make)
