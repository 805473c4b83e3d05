"""LeRobot folders opened: real recordings and small made ones come out right, broken ones in one clear error."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from roboreel.convert.foreign import ForeignDataset
from roboreel.convert.lerobot import open_lerobot
from roboreel.convert.lerobot_layout import data_files
from roboreel.schema import LeRobotDatasetV2ImageMode as Mode
from roboreel.store import PngFrames, VideoFrames
from tests import lerobot_folders as made
from tests.lerobot_folders import (
    CAMERA,
    LENGTHS,
    TASKS,
    V2_DATA,
    V3_DATA,
    V3_VIDEO,
    decoded,
    read_lerobot,
)
from tests.video_files import HEIGHT, WIDTH, read_numbers


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    """A fresh folder of one of the kinds, which the test may break."""
    return lambda kind: made.WRITERS[kind](tmp_path / kind)


def key_table(source: ForeignDataset) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {key.name: (key.dtype.name, key.shape) for key in source.keys}


# Small made folders


@pytest.mark.parametrize("kind", made.WRITERS)
def test_a_right_folder_gives_every_value_of_every_episode(make: Callable[[str], Path], kind: str) -> None:
    source, episodes = read_lerobot(make(kind))
    assert source.warnings == ()
    assert source.format == {"v2-images": "LeRobot v2.1", "v3-images": "LeRobot v3.0"}.get(kind, f"LeRobot {kind}")
    assert (source.fps, source.num_episodes, source.num_frames) == (10.0, 3, 15)
    assert key_table(source) == {
        "action": ("float32", (2,)),
        "observation.state": ("float32", (3,)),
        "next.done": ("bool", ()),
        "task_index": ("int64", ()),
        CAMERA: ("uint8", (HEIGHT, WIDTH, 3)),
        "task": ("int32", ()),
    }
    assert [(episode.index, episode.length) for episode in episodes] == list(enumerate(LENGTHS))
    first = 0
    for episode in episodes:
        r = np.arange(first, first + episode.length)
        np.testing.assert_array_equal(episode.columns["action"], made.action(r))
        np.testing.assert_array_equal(episode.columns["observation.state"], r[:, None] * np.array([1, 10, 100]))
        assert episode.columns["next.done"].tolist() == [False] * (episode.length - 1) + [True]
        assert episode.columns["frame_index"].tolist() == list(range(episode.length))
        assert episode.columns["timestamp"].dtype == np.float64
        np.testing.assert_allclose(episode.columns["timestamp"], np.arange(episode.length) / 10, atol=1e-7)
        assert list(episode.strings["task"]) == [TASKS[episode.index % 2]] * episode.length
        assert read_numbers(decoded(episode)) == r.tolist()
        first += episode.length


def test_images_are_given_as_the_bytes_that_are_in_the_file_also_in_any_order(make: Callable[[str], Path]) -> None:
    source, episodes = read_lerobot(make("v3-images"))
    frames = [episode.cameras[CAMERA] for episode in episodes]
    assert next(key for key in source.keys if key.is_camera).image_mode is Mode.PNG
    for episode, i, row in [(2, 5, 14), (0, 0, 0), (1, 3, 8), (1, 0, 5), (2, 0, 9)]:
        camera = frames[episode]
        assert isinstance(camera, PngFrames)
        assert camera.read(i) == made.png(row)


def test_videos_are_given_as_they_are_with_the_first_frame_of_each_episode(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    source, episodes = read_lerobot(folder)
    assert next(key for key in source.keys if key.is_camera).image_mode is Mode.VIDEO
    path, shape = folder / V3_VIDEO, (HEIGHT, WIDTH, 3)
    for episode, first in zip(episodes, (0, 5, 9), strict=True):
        frames = episode.cameras[CAMERA]
        assert isinstance(frames, VideoFrames)
        assert (frames.path, frames.first, frames.length, frames.shape) == (path, first, episode.length, shape)


def test_the_episodes_can_be_gone_through_again(make: Callable[[str], Path]) -> None:
    source = open_lerobot(make("v3-images"))
    once, again = list(source.episodes()), list(source.episodes())
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a.columns["action"], b.columns["action"])


def test_source_is_what_the_protocol_says(make: Callable[[str], Path]) -> None:
    source: ForeignDataset = open_lerobot(make("v2.0"))
    assert source.provenance == {"format": "LeRobot v2.0", "folder": "v2.0", "robot_type": "test"}


# What is odd and still readable


def _v2_last(folder: Path) -> Path:
    return folder / V2_DATA.format(2)


def test_float64_columns_come_as_the_declared_float32_and_say_what_they_were(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    wide = np.arange(30.0).reshape(15, 2) / 3
    made.set_column(folder / V3_DATA, "action", wide.tolist())
    source, episodes = read_lerobot(folder)
    spec = next(key for key in source.keys if key.name == "action")
    assert (spec.dtype.name, spec.source_dtype) == ("float32", "float64")
    got = np.concatenate([episode.columns["action"] for episode in episodes])
    np.testing.assert_array_equal(got, wide.astype(np.float32))
    assert source.warnings == ("column 'action' holds float64 where info.json declares float32: cast to float32",)


def test_undeclared_columns_come_along_where_all_rows_agree(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    path = folder / V3_DATA
    made.set_column(path, "force", [[[1.0 * r, 2.0], [3.0, 4.0]] for r in range(15)])
    made.set_column(path, "phase", [f"phase {r % 3}" for r in range(15)])
    made.set_column(path, "gripper", pa.array(np.arange(15, dtype=np.uint8)))
    made.set_column(path, "ragged", [[1] * (1 + r // 14) for r in range(15)])
    made.set_column(path, "holes", [None if r == 7 else r for r in range(15)])
    made.set_column(path, "pickle", pa.array([b"\x80\x04." for _ in range(15)]))
    made.set_column(path, "__index_level_0__", list(range(15)))
    source, episodes = read_lerobot(folder)
    added = {name: is_what for name, is_what in key_table(source).items() if name in ("force", "phase", "gripper")}
    assert added == {"force": ("float64", (2, 2)), "phase": ("int32", ()), "gripper": ("uint8", ())}
    assert not {"ragged", "holes", "pickle", "__index_level_0__"} & {key.name for key in source.keys}
    np.testing.assert_array_equal(episodes[1].columns["force"][0], [[5.0, 2.0], [3.0, 4.0]])
    assert list(episodes[1].strings["phase"]) == ["phase 2", "phase 0", "phase 1", "phase 2"]
    left_out = [re.findall(r"column '(\w+)'", warning)[0] for warning in source.warnings]
    assert left_out == ["ragged", "holes", "pickle"]
    assert "never unpickled" in source.warnings[2]


def test_decimals_are_numbers_and_what_can_be_no_key_is_left_out(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    for episode, length in enumerate(LENGTHS):
        path = folder / V2_DATA.format(episode)
        prices = [Decimal(k).scaleb(-2) for k in range(length)]
        made.set_column(path, "price", pa.array(prices, pa.decimal128(9, 2)))
        made.set_column(path, "prices", pa.array([[price] * 2 for price in prices], pa.list_(pa.decimal128(9, 2))))
        made.set_column(path, "n" * 300, list(range(length)))
        made.set_column(path, "stamp", pa.array(range(length), pa.int64() if episode else pa.float64()))
        made.set_column(path, "count", pa.array(range(length), pa.int32() if episode else pa.float64()))
    source, episodes = read_lerobot(folder)
    added = {name: is_what for name, is_what in key_table(source).items() if name[:5] in ("price", "stamp", "count")}
    assert added == {"price": ("float64", ()), "prices": ("float64", (2,)), "count": ("float64", ())}
    assert episodes[0].columns["price"].tolist() == [0.0, 0.01, 0.02, 0.03, 0.04]
    said = "\n".join(source.warnings)
    assert len(source.warnings) == 2
    assert "'stamp' is not declared, and holds float64, int64 in its files, and no type holds all of them" in said
    assert re.search(r"'n{300}' is not declared, and cannot be a key \(", said)


def test_files_are_in_the_order_of_their_numbers(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    for episode in range(3):
        path = folder / V2_DATA.format(episode)
        path.rename(path.with_name(f"episode_{999 + episode}.parquet"))
    assert [path.stem for path in data_files(folder)] == ["episode_999", "episode_1000", "episode_1001"]


def test_a_column_whose_name_begins_like_another_one_is_not_mixed_up_with_it(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    made.set_column(folder / V3_DATA, "action.raw", pa.array(np.arange(15) * 7))
    _, episodes = read_lerobot(folder)
    assert episodes[1].columns["action.raw"].tolist() == [35, 42, 49, 56]
    assert episodes[1].columns["action"].shape == (4, 2)


def test_missing_frame_index_and_timestamp_are_counted(make: Callable[[str], Path]) -> None:
    folder = make("v2.0")
    for episode in range(3):
        made.edit_rows(
            folder / V2_DATA.format(episode), lambda table: table.drop(["frame_index", "timestamp", "index"])
        )
    _, episodes = read_lerobot(folder)
    assert episodes[1].columns["frame_index"].tolist() == [0, 1, 2, 3]
    assert episodes[1].columns["timestamp"].tolist() == [0.0, 0.1, 0.2, 0.3]


def test_timestamps_are_kept_as_recorded_and_do_not_choose_the_frames(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    made.set_column(_v2_last(folder), "timestamp", [0.5, 0.5, 1.9, 1.95, 2.0, 7.0])
    source, episodes = read_lerobot(folder)
    assert episodes[2].columns["timestamp"].tolist() == [0.5, 0.5, 1.9, 1.95, 2.0, 7.0]
    assert read_numbers(decoded(episodes[2])) == [9, 10, 11, 12, 13, 14]
    assert source.warnings == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_episodes": 7}, "total_episodes is 7, and the data has 3"),
        ({"total_frames": 14983}, "total_frames is 14983, and the data has 15"),
        ({"total_tasks": 9}, "total_tasks is 9, and tasks.jsonl has 2"),
        ({"total_videos": 2}, "total_videos is 2, and the data has 3"),
        ({"total_chunks": 0}, "total_chunks is 0, and the data has 1"),
        ({"splits": {"train": "0:100"}}, "split 'train' is '0:100', and there are 3 episodes"),
    ],
)
def test_wrong_claims_in_info_json_are_warnings(
    make: Callable[[str], Path], changes: dict[str, Any], said: str
) -> None:
    folder = make("v2.1")
    made.edit_info(folder, **changes)
    source, episodes = read_lerobot(folder)
    assert len(episodes) == 3
    assert [warning.endswith(said) for warning in source.warnings] == [True]


@pytest.mark.parametrize("kind", ["v2.1", "v3.0"])
def test_a_declared_camera_without_any_video_is_left_out_with_a_warning(make: Callable[[str], Path], kind: str) -> None:
    folder = make(kind)
    shutil.rmtree(folder / "videos")
    source, episodes = read_lerobot(folder)
    assert CAMERA not in key_table(source)
    assert episodes[0].cameras == {}
    assert source.warnings == (f"camera '{CAMERA}' is declared and has no video file: left out",)


def test_a_camera_declared_channels_first_is_taken_as_its_video_is(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    made.declare(folder, CAMERA, "video", (3, HEIGHT, WIDTH))
    source, _ = read_lerobot(folder)
    assert key_table(source)[CAMERA] == ("uint8", (HEIGHT, WIDTH, 3))
    assert "channels first" in source.warnings[0]


def test_a_version_that_does_not_fit_the_layout_is_read_by_the_layout(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    made.edit_info(folder, codebase_version="v2.1", data_path="data/chunk-{episode_chunk:03d}/x.parquet")
    source, episodes = read_lerobot(folder)
    assert source.format == "LeRobot v2.1"
    assert read_numbers(decoded(episodes[1])) == [5, 6, 7, 8]
    assert "laid out as in v3.x" in source.warnings[0]


def test_tasks_under_the_name_that_pandas_gives_its_index(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    path = folder / "meta" / "tasks.parquet"
    made.edit_rows(path, lambda table: table.rename_columns(["task_index", "__index_level_0__"]))
    _, episodes = read_lerobot(folder)
    assert [episode.strings["task"][0] for episode in episodes] == [TASKS[0], TASKS[1], TASKS[0]]


def test_without_a_task_column_the_task_that_each_episode_lists_is_taken(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    made.undeclare(folder, "task_index")
    for episode in range(3):
        made.edit_rows(folder / V2_DATA.format(episode), lambda table: table.drop(["task_index"]))
    source, episodes = read_lerobot(folder)
    assert [list(set(episode.strings["task"])) for episode in episodes] == [[TASKS[0]], [TASKS[1]], [TASKS[0]]]
    assert any("there is no column 'task_index'" in warning for warning in source.warnings)


def test_without_any_tasks_there_is_no_task_key(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    made.undeclare(folder, "task_index")
    made.edit_info(folder, total_tasks=0)
    for episode in range(3):
        made.edit_rows(folder / V2_DATA.format(episode), lambda table: table.drop(["task_index"]))
    (folder / "meta" / "tasks.jsonl").unlink()
    listed = [{"episode_index": e, "length": n} for e, n in enumerate(LENGTHS)]
    made.write_lines(folder / "meta" / "episodes.jsonl", listed)
    source, episodes = read_lerobot(folder)
    assert "task" not in key_table(source)
    assert episodes[0].strings == {}
    assert source.warnings == ()


def test_images_beside_the_rows_are_read_from_their_files(make: Callable[[str], Path]) -> None:
    folder = make("v2-images")
    (folder / "images").mkdir()
    for row in range(9, 15):
        (folder / "images" / f"{row}.png").write_bytes(made.png(row))
    images = pa.array([{"bytes": None, "path": f"images/{row}.png"} for row in range(9, 15)])
    made.set_column(_v2_last(folder), CAMERA, images.cast(pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    _, episodes = read_lerobot(folder)
    assert read_numbers(decoded(episodes[2])) == [9, 10, 11, 12, 13, 14]


def test_images_that_are_not_png_are_decoded(make: Callable[[str], Path]) -> None:
    folder = make("v3-images")
    made.set_column(folder / V3_DATA, CAMERA, [{"bytes": made.png(r, "JPEG"), "path": None} for r in range(15)])
    source, episodes = read_lerobot(folder)
    assert not isinstance(episodes[0].cameras[CAMERA], PngFrames)
    assert read_numbers(decoded(episodes[1])) == [5, 6, 7, 8]
    assert any("not PNG" in warning for warning in source.warnings)


def test_lists_of_one_value_are_scalars_and_categories_are_strings(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    path = folder / V3_DATA
    made.set_column(path, "next.done", [[r == 3] for r in range(15)])
    made.set_column(path, "task_index", [[r % 2] for r in range(15)])
    made.set_column(path, "phase", pa.array(["a", "b", "c"] * 5).dictionary_encode())
    source, episodes = read_lerobot(folder)
    assert key_table(source)["next.done"] == ("bool", ())
    assert episodes[0].columns["next.done"].tolist() == [False, False, False, True, False]
    assert list(episodes[1].strings["task"]) == [TASKS[1], TASKS[0], TASKS[1], TASKS[0]]
    assert list(episodes[1].strings["phase"]) == ["c", "a", "b", "c"]
    assert source.warnings == ()


def test_a_task_index_that_is_no_number_is_no_task_index(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    made.declare(folder, "task_index", "string", (1,))
    made.set_column(folder / V3_DATA, "task_index", [f"t{r}" for r in range(15)])
    source, episodes = read_lerobot(folder)
    assert list(episodes[1].strings["task_index"]) == ["t5", "t6", "t7", "t8"]
    assert list(episodes[1].strings["task"]) == [TASKS[1]] * 4
    assert len(source.warnings) == 1


def test_hidden_files_beside_the_data_are_not_looked_at(make: Callable[[str], Path]) -> None:
    folder = make("v3.0")
    (folder / V3_DATA).with_name("._file-000.parquet").write_bytes(b"macOS")
    (folder / "data" / ".cache").mkdir()
    (folder / "data" / ".cache" / "part.parquet").write_bytes(b"half")
    assert read_lerobot(folder)[0].warnings == ()


def test_longer_videos_are_one_warning(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    made.write_lines(folder / "meta" / "episodes.jsonl", [{"episode_index": e, "length": 3} for e in range(3)])
    for episode in range(3):
        made.edit_rows(folder / V2_DATA.format(episode), lambda table: table.slice(0, 3))
    source, episodes = read_lerobot(folder)
    assert [read_numbers(decoded(episode)) for episode in episodes] == [[0, 1, 2], [5, 6, 7], [9, 10, 11]]
    longer = [warning for warning in source.warnings if "frames for" in warning]
    assert ["5 frames for 3 rows" in warning and "2 more of this kind" in warning for warning in longer] == [True]


def test_memory_stays_within_a_block_however_large_the_row_group(tmp_path: Path) -> None:
    folder = made.write_v3(tmp_path / "big", camera="image")
    noise = np.random.default_rng(0)
    frames: list[dict[str, Any]] = [{"bytes": _large_png(noise), "path": None} for _ in range(15)]
    made.set_column(folder / V3_DATA, CAMERA, frames)
    whole = 15 * len(frames[0]["bytes"])
    source = open_lerobot(folder)
    before = pa.total_allocated_bytes()
    peak = 0
    for episode in source.episodes():
        camera = episode.cameras[CAMERA]
        assert isinstance(camera, PngFrames)
        for i in range(episode.length):
            camera.read(i)
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert whole > 90 << 20
    assert peak < 64 << 20


def _large_png(noise: np.random.Generator) -> bytes:
    """A PNG of 6 MB whose chunks are not looked at: only its header and its end are."""
    head = made.png(0)
    return head[:33] + noise.bytes(6 << 20) + head[-12:]
