"""Real recordings by others, read as a `Source`, against their Parquet files and against each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from roboreel.convert.lerobot import open_lerobot
from roboreel.store import VideoFrames
from tests.lerobot_folders import decoded, read_lerobot

REAL: dict[str, tuple[str, int, int, dict[str, tuple[int, ...]], list[str]]] = {
    # folder: format, episodes, frames, cameras, what the warnings begin to say
    "v2.0_gr00t_robot_sim_picknplace": (
        "v2.0",
        5,
        2096,
        {"observation.images.ego_view": (256, 256, 3)},
        ["camera 'observation.images.egoview' is declared", "total_videos", "total_chunks", "split 'train'"],
    ),
    "v2.1_baboon_camera_45s": ("v2.1", 1, 225, {"observation.images.front": (240, 320, 3)}, []),
    "v2.1_baboon_dual_camera_torque": (
        "v2.1",
        1,
        225,
        {"observation.images.front": (240, 320, 3), "observation.images.side": (240, 320, 3)},
        [],
    ),
    "v2.1_cr5_sub8": ("v2.1", 8, 1840, {"observation.images.top": (480, 640, 3)}, []),
    "v2.1_r1_in_v3_layout": (
        "v2.1",
        1,
        92,
        {"observation.images.rgb": (360, 640, 3)},
        [
            "laid out as in v3.x",
            "'observation.state' holds",
            "'action' holds float64",
            "'timestamp' holds",
        ],
    ),
    "v2.1_rm_follower_grocery": (
        "v2.1",
        1,
        2802,
        {},
        [
            "camera_head_rgb",
            "camera_left_wrist_rgb",
            "camera_right_wrist_rgb",
            "'timestamp' holds",
            "total_videos",
        ],
    ),
    "v3.0_piper_two_obj_rebuilt": (
        "v3.0",
        10,
        2126,
        {"observation.images.global_rgb": (480, 640, 3), "observation.images.wrist_rgb": (480, 640, 3)},
        [
            "global_rgb' is declared as (3, 480, 640)",
            "wrist_rgb' is declared as (3, 480, 640)",
            "stats.json: min, max of 'observation.state' are not those of its frames",
        ],
    ),
    "v3.0_pusht_image_slice": ("v3.0", 3, 420, {"observation.image": (96, 96, 3)}, []),
    "v3.0_pusht_full_novideo": ("v3.0", 206, 25650, {}, ["camera 'observation.image' is declared"]),
    "v3.0_so101_record_test_novideo": ("v3.0", 4, 1492, {}, ["images.front' is declared", "images.top' is declared"]),
    "v3.0_csvil_novideo": ("v3.0", 100, 2510, {}, []),
    "v3.0_apple_storage_novideo": (
        "v3.0",
        3,
        899,
        {},
        ["camera 'observation.image' is declared", "total_frames is 14983", "split 'train'"],
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_folder_gives_what_its_parquet_files_hold(shared_data: Path, name: str) -> None:
    version, episodes, frames, cameras, warnings = REAL[name]
    source, read_episodes = read_lerobot(shared_data / name)
    assert (source.format, source.num_episodes, source.num_frames) == (f"LeRobot {version}", episodes, frames)
    assert {key.name: key.shape for key in source.keys if key.is_camera} == cameras
    assert sum(episode.length for episode in read_episodes) == frames
    assert len(source.warnings) == len(warnings)
    for expected in warnings:
        assert any(expected in warning for warning in source.warnings), expected
    paths = sorted((shared_data / name / "data").rglob("*.parquet"))
    whole = pa.concat_tables([pq.read_table(path, partitioning=None) for path in paths])
    for key in source.keys:
        if key.role != "value":
            continue
        got = np.concatenate([episode.columns[key.name] for episode in read_episodes])
        wanted = np.array(whole.column(key.name).to_pylist()).astype(key.dtype)
        assert got.shape == (frames, *key.shape)
        np.testing.assert_array_equal(got, wanted)
    seconds = np.concatenate([episode.columns["timestamp"] for episode in read_episodes])
    np.testing.assert_array_equal(seconds, np.array(whole.column("timestamp").to_pylist()))
    tasks = _tasks(shared_data / name)
    strings = [task for episode in read_episodes for task in episode.strings["task"]]
    assert strings == [tasks[index] for index in whole.column("task_index").to_pylist()]


def _tasks(folder: Path) -> dict[int, str]:
    lines, table = folder / "meta" / "tasks.jsonl", folder / "meta" / "tasks.parquet"
    if lines.is_file():
        return {row["task_index"]: row["task"] for row in map(json.loads, lines.read_text().splitlines())}
    rows = pq.read_table(table, partitioning=None).to_pylist()
    return {row["task_index"]: next(value for value in row.values() if isinstance(value, str)) for row in rows}


@pytest.mark.parametrize("name", [path for path, fields in REAL.items() if "video" not in path and fields[3]])
def test_the_cameras_of_a_real_folder_cover_its_episodes(shared_data: Path, name: str) -> None:
    _, episodes = read_lerobot(shared_data / name)
    first: dict[Path, int] = {}
    for episode in episodes:
        for frames in episode.cameras.values():
            assert frames.length == episode.length
            if isinstance(frames, VideoFrames):
                assert frames.first == first.get(frames.path, 0)
                first[frames.path] = frames.first + frames.length


def test_pusht_equals_the_zarr_of_the_same_recording(shared_data: Path) -> None:
    zarr = pytest.importorskip("zarr")
    original = zarr.open(str(shared_data / "fmt_zarr_pusht_full"), mode="r")
    _, episodes = read_lerobot(shared_data / "v3.0_pusht_full_novideo")
    for key, wanted in (("observation.state", original["data/state"][:, :2]), ("action", original["data/action"][:])):
        got = np.concatenate([episode.columns[key] for episode in episodes])
        np.testing.assert_array_equal(got, wanted.astype(np.float32))
    ends = np.cumsum([episode.length for episode in episodes])
    np.testing.assert_array_equal(ends, original["meta/episode_ends"][:])


def test_pusht_images_equal_the_zarr_of_the_same_recording(shared_data: Path) -> None:
    zarr = pytest.importorskip("zarr")
    images = zarr.open(str(shared_data / "fmt_zarr_pusht_full"), mode="r")["data/img"]
    _, episodes = read_lerobot(shared_data / "v3.0_pusht_image_slice")
    np.testing.assert_array_equal(decoded(episodes[1], "observation.image"), images[161:279])


def test_the_sample_is_read_without_a_warning(sample_dir: Path) -> None:
    source = open_lerobot(sample_dir)
    assert (source.num_episodes, source.num_frames, source.fps) == (206, 25650, 10.0)
    assert source.warnings == ()
    first = next(iter(source.episodes())).cameras["observation.image"]
    assert isinstance(first, VideoFrames)
    assert (first.first, first.length, first.shape) == (0, 161, (96, 96, 3))
