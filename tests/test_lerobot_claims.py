"""LeRobot folders whose metadata contradicts their data: what cannot be right is refused, what can be read is said."""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import LeRobotDatasetV2, RoboreelWarning
from roboreel.errors import RoboreelError, SourceError
from tests import lerobot_folders as made
from tests.lerobot_folders import CAMERA, LENGTHS, TASKS, V2_DATA, V3_DATA, V3_EPISODES, read_lerobot

Edit = Callable[[Path], object]
VIDEO_KEYS = f"videos/{CAMERA}"


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    """A fresh folder of one of the kinds, which the test may break."""
    return lambda kind: made.WRITERS[kind](tmp_path / kind)


def _set_times(folder: Path, step: float) -> None:
    for episode, length in enumerate(LENGTHS):
        made.set_column(folder / V2_DATA.format(episode), "timestamp", [step * k for k in range(length)])


# The rate


@pytest.mark.parametrize(("fps", "kind"), [(50, "v2.1"), (3, "v3.0"), (50, "v3-images")])
def test_an_fps_that_neither_timestamps_nor_video_have_is_refused(
    make: Callable[[str], Path], fps: int, kind: str
) -> None:
    folder = make(kind)
    made.edit_info(folder, fps=fps)
    said = rf'info\.json: fps is {fps}, and the timestamps step by 0\.1 s, which is 10 a second; type "fps": 10 there'
    with pytest.raises(SourceError, match=said):
        read_lerobot(folder)


@pytest.mark.parametrize(
    ("fps", "step", "said"),
    [
        (10, 0.01, ["timestamps step by 0.01 s, which is 100 a second (the videos agree with fps)"]),
        (10, 0.0, ["the timestamps do not advance from row to row"]),
        (50, 0.02, [f"fps is 50, and the video of camera '{CAMERA}' has 10 frames a second"]),
        (10, 1 / 10.3, []),
    ],
    ids=["timestamps alone are wrong", "constant timestamps", "the video alone is wrong", "a little off"],
)
def test_a_rate_that_one_witness_confirms_is_taken_and_the_other_one_named(
    make: Callable[[str], Path], fps: int, step: float, said: list[str]
) -> None:
    folder = make("v2.1")
    made.edit_info(folder, fps=fps)
    _set_times(folder, step)
    made.undeclare(folder, "timestamp")
    source, _ = read_lerobot(folder)
    assert len(source.warnings) == len(said)
    for sentence in said:
        assert any(sentence in warning for warning in source.warnings)


@pytest.mark.parametrize("fps", [1e-310, 1e-7, 1.1e6, float("inf")])
def test_an_fps_of_no_sensor_is_refused_before_anything_is_written(
    make: Callable[[str], Path], tmp_path: Path, fps: float
) -> None:
    folder = make("v2-images")
    made.edit_info(folder, fps=fps)
    with pytest.raises(SourceError, match=r"info\.json: fps is .*; it must be a positive number"):
        LeRobotDatasetV2.from_lerobot(folder, storage_dir=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["v2-images"]


# What is missing


def _drop(path: str, *names: str) -> Edit:
    return lambda folder: made.edit_rows(folder / path, lambda table: table.drop(list(names)))


def _list_two(folder: Path) -> None:
    made.write_lines(folder / "meta/episodes.jsonl", [{"episode_index": e, "length": LENGTHS[e]} for e in (0, 1)])


def _drop_everywhere(name: str) -> Edit:
    def drop(folder: Path) -> None:
        for path in (folder / "data").rglob("*.parquet"):
            made.edit_rows(path, lambda table: table.drop([name]))

    return drop


def _no_tasks_counted(folder: Path) -> None:
    made.edit_info(folder, total_tasks=0)
    (folder / "meta/tasks.jsonl").unlink()


def _no_task_index(folder: Path) -> None:
    made.undeclare(folder, "task_index")
    _drop_everywhere("task_index")(folder)
    (folder / "meta/tasks.jsonl").unlink()


MISSING: list[tuple[str, str, Edit, str]] = [
    ("an episode unlisted", "v2.1", _list_two, r"episodes\.jsonl: does not list the episode in .*000002\.parquet;"),
    (
        "rows lost",
        "v2.1",
        lambda d: made.edit_rows(d / V2_DATA.format(1), lambda t: t.slice(0, 3)),
        r"episodes\.jsonl, line 2: says length 4, and .*episode_000001\.parquet has 3 rows; download both again",
    ),
    ("too many rows", "v2.1", lambda d: shutil.copy(d / V2_DATA.format(2), d / V2_DATA.format(1)), "has 6 rows;"),
    ("a key nowhere", "v2.1", _drop_everywhere("action"), r"info\.json: declares 'action', which no data file has"),
    ("no task_index", "v2.1", _drop_everywhere("task_index"), r"info\.json: declares 'task_index', which no data"),
    ("no tasks", "v2.1", _no_tasks_counted, r"tasks\.jsonl: this file is missing, and the data has a column 'task_in"),
    ("only a count of tasks", "v2.1", _no_task_index, r"tasks\.jsonl: this file is missing, and .*info\.json counts"),
    (
        "no v3 tasks",
        "v3.0",
        lambda d: (d / "meta/tasks.parquet").unlink(),
        r"meta/tasks\.parquet: this file is missing",
    ),
    ("no meta/episodes", "v3.0", lambda d: shutil.rmtree(d / "meta/episodes"), r"meta/episodes: lists no episodes;"),
    (
        "no meta/episodes, no video",
        "v3-images",
        lambda d: shutil.rmtree(d / "meta/episodes"),
        r"meta/episodes: lists no episodes; complete the download",
    ),
    (
        "a row of meta/episodes lost",
        "v3-images",
        lambda d: made.edit_rows(d / V3_EPISODES, lambda t: t.slice(0, 2)),
        r"file-000\.parquet: episode 2 is not listed in .*meta/episodes; download",
    ),
    (
        "another length",
        "v3-images",
        lambda d: made.set_cell(d / V3_EPISODES, "length", 1, 40),
        r"meta/episodes: says length 40 for episode 1, and .*file-000\.parquet has 4 rows of it; download both",
    ),
    ("no start", "v3.0", _drop(V3_EPISODES, f"{VIDEO_KEYS}/from_timestamp"), r"episode 0: videos/.*/from_timestamp is"),
    ("no end", "v3.0", _drop(V3_EPISODES, f"{VIDEO_KEYS}/to_timestamp"), r"episode 0: videos/.*/to_timestamp is"),
    ("no chunk", "v3.0", _drop(V3_EPISODES, f"{VIDEO_KEYS}/chunk_index"), r"episode 0: videos/.*/chunk_index is miss"),
    (
        "a start null",
        "v3.0",
        lambda d: made.set_cell(d / V3_EPISODES, f"{VIDEO_KEYS}/from_timestamp", 1, None),
        rf"meta/episodes, episode 1: videos/{CAMERA}/from_timestamp is null; download meta/episodes again",
    ),
    (
        "a copied data file",
        "v3.0",
        lambda d: shutil.copy(d / V3_DATA, (d / V3_DATA).with_name("file-001.parquet")),
        r"file-001\.parquet: holds rows of episode 0, and so does .*file-000\.parquet; remove the copy",
    ),
]


@pytest.mark.parametrize(("name", "kind", "edit", "pattern"), MISSING, ids=[name for name, *_ in MISSING])
def test_what_is_missing_ends_in_an_error(
    make: Callable[[str], Path], name: str, kind: str, edit: Edit, pattern: str
) -> None:
    folder = make(kind)
    edit(folder)
    with pytest.raises(SourceError, match=pattern):
        read_lerobot(folder)


# Images


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def _resized(data: bytes) -> bytes:
    """The file with another width in its header, the checksum made right."""
    header = data[12:16] + (7).to_bytes(4, "big") + data[20:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: _flip(data, len(data) // 2), r"the checksum of its chunk at byte \d+ does not fit"),
        (lambda data: _flip(data, 33), r"it ends after \d+ bytes, within a chunk"),
        (lambda data: data[:60] + data[90:], r"not a whole PNG file: "),
        (lambda data: data[:33] + data[-12:], r"its header or its pixels are missing"),
        (_resized, r"where the first is of uint8 \(64, 96, 3\)"),
    ],
    ids=["a flipped bit", "a wrong length", "a hole", "no pixels", "another width"],
)
def test_a_damaged_png_is_refused_where_it_is_copied_and_nothing_is_left(
    make: Callable[[str], Path], tmp_path: Path, damage: Callable[[bytes], bytes], said: str
) -> None:
    folder = make("v3-images")
    made.set_cell(folder / V3_DATA, CAMERA, 7, {"bytes": damage(made.png(7)), "path": None})
    where = rf"file-000\.parquet, episode 1, camera '{CAMERA}', frame 2: "
    with pytest.raises(SourceError, match=rf"{where}.*{said}.*; .* leave"):
        LeRobotDatasetV2.from_lerobot(folder, storage_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_video_says_what_would_do_when_it_is_decoded(make: Callable[[str], Path], tmp_path: Path) -> None:
    folder = make("v2.1")
    path = folder / made.V2_VIDEO.format(1)
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 8 : start + 4000] = b"\x5a" * (min(start + 4000, data.index(b"moov")) - start - 8)
    path.write_bytes(data)
    with pytest.raises(RoboreelError, match=r"episode_000001\.mp4: .*; "):
        LeRobotDatasetV2.from_lerobot(folder, storage_dir=tmp_path / "out", decode_images=True)


# Declarations


def _name(folder: Path, names: Any) -> None:
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    made.edit_info(folder, features=features | {"action": features["action"] | {"names": names}})


def _nested(depth: int) -> Any:
    return [_nested(depth - 1)] if depth else "x"


DECLARED: list[tuple[str, Edit, str]] = [
    ("robot_type", lambda d: made.edit_info(d, robot_type="x\ud800"), r"info\.json: robot_type: .*UTF-8 .*; correct"),
    ("names", lambda d: _name(d, {"x": ["\ud800"]}), r"info\.json: features: '\\ud800' cannot be stored as UTF-8"),
    ("names NaN", lambda d: _name(d, [float("nan")]), r"info\.json: features holds nan, which is no JSON number; corr"),
    ("names nested", lambda d: _name(d, _nested(400)), r"info\.json: features is nested more than 32 deep; correct it"),
    ("a key", lambda d: made.declare(d, "bad\ud800", "float32", [1]), r"info\.json: features: 'bad\\ud800' cannot"),
    ("a camera", lambda d: made.declare(d, "bad\ud800", "video", [1, 1, 3]), r"info\.json: features: 'bad\\ud800'"),
    ("a long key", lambda d: made.declare(d, "a" * 300, "float32", [1]), r"info\.json: .*too long.*; shorten it there"),
    ("a camera of numbers", lambda d: made.declare(d, "action", "video", [2]), r"'action' holds .*where images must"),
    (
        "a camera's time",
        lambda d: made.declare(d, "timestamp", "video", [1]),
        r"info\.json: declares 'timestamp' as 'vi",
    ),
    (
        "complex64",
        lambda d: made.declare(d, "action", "complex64", [2]),
        r"info\.json: declares 'action' as 'complex64'",
    ),
    ("tensor", lambda d: made.declare(d, "action", "tensor", [2]), r"'tensor', and .*; correct the dtype .*'float32'"),
    ("strings", lambda d: made.declare(d, "action", "string", [2]), r"declares 'action' as 'string', and .*; correct"),
    (
        "a huge shape",
        lambda d: made.declare(d, "action", "float32", [10**30]),
        r"info\.json: .*too large.*; correct it",
    ),
    (
        "a task",
        lambda d: made.write_lines(d / "meta/tasks.jsonl", [{"task_index": 0, "task": "bad \ud800"}]),
        r"tasks\.jsonl, line 1: 'bad \\ud800' cannot be stored as UTF-8",
    ),
    (
        "an episode's task",
        lambda d: made.write_lines(d / "meta/episodes.jsonl", [{"episode_index": 0, "tasks": ["\ud800"]}]),
        r"episodes\.jsonl, line 1, tasks: '\\ud800' cannot be stored",
    ),
    (
        "data_path",
        lambda d: made.edit_info(d, data_path="{a}"),
        r"info\.json: data_path '{a}': unknown field 'a'; known",
    ),
    (
        "video_path",
        lambda d: made.edit_info(d, video_path="../a"),
        r"info\.json: camera .*, video_path '\.\./a': .*leads",
    ),
    ("one video for all", lambda d: made.edit_info(d, video_path=made.V2_VIDEO.format(0)), r"; correct video_path in"),
    (
        "half a task index",
        lambda d: made.set_column(d / V2_DATA.format(1), "task_index", [0.5] * 4),
        r"key 'task_index': row 0 holds 0\.5, which int64 cannot hold; it must be a whole number",
    ),
    (
        "rows counted from 1",
        lambda d: made.set_column(d / V2_DATA.format(1), "frame_index", [1, 2, 3, 4]),
        r"row 0 has frame_index 1 where 0 must follow; the rows before are missing \(1\): download",
    ),
]


@pytest.mark.parametrize(("name", "edit", "pattern"), DECLARED, ids=[name for name, *_ in DECLARED])
def test_what_cannot_be_as_declared_ends_in_an_error(
    make: Callable[[str], Path], name: str, edit: Edit, pattern: str
) -> None:
    folder = make("v2.1")
    edit(folder)
    with pytest.raises(SourceError, match=pattern):
        read_lerobot(folder)


def test_a_total_of_thousands_of_digits_is_printed_shortened(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    made.edit_info(folder, total_frames=int("9" * 4000))
    source, _ = read_lerobot(folder)
    assert ["total_frames is 999" in warning and len(warning) < 300 for warning in source.warnings] == [True]


@pytest.mark.parametrize("declared", [True, False])
def test_a_column_of_numbers_named_task_does_not_replace_the_tasks(
    make: Callable[[str], Path], tmp_path: Path, declared: bool
) -> None:
    folder = make("v3-images")
    made.set_column(folder / V3_DATA, "task", np.arange(15.0).tolist())
    if declared:
        made.declare(folder, "task", "float64", [1])
    with pytest.warns(RoboreelWarning, match="column 'task' holds double, and that key is the task's string: left out"):
        dataset = LeRobotDatasetV2.from_lerobot(folder, storage_dir=tmp_path / "out")
    assert [dataset[i]["task"] for i in (0, 5, 9)] == [TASKS[0], TASKS[1], TASKS[0]]


# Statistics


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mean", None, []),
        ("mean", [7.0 + 1e-3, -3.5], []),
        ("mean", [9.0, -3.5], ["stats.json: mean of 'action' are not those of its frames"]),
        ("max", [14.0, 0.5], ["stats.json: max of 'action' are not those of its frames"]),
        ("min", "none", ["stats.json: min of 'action' are not those of its frames"]),
        ("std", [0.0, 0.0], []),
    ],
    ids=["right", "rounded", "wrong mean", "wrong greatest", "no numbers", "not compared"],
)
def test_statistics_of_the_folder_are_compared_with_the_frames(
    make: Callable[[str], Path], tmp_path: Path, name: str, value: object, said: list[str]
) -> None:
    folder = make("v3.0")
    right = {"min": [0.0, -7.0], "max": [14.0, 0.0], "mean": [7.0, -3.5], "std": [4.3, 2.2], "count": [15]}
    given = {"action": right | ({} if value is None else {name: value}), "absent": {"min": [1.0]}}
    (folder / "meta" / "stats.json").write_text(json.dumps(given), "utf-8")
    source, _ = read_lerobot(folder)
    assert [warning.split(";")[0].rsplit("/", 1)[-1] for warning in source.warnings] == said
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RoboreelWarning)
        dataset = LeRobotDatasetV2.from_lerobot(folder, storage_dir=tmp_path / "out")
    assert dataset.stats["action"]["mean"].tolist() == [7.0, -3.5]


def test_statistics_of_each_episode_are_compared_with_its_frames(make: Callable[[str], Path]) -> None:
    folder = make("v2.1")
    lines: list[Any] = []
    first = 0
    for episode, length in enumerate(LENGTHS):
        values = made.action(np.arange(first, first + length)).astype(np.float64)
        stats = {key: getattr(values, key)(0).tolist() for key in ("min", "max", "mean")}
        lines.append({"episode_index": episode, "stats": {"action": stats}})
        first += length
    made.write_lines(folder / "meta" / "episodes_stats.jsonl", lines)
    assert list(read_lerobot(folder)[0].warnings) == []
    lines[1]["stats"]["action"]["min"] = lines[2]["stats"]["action"]["mean"] = [100.0, 100.0]
    made.write_lines(folder / "meta" / "episodes_stats.jsonl", lines)
    (said,) = read_lerobot(folder)[0].warnings
    assert "episodes_stats.jsonl, episode 1: min of 'action' are not those of its frames" in said
    assert said.endswith("(and 1 more of this kind)")


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '{"action": 3}', "[" * 100_000], ids=range(5))
def test_statistics_that_cannot_be_read_cost_nothing(make: Callable[[str], Path], text: str) -> None:
    folder = make("v3.0")
    (folder / "meta" / "stats.json").write_text(text, "utf-8")
    source, episodes = read_lerobot(folder)
    assert len(episodes) == len(LENGTHS)
    said = "min, max, mean of 'action' are not those of its frames"
    assert [said in warning for warning in source.warnings] == ([True] if "action" in text else [])
