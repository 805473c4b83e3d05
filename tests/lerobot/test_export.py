"""What `to_lerobot` writes is read by LeRobot's own LeRobotDataset, and is as LeRobot's own writer leaves it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from scripts.equivalence import Windows, compare, converted, open_theirs

from roboreel import LeRobotDatasetV2
from tests.lerobot import lerobot_writer
from tests.lerobot.lerobot_writer import CAMERAS, FEATURES, FPS, TOP
from tests.recordings import CAMERA, numbers_of, recording
from tests.video_files import painted_frames, read_numbers

WINDOWS: Windows = {"action": [-1, 0, 3], "observation.state": [-2, 0]}


def imported(folder: Path, place: Path) -> LeRobotDatasetV2:
    return LeRobotDatasetV2.from_lerobot(folder, place, progress=False)


def assert_read_alike(folder: Path, dataset: LeRobotDatasetV2, windows: Windows | None) -> None:
    """LeRobot reads in a folder what `dataset` holds, and finds what it needs of metadata and statistics."""
    found = compare(folder, dataset, windows)
    assert (found.items, found.refused, found.differ, found.said) == (len(dataset), 0, [], [])
    theirs = open_theirs(folder, None, FPS)
    assert [len(theirs), theirs.num_episodes, theirs.fps] == [len(dataset), dataset.num_episodes, dataset.fps]
    assert theirs.meta.camera_keys == dataset.camera_keys
    for key in ("action", *dataset.camera_keys):
        assert {"mean", "std", "min", "max", "count"} <= set(theirs.meta.stats[key])


@pytest.fixture
def several(tmp_path: Path) -> LeRobotDatasetV2:
    """Episodes of several cameras, each stored in its own way, with strings, and tasks that change in mid-episode."""
    modes = {CAMERAS[0]: "video", CAMERAS[1]: "memmap", TOP: "png"}
    dataset = LeRobotDatasetV2(tmp_path / "several", fps=FPS, image_mode=modes)
    for episode, (first, length) in enumerate(((0, 5), (5, 3), (8, 6))):
        numbers = np.arange(first, first + length)
        data: dict[str, Any] = {
            **recording(length, first),
            "said": [f"frame {number % 3} ä" for number in numbers],
            "pose": np.arange(6, dtype=np.float32).reshape(2, 3) + numbers[:, None, None].astype(np.float32),
            "task": ["push" if k < 3 + episode else f"pull {episode}" for k in range(length)],
        }
        data |= {key: painted_frames(numbers + 100 * i) for i, key in enumerate((*CAMERAS, TOP))}
        dataset.add_episodes(data)
    return dataset


def test_several_cameras_strings_and_tasks(several: LeRobotDatasetV2, tmp_path: Path) -> None:
    several.to_lerobot(tmp_path / "out")
    windows = {**WINDOWS, CAMERAS[0]: [-1, 0], TOP: [1, 0]}
    assert_read_alike(tmp_path / "out", imported(tmp_path / "out", tmp_path / "back"), windows)
    theirs = open_theirs(tmp_path / "out", None, FPS)
    for i in range(len(several)):
        item, wanted = theirs[i], several[i]
        for key in ("observation.state", "action", "next.done", "pose", "timestamp", "frame_index", CAMERAS[1], TOP):
            assert torch.equal(item[key], wanted[key]), (i, key)
        assert (item["task"], item["said"]) == (wanted["task"], wanted["said"])
        picture = (item[CAMERAS[0]].numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8)
        assert read_numbers([picture]) == [i]


def test_files_that_end_at_their_limits(several: LeRobotDatasetV2, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"chunks_size": 2, "data_files_size_in_mb": 1e-3, "video_files_size_in_mb": 1e-3}
    several.to_lerobot(tmp_path / "out", **limits)
    assert len(list((tmp_path / "out" / "data").rglob("*.parquet"))) == 3
    assert_read_alike(tmp_path / "out", imported(tmp_path / "out", tmp_path / "back"), {**WINDOWS, CAMERAS[0]: [-1, 0]})


@pytest.mark.parametrize("mode", ["video", "png", "memmap"])
def test_a_replay_buffer_with_overwritten_episodes(tmp_path: Path, mode: str) -> None:
    ring = LeRobotDatasetV2(tmp_path / "ring", fps=FPS, buffer_capacity=12, use_as_fifo_buffer=True, image_mode=mode)
    for first, length in (
        (0, 5),
        (5, 4),
        (9, 4),
        (13, 3),
    ):  # the third overwrites the first, the fourth half of the second
        pictures = painted_frames(range(first, first + length))
        ring.add_episodes({**recording(length, first, task=f"turn {first}"), CAMERA: pictures})
    held = [numbers_of(ring.get_episode(episode)) for episode in ring.get_unique_episode_indices().tolist()]
    assert sum(map(len, held)) < 16
    ring.to_lerobot(tmp_path / "out")
    assert_read_alike(tmp_path / "out", imported(tmp_path / "out", tmp_path / "back"), {**WINDOWS, CAMERA: [0, 1]})
    theirs = open_theirs(tmp_path / "out", {"observation.state": [-1, 0, 1]}, FPS)
    row = 0
    for episode, numbers in enumerate(held):
        for k, number in enumerate(numbers):
            item = theirs[row]
            around = [numbers[min(max(k + step, 0), len(numbers) - 1)] for step in (-1, 0, 1)]
            assert item["observation.state"][:, 0].tolist() == around
            pads = [not 0 <= k + step < len(numbers) for step in (-1, 0, 1)]
            assert item["observation.state_is_pad"].tolist() == pads
            assert (item["episode_index"], item["frame_index"], item["index"]) == (episode, k, row)
            assert number in around
            row += 1
    assert row == len(theirs)


def test_v21_as_lerobots_converter_makes_it_v30(several: LeRobotDatasetV2, tmp_path: Path) -> None:
    several.to_lerobot(tmp_path / "v21", "v2.1")
    given = converted(tmp_path / "v21", tmp_path / "converted")
    assert_read_alike(given, imported(tmp_path / "v21", tmp_path / "back"), {**WINDOWS, CAMERAS[0]: [-1, 0]})


def test_lerobot_goes_on_recording_into_it(several: LeRobotDatasetV2, tmp_path: Path) -> None:
    several.to_lerobot(tmp_path / "out", leave_out=[CAMERAS[1]])
    writer = LeRobotDataset("local/out", root=tmp_path / "out")
    keys = sorted(set(writer.features) - {"timestamp", "frame_index", "episode_index", "index", "task_index"})
    for number in range(14, 18):
        step = {**recording(1, number), "said": ["added"], "pose": np.zeros((1, 2, 3), np.float32)}
        step |= {key: painted_frames([number]) for key in (CAMERAS[0], TOP)}
        frame = {key: step[key][0] for key in keys}
        scalars = [key for key in keys if writer.features[key]["shape"] == (1,) and key != "said"]
        writer.add_frame({**frame, **{key: np.array([frame[key]]) for key in scalars}, "task": "added"})
    writer.save_episode()
    writer.finalize()
    back = imported(tmp_path / "out", tmp_path / "back")
    assert (back.num_episodes, len(back)) == (4, 18)
    assert numbers_of(back.get_batch(range(18))) == list(range(18))
    assert back[17]["task"] == "added"
    pictures = np.concatenate([back.get_episode(episode)[CAMERAS[0]] for episode in range(4)])
    assert read_numbers(pictures) == list(range(18))
    assert_read_alike(tmp_path / "out", back, {**WINDOWS, CAMERAS[0]: [-1, 0]})


def _kinds(schema: Any) -> dict[str, Any]:
    """Column → type, but for two things that are not as LeRobot 0.4.4 writes them.

    Extension types of `datasets`, at which LeRobot's own converter fails; and the least and greatest of integers and
    booleans, which earlier and later versions write as floats, and so do we.
    """
    kinds = {field.name: getattr(field.type, "storage_type", field.type) for field in schema}
    return {name: kind for name, kind in kinds.items() if not re.fullmatch("stats/.*/(min|max)", name)}


def test_the_folder_is_what_lerobots_own_writer_leaves(tmp_path: Path) -> None:
    theirs = lerobot_writer.write(tmp_path / "theirs", leave_out=["grid"])
    ours = tmp_path / "ours"
    imported(theirs, tmp_path / "dataset").to_lerobot(ours)
    names = [
        sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        for root in (theirs, ours)
    ]
    assert names[0] == [name for name in names[1] if not name.startswith("README")]
    for name in names[0]:
        if name.endswith(".parquet") and name != "meta/tasks.parquet":  # LeRobot's versions differ in its names
            wanted, got = (pq.read_schema(root / name) for root in (theirs, ours))
            assert _kinds(got) == _kinds(wanted), name
            assert pq.read_metadata(ours / name).num_rows == pq.read_metadata(theirs / name).num_rows
    wanted, got = (json.loads((root / "meta" / "info.json").read_text()) for root in (theirs, ours))
    assert {key: value for key, value in got.items() if key != "features"} == {
        key: value for key, value in wanted.items() if key != "features"
    }
    assert got["features"].keys() == wanted["features"].keys()
    for key, feature in wanted["features"].items():
        if feature["dtype"] == "video":  # as later versions call it
            feature["info"]["is_depth_map"] = feature["info"].pop("video.is_depth_map")
        assert got["features"][key] == feature, key
    assert len(FEATURES) == len(wanted["features"]) - 5 + 1
    pictures = painted_frames(range(200, 200 + wanted["total_frames"])) / 255
    wanted_info = wanted
    wanted, got = (json.loads((root / "meta" / "stats.json").read_text()) for root in (theirs, ours))
    np.testing.assert_allclose(np.ravel(got[TOP]["std"]), pictures.std(axis=(0, 1, 2)), rtol=1e-6)
    assert got.keys() == wanted.keys()
    for key, stats in wanted.items():
        assert got[key].keys() == stats.keys()
        is_camera = wanted_info["features"][key]["dtype"] in ("video", "image")
        for name, value in stats.items():
            if name == "std" and is_camera:  # LeRobot 0.4.4 squares bytes in bytes, which run over
                continue
            assert np.shape(got[key][name]) == np.shape(value), (key, name)
            np.testing.assert_allclose(got[key][name], value, rtol=2e-2, atol=2e-2, err_msg=f"{key} {name}")
