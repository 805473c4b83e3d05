"""The sample dataset in `examples/data/pusht`: complete, small, exact in time, and true to the original images."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

CAMERA = "observation.image"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
NUM_EPISODES, NUM_FRAMES, FPS = 206, 25_650, 10
MIN_PSNR_DB = 35.0

PNG_SLICE = Path(__file__).parent / "data" / "v3.0_pusht_image_slice"
"""The original images of episodes 0, 1 and 2 (frames 0 to 419) as PNG, written by LeRobot."""


def decoded(sample_dir: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the frames of the video in order, (96, 96, 3)."""
    to_rgb = VideoReformatter()
    with av.open(str(sample_dir / VIDEO)) as container:
        for frame in container.decode(video=0):
            yield to_rgb.reformat(frame, format="rgb24").to_ndarray().astype(np.uint8, copy=False)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of each frame in dB; shapes (n, H, W, 3)."""
    apart = np.subtract(a, b, dtype=np.float32).reshape(len(a), -1)
    squares = np.einsum("nk,nk->n", apart, apart, dtype=np.float64) / apart.shape[1]
    result: NDArray[np.float64] = 10 * np.log10(255.0**2 / np.maximum(squares, 1e-9))
    return result


def rows(folder: Path, key: str) -> NDArray[Any]:
    """One column of the data file, (frames, *shape)."""
    column = pq.read_table(folder / DATA, columns=[key])[key]
    return np.array(column.to_pylist())


def test_psnr_of_known_differences() -> None:
    black = np.zeros((2, 4, 4, 3), np.uint8)
    other = np.stack([np.full((4, 4, 3), 255, np.uint8), np.full((4, 4, 3), 51, np.uint8)])
    assert psnr(black, other) == pytest.approx([0.0, 20 * np.log10(5)])


def test_it_is_small_and_says_where_it_comes_from(sample_dir: Path) -> None:
    assert sum(path.stat().st_size for path in sample_dir.rglob("*") if path.is_file()) < 12_000_000
    licence = (sample_dir / "LICENSE").read_text()
    assert licence.startswith("MIT License")
    assert "Columbia Artificial Intelligence and Robotics Lab" in licence
    provenance = json.loads((sample_dir / "_PROVENANCE.json").read_text())
    assert provenance["licence"] == "MIT"
    assert all(source["repo"] and len(source["commit"]) == 40 for source in provenance["sources"])
    script = Path(__file__).parents[1] / provenance["made_by"]
    assert script.is_file()


def test_every_file_is_the_one_that_the_script_wrote(sample_dir: Path) -> None:
    listed = json.loads((sample_dir / "_PROVENANCE.json").read_text())["files"]
    present = {str(path.relative_to(sample_dir)) for path in sample_dir.rglob("*") if path.is_file()}
    assert present == set(listed) | {"LICENSE", "README.md", "_PROVENANCE.json"}
    for name, entry in listed.items():
        assert hashlib.sha256((sample_dir / name).read_bytes()).hexdigest() == entry["sha256"], name


def test_counts_agree_between_info_and_files(sample_dir: Path) -> None:
    info = json.loads((sample_dir / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"]) == ("v3.0", FPS)
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (NUM_EPISODES, NUM_FRAMES, 1)
    assert pq.read_metadata(sample_dir / DATA).num_rows == NUM_FRAMES
    columns = set(pq.read_schema(sample_dir / DATA).names)
    assert columns == set(info["features"]) - {CAMERA}
    stats = json.loads((sample_dir / "meta/stats.json").read_text())
    assert set(stats) == columns | {CAMERA}
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    assert stats[CAMERA]["count"] == [NUM_FRAMES]


def test_episode_table_matches_the_rows(sample_dir: Path) -> None:
    table = pq.read_table(sample_dir / EPISODES)
    lengths = np.array(table["length"])
    ends = np.cumsum(lengths)
    assert (len(lengths), ends[-1]) == (NUM_EPISODES, NUM_FRAMES)
    assert np.array_equal(table["episode_index"], np.arange(NUM_EPISODES))
    assert np.array_equal(table["dataset_from_index"], ends - lengths)
    assert np.array_equal(table["dataset_to_index"], ends)
    assert np.array_equal(table[f"videos/{CAMERA}/from_timestamp"], (ends - lengths) / FPS)
    assert np.array_equal(table[f"videos/{CAMERA}/to_timestamp"], ends / FPS)
    frame_index = np.concatenate([np.arange(length) for length in lengths])
    assert np.array_equal(rows(sample_dir, "episode_index"), np.repeat(np.arange(NUM_EPISODES), lengths))
    assert np.array_equal(rows(sample_dir, "frame_index"), frame_index)
    assert np.array_equal(rows(sample_dir, "index"), np.arange(NUM_FRAMES))
    assert np.array_equal(rows(sample_dir, "timestamp").astype(np.float32), (frame_index / FPS).astype(np.float32))


def test_task_is_the_official_sentence(sample_dir: Path) -> None:
    task = "Push the T-shaped block onto the T-shaped target."
    (row,) = pq.read_table(sample_dir / "meta/tasks.parquet").to_pylist()
    assert row == {"task_index": 0, "__index_level_0__": task}
    assert set(map(tuple, pq.read_table(sample_dir / EPISODES)["tasks"].to_pylist())) == {(task,)}
    assert not rows(sample_dir, "task_index").any()


def test_video_times_are_exact_and_episodes_start_at_key_frames(sample_dir: Path) -> None:
    with av.open(str(sample_dir / VIDEO)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 96, 96)
        assert stream.average_rate == FPS
        packets = [packet for packet in container.demux(stream) if packet.size]
    times = [None if packet.pts is None else packet.pts * packet.time_base for packet in packets]
    assert times == [Fraction(k, FPS) for k in range(NUM_FRAMES)]
    assert all(packet.dts == packet.pts for packet in packets)
    keys = [k for k, packet in enumerate(packets) if packet.is_keyframe]
    assert set(pq.read_table(sample_dir / EPISODES)["dataset_from_index"].to_pylist()) <= set(keys)
    assert np.diff([*keys, NUM_FRAMES]).max() == 4


def test_every_frame_decodes(sample_dir: Path) -> None:
    with av.open(str(sample_dir / VIDEO)) as container:
        times = [round(frame.time * FPS, 6) for frame in container.decode(video=0)]
    assert times == list(range(NUM_FRAMES))


def test_first_episodes_match_the_official_png_images(sample_dir: Path) -> None:
    table = pq.read_table(PNG_SLICE / DATA)
    originals = np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table[CAMERA].to_pylist()])
    assert len(originals) == 420
    for key in ("observation.state", "action", "episode_index", "frame_index", "timestamp", "next.done"):
        assert np.array_equal(rows(PNG_SLICE, key), rows(sample_dir, key)[:420]), key
    frames = np.stack(list(islice(decoded(sample_dir), 420)))
    ratios = psnr(originals, frames)
    assert ratios.min() >= MIN_PSNR_DB, f"frame {ratios.argmin()}"
    assert np.median(psnr(originals[1:], frames[:-1])) < MIN_PSNR_DB, "the check would not see a video one frame late"


def test_frames_all_along_match_the_original_recording(sample_dir: Path, shared_data: Path) -> None:
    """A third of the images, which take long to unpack: the files are those of which all were compared once."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open(str(shared_data / "fmt_zarr_pusht_full"), mode="r")
    images = group["data/img"]
    assert images.shape == (NUM_FRAMES, 96, 96, 3)
    assert np.array_equal(group["data/state"][:, :2], rows(sample_dir, "observation.state"))
    assert np.array_equal(group["data/action"][:], rows(sample_dir, "action"))
    assert np.array_equal(group["meta/episode_ends"][:], pq.read_table(sample_dir / EPISODES)["dataset_to_index"])
    frames = decoded(sample_dir)
    step = images.chunks[0]  # each chunk is read once
    ratios = []
    for number, start in enumerate(range(0, NUM_FRAMES, step)):
        some = list(islice(frames, step))
        if number % 3 == 0:
            ratios.append(psnr(images[start : start + step].astype(np.uint8), np.stack(some)))
    assert next(frames, None) is None
    assert np.concatenate(ratios).min() >= MIN_PSNR_DB
