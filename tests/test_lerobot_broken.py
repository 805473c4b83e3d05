"""Broken LeRobot folders: each ends in one error that names the file, the key or the episode."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roboreel.convert.lerobot import open_lerobot
from roboreel.errors import NotADatasetError, RoboreelError, SourceError
from tests import lerobot_folders as made
from tests.lerobot_folders import (
    CAMERA,
    LENGTHS,
    TASKS,
    V2_DATA,
    V2_VIDEO,
    V3_DATA,
    V3_EPISODES,
    V3_VIDEO,
    read_lerobot,
)
from tests.video_files import painted_frame

INFO, EPISODES, TASK_LINES, TASK_TABLE = (
    f"meta/{name}" for name in ("info.json", "episodes.jsonl", "tasks.jsonl", "tasks.parquet")
)


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    """A fresh folder of one of the kinds, which the test may break."""
    return lambda kind: made.WRITERS[kind](tmp_path / kind)


Break = Callable[[Path], object]


def _put_strings(folder: Path) -> None:
    for episode, length in enumerate(LENGTHS):
        made.set_column(folder / V2_DATA.format(episode), "next.done", ["no"] * length)


def _copy_episode_1(folder: Path) -> None:
    shutil.copy(folder / V2_DATA.format(1), folder / V2_DATA.format(2))
    made.write_lines(folder / EPISODES, [{"episode_index": e, "length": n} for e, n in enumerate((5, 4, 4))])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"

V2_BREAKS: list[tuple[str, Break, str]] = [
    (
        "no info.json",
        lambda d: (d / INFO).unlink(),
        r"meta/info\.json is missing \(found: data/, meta/",
    ),
    ("no fps", lambda d: made.edit_info(d, fps=None), r"info\.json: fps is None"),
    ("fps 0", lambda d: made.edit_info(d, fps=0), r"fps is 0; it must be a positive number"),
    ("fps NaN", lambda d: made.edit_info(d, fps=float("nan")), r"fps is nan"),
    ("fps a string", lambda d: made.edit_info(d, fps="30"), r"fps is '30'"),
    ("fps huge", lambda d: made.edit_info(d, fps=10**400), r"fps is 1000"),
    ("version v9.0", lambda d: made.edit_info(d, codebase_version="v9.0"), r"codebase_version 'v9\.0' is none .*v3\.0"),
    ("no version", lambda d: made.edit_info(d, codebase_version=None), r"codebase_version None is none"),
    ("no features", lambda d: made.edit_info(d, features=None), r"info\.json: features is None"),
    ("shape of strings", lambda d: made.declare(d, "action", "float32", ["2"]), r"feature 'action' has shape \['2'\]"),  # type: ignore[list-item]
    ("info not JSON", lambda d: (d / INFO).write_text("{'fps': 3"), r"info\.json: not valid JSON"),
    ("info a list", lambda d: (d / INFO).write_text("[]"), r"info\.json: holds a list"),
    ("info truncated", lambda d: made.truncate(d / INFO), r"info\.json: not valid JSON"),
    ("no data", lambda d: shutil.rmtree(d / "data"), r"data: holds no Parquet file"),
    ("no episodes", lambda d: made.write_lines(d / EPISODES, []), r"does not list the episode in .*and 2 more files"),
    (
        "episodes.jsonl gone",
        lambda d: (d / EPISODES).unlink(),
        r"episodes\.jsonl: this file is missing",
    ),
    (
        "episodes.jsonl cut",
        lambda d: made.truncate(d / EPISODES),
        r"episodes\.jsonl, line 2: not valid",
    ),
    ("tasks.jsonl cut", lambda d: made.truncate(d / TASK_LINES), r"tasks\.jsonl, line \d: not valid JSON"),
    (
        "episodes listed out of order",
        lambda d: made.write_lines(d / EPISODES, [{"episode_index": e, "length": LENGTHS[e]} for e in (0, 2, 1)]),
        r"line 3: episode 1 comes after episode 2",
    ),
    ("Parquet gone", lambda d: (d / V2_DATA.format(1)).unlink(), r"episode_000001\.parquet: this file is missing"),
    ("Parquet cut", lambda d: made.truncate(d / V2_DATA.format(1)), r"episode_000001\.parquet: not a complete Parquet"),
    (
        "video gone",
        lambda d: (d / V2_VIDEO.format(1)).unlink(),
        r"episode_000001\.mp4: camera 'observation.images.top'",
    ),
    ("video cut", lambda d: made.truncate(d / V2_VIDEO.format(1)), r"episode_000001\.mp4: "),
    ("video empty", lambda d: (d / V2_VIDEO.format(1)).write_bytes(b""), r"episode_000001\.mp4: "),
    (
        "Parquet a pointer",
        lambda d: (d / V2_DATA.format(1)).write_text(POINTER),
        r"000001\.parquet: not .*git lfs pull",
    ),
    ("video a pointer", lambda d: (d / V2_VIDEO.format(1)).write_text(POINTER), r"000001\.mp4: .*git lfs pull"),
    ("info a pointer", lambda d: (d / INFO).write_text(POINTER), r"info\.json: not valid JSON.*git lfs pull"),
    (
        "one file for all episodes",
        lambda d: made.edit_info(d, data_path=V2_DATA.format(0)),
        r"episode_000000\.parquet: is the file of episode 1 and of another one",
    ),
    (
        "an episode number beyond all",
        lambda d: made.write_lines(d / EPISODES, [{"episode_index": 10**30}]),
        r"line 1: episode_index is 1000",
    ),
    (
        "video short",
        lambda d: shutil.copy(d / V2_VIDEO.format(1), d / V2_VIDEO.format(2)),
        r"episode_000002\.mp4: episode 2, camera 'observation.images.top': 4 frames for 6 rows",
    ),
    (
        "column gone",
        lambda d: made.edit_rows(d / V2_DATA.format(1), lambda t: t.drop(["action"])),
        r"episode_000001\.parquet: has no column 'action', which info.json declares",
    ),
    (
        "declared shape wrong",
        lambda d: made.declare(d, "action", "float32", [3]),
        r"episode 0, key 'action': holds rows of shape \(2,\) where the key has \(3,\)",
    ),
    (
        "declared scalar, holds lists",
        lambda d: made.declare(d, "action", "float32", [1]),
        r"key 'action': holds rows of shape \(2,\) where the key has \(\)",
    ),
    (
        "ragged lists",
        lambda d: made.set_cell(d / V2_DATA.format(1), "observation.state", 2, [1.0, 2.0]),
        r"episode 1, key 'observation.state': row 2 is a list of 2 values where row 0 has 3",
    ),
    (
        "null row",
        lambda d: made.set_cell(d / V2_DATA.format(1), "action", 3, None),
        r"episode 1, key 'action': row 3 holds a null",
    ),
    (
        "null inside a list",
        lambda d: made.set_cell(d / V2_DATA.format(1), "observation.state", 3, [1.0, None, 3.0]),
        r"episode 1, key 'observation.state': row 3 holds a null",
    ),
    (
        "strings in a number column",
        _put_strings,
        r"column 'next.done' holds string where info.json declares bool",
    ),
    (
        "binary data in a number column",
        lambda d: made.set_column(d / V2_DATA.format(0), "action", [b"x"] * 5),
        r"000001\.parquet: column 'action' holds fixed_size_list.*, and .*000000\.parquet has binary",
    ),
    (
        "another kind in a later file",
        lambda d: made.set_column(d / V2_DATA.format(1), "next.done", ["no"] * 4),
        r"episode_000001\.parquet: column 'next.done' holds string, and .*episode_000000\.parquet has bool",
    ),
    (
        "a number beyond the declared dtype",
        lambda d: made.set_column(d / V2_DATA.format(1), "action", [[1.0, 1e300]] * 4),
        r"episode 1, key 'action': row 0 holds .*1e\+300.*, which float32 cannot hold",
    ),
    (
        "a fraction in an integer column",
        lambda d: made.set_column(d / V2_DATA.format(1), "task_index", [0.0, 0.5, 1.0, 1.0]),
        r"key 'task_index': row 1 holds .*0\.5.*, which int64 cannot hold",
    ),
    (
        "frames out of order",
        lambda d: made.edit_rows(d / V2_DATA.format(2), lambda t: t.take([0, 1, 3, 2, 4, 5])),
        r"episode_000002\.parquet, episode 2: row 2 has frame_index 3 where 2 must follow",
    ),
    (
        "another episode's rows",
        _copy_episode_1,
        r"episode 2: row 0 has episode_index 1 where 2 must follow; the file is that of episode 1 \(swapped or copied",
    ),
    (
        "index jumps",
        lambda d: made.set_cell(d / V2_DATA.format(2), "index", 4, 99),
        r"episode 2: row 4 has index 99 where 13 must follow",
    ),
    (
        "timestamps decrease",
        lambda d: made.set_cell(d / V2_DATA.format(2), "timestamp", 3, 0.0),
        r"episode 2: timestamps decrease from 0\.2\d* s in row 2 to 0\.0 s",
    ),
    (
        "timestamps as strings",
        lambda d: made.set_column(d / V2_DATA.format(2), "timestamp", ["0.1"] * 6),
        r"episode 2, key 'timestamp': holds string where numbers must be",
    ),
    (
        "timestamp NaN",
        lambda d: made.set_cell(d / V2_DATA.format(2), "timestamp", 3, float("nan")),
        r"episode 2: the timestamp of row 3 is nan",
    ),
    (
        "a task index without a task",
        lambda d: made.set_cell(d / V2_DATA.format(2), "task_index", 5, 8),
        r"episode_000002\.parquet, episode 2: task index 8 has no task in .*tasks\.jsonl",
    ),
    (
        "a task index twice",
        lambda d: made.write_lines(d / TASK_LINES, [{"task_index": 0, "task": t} for t in TASKS]),
        r"tasks\.jsonl, line 2: task index 0 stands for 'push the block' already",
    ),
]

V3_BREAKS: list[tuple[str, Break, str]] = [
    (
        "binary data where numbers are declared",
        lambda d: made.set_column(d / V3_DATA, "action", [b"x"] * 15),
        r"file-000\.parquet: column 'action' holds binary where info.json declares float32",
    ),
    (
        "nulls alone where numbers are declared",
        lambda d: made.set_column(d / V3_DATA, "action", [None] * 15),
        r"column 'action' holds null where info.json declares float32",
    ),
    (
        "numbers where images are declared",
        lambda d: made.declare(d, "next.done", "image", [8, 8, 3]),
        r"file-000\.parquet: column 'next.done' holds bool where images must be",
    ),
    ("data gone", lambda d: (d / V3_DATA).rename(d / "data" / "x.parquet"), r"file-000\.parquet: this file is missing"),
    ("data cut", lambda d: made.truncate(d / V3_DATA), r"file-000\.parquet: not a complete Parquet file"),
    ("meta cut", lambda d: made.truncate(d / V3_EPISODES), r"file-000\.parquet: not a complete Parquet file"),
    (
        "tasks cut",
        lambda d: made.truncate(d / TASK_TABLE),
        r"tasks\.parquet: not a complete Parquet file",
    ),
    ("video cut", lambda d: made.truncate(d / V3_VIDEO), r"file-000\.mp4: "),
    (
        "episodes out of order",
        lambda d: made.edit_rows(d / V3_DATA, lambda t: t.take([*range(9, 15), *range(9)])),
        r"file-000\.parquet: rows of episode 0 come after rows of episode 2: episodes are out of order",
    ),
    (
        "an episode in two pieces",
        lambda d: made.edit_rows(d / V3_DATA, lambda t: t.take([0, 1, 5, 6, 7, 8, 2, 3, 4, *range(9, 15)])),
        r"rows of episode 0 come after rows of episode 1",
    ),
    (
        "a listed episode without rows",
        lambda d: made.edit_rows(d / V3_DATA, lambda t: t.slice(0, 9)),
        r"episode 2 is listed, and no file in .*data holds a row of it",
    ),
    (
        "rows of an episode that is not listed",
        lambda d: made.edit_rows(d / V3_EPISODES, lambda t: t.slice(0, 2)),
        r"file-000\.parquet: episode 2 is not listed in .*meta/episodes",
    ),
    (
        "an episode listed twice",
        lambda d: made.set_cell(d / V3_EPISODES, "episode_index", 1, 0),
        r"file-000\.parquet: episode 0 is listed twice",
    ),
    (
        "a video that starts after its end",
        lambda d: made.set_cell(d / V3_EPISODES, f"videos/{CAMERA}/from_timestamp", 2, 77.0),
        r"file-000\.mp4: episode 2, camera 'observation.images.top': 0 frames for 6 rows",
    ),
    (
        "a video part that is another episode's",
        lambda d: made.set_cell(d / V3_EPISODES, f"videos/{CAMERA}/from_timestamp", 2, 0.3),
        r"episode 2, camera .*: starts at frame 3, and the frames of episode 1 go on until 9",
    ),
    (
        "episode_index a float",
        lambda d: made.set_column(d / V3_DATA, "episode_index", [0.5] * 15),
        r"key 'episode_index' from row 0 on: holds float64",
    ),
    (
        "less of the video than rows",
        lambda d: made.set_cell(d / V3_EPISODES, f"videos/{CAMERA}/to_timestamp", 1, 0.7),
        r"episode 1, camera 'observation.images.top': 2 frames for 4 rows",
    ),
    (
        "a task index without a task",
        lambda d: made.edit_rows(d / TASK_TABLE, lambda t: t.slice(0, 1)),
        r"file-000\.parquet, episode 1: task index 1 has no task in .*tasks\.parquet",
    ),
    (
        "tasks without strings",
        lambda d: made.edit_rows(d / TASK_TABLE, lambda t: t.drop(["task"])),
        r"tasks\.parquet: has the columns \['task_index'\]; it needs",
    ),
]


def _ids(breaks: list[tuple[str, Any, str]]) -> list[str]:
    return [name for name, _, _ in breaks]


def _refused(folder: Path, pattern: str) -> None:
    with pytest.raises(RoboreelError, match=pattern) as caught:
        read_lerobot(folder)
    assert isinstance(caught.value, SourceError | NotADatasetError)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value), "says nothing of what would do"


@pytest.mark.parametrize(("name", "break_", "pattern"), V2_BREAKS, ids=_ids(V2_BREAKS))
def test_a_broken_v2_folder_is_refused(make: Callable[[str], Path], name: str, break_: Break, pattern: str) -> None:
    folder = make("v2.1")
    break_(folder)
    _refused(folder, pattern)


@pytest.mark.parametrize(("name", "break_", "pattern"), V3_BREAKS, ids=_ids(V3_BREAKS))
def test_a_broken_v3_folder_is_refused(make: Callable[[str], Path], name: str, break_: Break, pattern: str) -> None:
    folder = make("v3.0")
    break_(folder)
    _refused(folder, pattern)


def test_videos_of_two_sizes_are_refused(make: Callable[[str], Path]) -> None:
    import av

    folder = make("v2.1")
    with av.open(str(folder / V2_VIDEO.format(1)), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(painted_frame(number, 64, 64), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    _refused(folder, r"episode_000001\.mp4: camera .* has 64x64 pixels in episode 1, and 96x64 before")


def test_folders_that_are_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(NotADatasetError, match="no such folder"):
        open_lerobot(tmp_path / "nowhere")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(NotADatasetError, match="is a file; give the folder"):
        open_lerobot(tmp_path / "file")
    (tmp_path / "file").unlink()
    with pytest.raises(NotADatasetError, match=r"info\.json is missing \(found: nothing\)"):
        open_lerobot(tmp_path)
    (tmp_path / "meta_data").mkdir()
    with pytest.raises(SourceError, match=r"meta_data/info\.json: cannot be read"):
        open_lerobot(tmp_path)
