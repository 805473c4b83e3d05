r"""Make `examples/data/pusht`: the whole PushT set as a LeRobot v3.0 dataset with one small video.

    python scripts/make_pusht_sample.py ../shared/data/fmt_zarr_pusht_full \
        ../shared/data/v3.0_pusht_full_novideo examples/data/pusht

The images come from the diffusion-policy zarr, everything else from the official LeRobot v3.0 dataset, whose video
was not at hand; both must hold the same states and actions, bit for bit. Takes about 40 s on one core. Run
twice on one machine it wrote the same bytes; another version of the encoder will write others.

The video is H.264 yuv444p, a key frame at the start of each episode and every four frames, no B-frames. Measured on
996 frames of eight episodes: bytes a frame; lowest and mean PSNR; CPU ms to decode one frame and convert it to RGB:

    libx264   yuv444p  GOP 4  crf 28          198   39.4  42.8 dB   0.12 in sequence  0.24 at random
    libx264   yuv444p  GOP 2  crf 28          282   39.0  41.3 dB   0.12              0.21
    libx264   yuv444p  GOP 10 crf 28          143   39.8  43.7 dB   0.15              0.39
    libx264   yuv420p  GOP 4  crf 20          263   36.9  38.7 dB   0.07              0.21
    libsvtav1 yuv420p  GOP 2  crf 30          206   35.9  38.5 dB   0.12              0.36

Halving the chroma caps these synthetic images with their saturated edges near 37 dB (worst frame) however many bytes
are spent; without B-frames, decode order is presentation order and a read decodes at most four frames. Over the whole
set it is 196 bytes a frame, 39.0 dB at worst and 42.8 dB on average.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro
import zarr
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from roboreel.columns.scheduling import ordinary_threads

CAMERA = "observation.image"
FPS = 10
SIDE = 96
GOP = 4
CODEC = "libx264"
PIX_FMT = "yuv444p"
OPTIONS = {
    "crf": "28",
    "preset": "veryslow",
    "tune": "psnr",  # the psychovisual tricks of the default pay in bytes for what no policy sees
    "bf": "0",
    "sc_threshold": "0",  # a scene cut would shift the key frames
    "forced_idr": "1",  # otherwise a forced key frame is an I-frame that later frames may reach across
    "threads": "1",  # x264's output depends on the number of threads
}
MIN_PSNR_DB = 35.0
MAX_BYTES = 12_000_000

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"
INFO = "meta/info.json"
STATS = "meta/stats.json"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"

Stats = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Recording:
    """The diffusion-policy zarr, opened: arrays over all frames, and where each episode begins and ends."""

    images: Any
    """(frames, 96, 96, 3) float32 with whole values 0..255, read in slices."""
    bounds: NDArray[np.int64]
    """(episodes + 1,): episode e is frames bounds[e] to bounds[e + 1]."""
    state: NDArray[np.float32]
    action: NDArray[np.float32]

    @classmethod
    def open(cls, folder: Path) -> Recording:
        group: Any = zarr.open(str(folder), mode="r")
        data = group["data"]
        bounds = np.concatenate([[0], group["meta/episode_ends"][:]]).astype(np.int64)
        return cls(data["img"], bounds, data["state"][:, :2], data["action"][:])

    @property
    def num_frames(self) -> int:
        return int(self.bounds[-1])

    def episodes(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the images of each episode, (length, 96, 96, 3); refuses values that uint8 cannot hold."""
        for start, end in zip(self.bounds[:-1], self.bounds[1:], strict=True):
            values = self.images[start:end]
            frames: NDArray[np.uint8] = values.astype(np.uint8)
            if not np.array_equal(frames, values):
                raise SystemExit(f"frames {start} to {end}: pixel values that are not whole numbers in 0..255")
            yield frames


def check_same_recording(recording: Recording, official: Path) -> None:
    """Refuse to pair images with rows of another recording."""
    table = pq.read_table(official / DATA)
    for key, ours in (("observation.state", recording.state), ("action", recording.action)):
        theirs = table[key].combine_chunks().flatten().to_numpy().reshape(-1, 2)
        if not np.array_equal(ours, theirs):
            raise SystemExit(f"{key} differs between the zarr and {official / DATA}: not the same recording")
    lengths = np.diff(recording.bounds)
    if pq.read_table(official / EPISODES)["length"].to_pylist() != lengths.tolist():
        raise SystemExit(f"episode lengths differ between the zarr and {official / EPISODES}")


def encode_video(path: Path, recording: Recording) -> None:
    """Write all episodes into one mp4, frame k at exactly k / 10 s, each episode starting at a key frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_yuv = VideoReformatter()  # one for all: a frame's own `reformat` sets up the conversion anew each time
    with (
        ordinary_threads(),
        av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container,
    ):
        stream = cast(av.VideoStream, container.add_stream(CODEC, rate=FPS, options=OPTIONS))
        stream.width = stream.height = SIDE
        stream.pix_fmt = PIX_FMT
        stream.codec_context.gop_size = GOP
        stream.codec_context.time_base = Fraction(1, FPS)
        index = 0
        for frames in recording.episodes():
            for k, array in enumerate(frames):
                frame = to_yuv.reformat(av.VideoFrame.from_ndarray(array, format="rgb24"), format=PIX_FMT)
                frame.pts, frame.time_base = index, Fraction(1, FPS)
                frame.pict_type = PictureType.I if k == 0 else PictureType.NONE
                container.mux(stream.encode(frame))
                index += 1
        container.mux(stream.encode(None))


def check_packets(path: Path, bounds: NDArray[np.int64]) -> int:
    """Refuse a video whose times or key frames are not as promised; returns the number of key frames."""
    keys = []
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    if len(packets) != bounds[-1]:
        raise SystemExit(f"{path}: {len(packets)} packets for {bounds[-1]} frames")
    for k, packet in enumerate(packets):
        if packet.pts is None or packet.dts != packet.pts or packet.pts * packet.time_base != Fraction(k, FPS):
            raise SystemExit(f"{path}: packet {k} has pts {packet.pts}, dts {packet.dts}, wanted {k}/{FPS} s")
        if packet.is_keyframe:
            keys.append(k)
    if missing := sorted(set(bounds[:-1].tolist()) - set(keys)):
        raise SystemExit(f"{path}: no key frame at the start of the episodes at frames {missing}")
    if np.diff([*keys, len(packets)]).max() > GOP:
        raise SystemExit(f"{path}: key frames more than {GOP} apart")
    return len(keys)


def decode_episodes(path: Path, lengths: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of each episode as a reader sees them, (length, 96, 96, 3)."""
    to_rgb = VideoReformatter()
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        for length in lengths:
            images = [to_rgb.reformat(next(frames), format="rgb24").to_ndarray() for _ in range(length)]
            yield np.stack(images)
        if next(frames, None) is not None:
            raise SystemExit(f"{path}: more frames than the {sum(lengths)} of the episodes")


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each frame in dB, over all its pixels and channels; shapes (n, H, W, 3)."""
    error = np.square(a.astype(np.int32) - b).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):  # identical frames are infinitely good
        result: NDArray[np.float64] = 10 * np.log10(255.0**2 / error)
    return result


def image_stats(frames: NDArray[np.uint8]) -> Stats:
    """Statistics of each channel over all pixels, scaled to 0..1, in the (3, 1, 1) of LeRobot; `count` is in frames."""
    values = np.arange(256) / 255.0
    counts = np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in range(3)])
    mean = counts @ values / counts.sum(axis=1)
    square = counts @ values**2 / counts.sum(axis=1)
    present = [values[row > 0] for row in counts]
    stats = {
        "min": np.array([row[0] for row in present]),
        "max": np.array([row[-1] for row in present]),
        "mean": mean,
        "std": np.sqrt(np.maximum(square - mean**2, 0.0)),
    }
    return {name: value.reshape(3, 1, 1) for name, value in stats.items()} | {"count": np.array([len(frames)])}


def join_stats(parts: Sequence[Stats]) -> Stats:
    """Statistics of all episodes from those of each: the law of total variance."""
    weights = np.array([part["count"][0] for part in parts], dtype=np.float64)[:, None, None, None] / sum(
        part["count"][0] for part in parts
    )
    means = np.stack([part["mean"] for part in parts])
    mean = (weights * means).sum(axis=0)
    variance = (weights * (np.stack([part["std"] for part in parts]) ** 2 + (means - mean) ** 2)).sum(axis=0)
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": np.sum([part["count"] for part in parts], axis=0),
    }


def measure_video(path: Path, recording: Recording) -> tuple[NDArray[np.float64], list[Stats]]:
    """Decode everything: the PSNR of each frame against its original, and the statistics of each episode."""
    lengths = np.diff(recording.bounds).tolist()
    ratios, stats = [], []
    for original, decoded in zip(recording.episodes(), decode_episodes(path, lengths), strict=True):
        ratios.append(psnr(original, decoded))
        stats.append(image_stats(decoded))
    return np.concatenate(ratios), stats


def write_info(official: Path, dest: Path) -> None:
    """The official info.json, with what the camera's video is here."""
    info = json.loads((official / INFO).read_text())
    camera = info["features"][CAMERA]
    camera.pop("video_info")  # the name that LeRobot used before v2.1
    camera["info"] = {
        "video.height": SIDE,
        "video.width": SIDE,
        "video.codec": "h264",
        "video.pix_fmt": PIX_FMT,
        "video.is_depth_map": False,
        "video.fps": FPS,
        "video.channels": 3,
        "has_audio": False,
    }
    write_json(dest / INFO, info)


def write_stats(official: Path, dest: Path, images: Stats) -> None:
    """The official stats.json, with the statistics of this video's frames."""
    stats = json.loads((official / STATS).read_text())
    stats[CAMERA] = {name: value.tolist() for name, value in images.items()}
    write_json(dest / STATS, stats)


def write_episodes(official: Path, dest: Path, bounds: NDArray[np.int64], images: Sequence[Stats]) -> None:
    """The official episode table, with exact times in the video and the statistics of this video's frames."""
    table = pq.read_table(official / EPISODES)
    columns: dict[str, list[Any]] = {
        # The official times are running sums and have drifted by 1e-12.
        f"videos/{CAMERA}/from_timestamp": (bounds[:-1] / FPS).tolist(),
        f"videos/{CAMERA}/to_timestamp": (bounds[1:] / FPS).tolist(),
    }
    for name in images[0]:
        columns[f"stats/{CAMERA}/{name}"] = [stats[name].tolist() for stats in images]
    for name, values in columns.items():
        position = table.schema.get_field_index(name)
        field = table.schema.field(position)
        table = table.set_column(position, field, pa.array(values, type=field.type))
    (dest / EPISODES).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, dest / EPISODES, compression="snappy")


def write_provenance(sources: Sequence[Path], dest: Path, video: Mapping[str, Any]) -> None:
    """Where the sample comes from, what made it, how good it is, and the hash of each file."""
    described = [json.loads((source / "_PROVENANCE.json").read_text()) for source in sources]
    kept = ("name", "repo", "commit", "root")
    files = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name in (INFO, STATS, TASKS, EPISODES, DATA, VIDEO)
        for data in [(dest / name).read_bytes()]
    }
    libraries = {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}
    provenance = {
        "name": "pusht",
        "licence": "MIT",
        "licence_files": ["LICENSE"],
        "sources": [{key: source[key] for key in kept} for source in described],
        "unchanged_from_second_source": [DATA, TASKS],
        "made_by": "scripts/make_pusht_sample.py",
        "versions": {
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            **{module.__name__: module.__version__ for module in (av, np, pa, zarr)},
            **libraries,
        },
        "video": dict(video),
        "files": files,
    }
    write_json(dest / "_PROVENANCE.json", provenance)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_result(dest: Path, ratios: NDArray[np.float64]) -> None:
    worst = int(ratios.argmin())
    if ratios[worst] < MIN_PSNR_DB:
        raise SystemExit(f"frame {worst} has {ratios[worst]:.2f} dB, at least {MIN_PSNR_DB} wanted: lower crf")
    total = sum(path.stat().st_size for path in dest.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise SystemExit(f"{dest} has {total} bytes, at most {MAX_BYTES} wanted: raise crf or GOP")
    quality = f"PSNR min {ratios.min():.2f} dB (frame {worst}), mean {ratios.mean():.2f} dB"
    print(f"{dest}: {total} bytes, {len(ratios)} frames, {quality}")


def main(
    zarr_folder: tyro.conf.Positional[Path], official: tyro.conf.Positional[Path], dest: tyro.conf.Positional[Path]
) -> None:
    """Make the sample.

    Args:
        zarr_folder: the diffusion-policy zarr, `fmt_zarr_pusht_full`.
        official: the official LeRobot v3.0 dataset without its video, `v3.0_pusht_full_novideo`.
        dest: where to write; LICENSE and README.md there are left alone.
    """
    recording = Recording.open(zarr_folder)
    check_same_recording(recording, official)
    encode_video(dest / VIDEO, recording)
    num_keys = check_packets(dest / VIDEO, recording.bounds)
    ratios, stats = measure_video(dest / VIDEO, recording)
    for name in (DATA, TASKS):
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(official / name, dest / name)
    write_info(official, dest)
    write_stats(official, dest, join_stats(stats))
    write_episodes(official, dest, recording.bounds, stats)
    video = {
        "encoder": CODEC,
        "pix_fmt": PIX_FMT,
        "gop_size": GOP,
        "options": OPTIONS,
        "frames": len(ratios),
        "key_frames": num_keys,
        "psnr_min_db": round(float(ratios.min()), 3),
        "psnr_mean_db": round(float(ratios.mean()), 3),
    }
    write_provenance((zarr_folder, official), dest, video)
    check_result(dest, ratios)


if __name__ == "__main__":
    tyro.cli(main)
