"""LeRobot v1.x: the real folders against their Arrow files and each other; small ones whole, odd and broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from roboreel import LeRobotDatasetV2
from roboreel.convert.lerobot import open_lerobot
from roboreel.errors import RoboreelWarning, SourceError
from tests import lerobot_folders as made
from tests.lerobot_folders import CAMERA, LENGTHS, TASKS, V1_INDEX, V1_VIDEO, decoded, read_lerobot
from tests.video_files import read_numbers

REAL = {
    # folder: fps, frames, the camera's shape, what the warnings begin to say
    "v1.1_pusht_image": (10, 161, (96, 96, 3), ["lists 206 episodes, and 161 rows are there, of 1"]),
    "v1.2_pusht": (10, 161, (96, 96, 3), []),
    "v1.2_aloha_sim_insertion_human": (50, 500, (480, 640, 3), []),
    "v1.2_xarm_lift_medium": (15, 25, (84, 84, 3), []),
}
ARROW, PARQUET = "train/data-00000-of-00001.arrow", "data/train-00000-of-00001.parquet"


@pytest.mark.parametrize("name", REAL)
def test_a_real_folder_gives_what_its_arrow_file_holds(shared_data: Path, name: str) -> None:
    fps, frames, shape, warnings = REAL[name]
    source, episodes = read_lerobot(shared_data / name)
    assert (source.format, source.fps, source.num_episodes, source.num_frames) == ("LeRobot v1.x", fps, 1, frames)
    assert [key.shape for key in source.keys if key.is_camera] == [shape]
    assert len(source.warnings) == len(warnings)
    assert all(said in found for said, found in zip(warnings, source.warnings, strict=True))
    with pa.memory_map(str(shared_data / name / ARROW)) as file:
        whole = pa.ipc.open_stream(file).read_all()
        for key in source.keys:
            if not key.is_camera:
                wanted = np.array(whole.column(key.name).to_pylist()).astype(key.dtype)
                np.testing.assert_array_equal(episodes[0].columns[key.name], wanted)
                assert episodes[0].columns[key.name].shape == (frames, *key.shape)
        np.testing.assert_array_equal(episodes[0].columns["timestamp"], np.array(whole.column("timestamp")))
    assert next(iter(episodes[0].cameras.values())).length == frames


def test_pusht_images_equal_the_zarr_and_its_video_nearly_does(shared_data: Path) -> None:
    zarr = pytest.importorskip("zarr")
    images = zarr.open(str(shared_data / "fmt_zarr_pusht_full"), mode="r")["data/img"][:161]
    _, [stills] = read_lerobot(shared_data / "v1.1_pusht_image")
    np.testing.assert_array_equal(decoded(stills, "observation.image"), images)
    _, [video] = read_lerobot(shared_data / "v1.2_pusht")
    off = decoded(video, "observation.image").astype(np.float64) - images
    assert 10 * np.log10(255**2 / np.square(off).mean(axis=(1, 2, 3)).max()) > 39.3  # dB, frame k to image k


def test_real_folders_become_datasets(shared_data: Path, tmp_path: Path) -> None:
    name = "v1.2_xarm_lift_medium"
    dataset = LeRobotDatasetV2.from_lerobot(shared_data / name, tmp_path / name, progress=False)
    dataset.set_delta_timestamps({"action": [0, 1 / 15]})
    assert (len(dataset), dataset.fps) == (25, 15)
    item = dataset[24]
    assert item["action_is_pad"].tolist() == [False, True]
    assert tuple(item["observation.image"].shape) == (3, 84, 84)


@pytest.mark.parametrize("camera", ["video", "image"])
@pytest.mark.parametrize("arrow", [True, False], ids=["arrow", "parquet"])
@pytest.mark.parametrize("rows_a_file", [100, 3])  # episodes end within files, and files within episodes
def test_every_row_and_picture_is_given(tmp_path: Path, camera: str, arrow: bool, rows_a_file: int) -> None:
    folder = made.write_v1(tmp_path / "v1", camera, arrow=arrow, rows_a_file=rows_a_file)
    source, episodes = read_lerobot(folder)
    assert (source.format, source.num_episodes, source.num_frames, source.warnings) == ("LeRobot v1.6", 3, 15, ())
    first = 0
    for episode, length in zip(episodes, LENGTHS, strict=True):
        r = np.arange(first, first + length)
        np.testing.assert_array_equal(episode.columns["action"], made.action(r))
        np.testing.assert_array_equal(episode.columns["observation.state"], r[:, None] * np.array([1, 10, 100]))
        assert episode.columns["frame_index"].tolist() == list(range(length))
        assert list(episode.strings["task"]) == [TASKS[episode.index % 2]] * length
        assert read_numbers(decoded(episode)) == r.tolist()
        first += length


def test_a_file_with_a_footer_is_read_like_a_stream(tmp_path: Path) -> None:
    folder = made.write_v1(tmp_path / "v1")
    with pa.ipc.new_file(folder / ARROW, made.v1_table("video").schema) as file:
        file.write_table(made.v1_table("video").combine_chunks())
    assert open_lerobot(folder).num_frames == 15


def test_episodes_of_one_video_are_found_by_the_times_beside_its_path(tmp_path: Path) -> None:
    folder = made.write_v1(tmp_path / "v1")
    made.write_video_file(folder / "videos/all.mp4", range(15))
    frames = [{"path": "videos/all.mp4", "timestamp": row / made.FPS} for row in range(15)]
    _put(folder, CAMERA, pa.array(frames, made.v1_table("video").schema.field(CAMERA).type))
    _, episodes = read_lerobot(folder)
    assert read_numbers(np.concatenate([decoded(episode) for episode in episodes])) == list(range(15))


def test_where_rows_name_no_video_it_is_where_the_writer_puts_it(tmp_path: Path) -> None:
    folder = made.write_v1(tmp_path / "v1")
    frames = [{"path": None, "timestamp": None}] * 15
    _put(folder, CAMERA, pa.array(frames, made.v1_table("video").schema.field(CAMERA).type))
    _, episodes = read_lerobot(folder)
    assert read_numbers(np.concatenate([decoded(episode) for episode in episodes])) == list(range(15))


def test_without_the_index_of_episodes_the_rows_say_which_is_whose(tmp_path: Path) -> None:
    folder = made.write_v1(tmp_path / "v1")
    (folder / V1_INDEX).unlink()
    source = open_lerobot(folder)
    assert source.num_episodes == 3
    assert "which rows are whose is taken from 'episode_index'" in source.warnings[0]


def test_without_episode_index_the_metadata_say_it(tmp_path: Path) -> None:
    folder = made.write_v1(tmp_path / "v1")
    made.write_arrow(folder / ARROW, made.v1_table("video").drop_columns("episode_index"))
    assert [episode.length for episode in read_lerobot(folder)[1]] == list(LENGTHS)


LEFT_OUT: list[tuple[str, Callable[[Path], None], str]] = [
    (
        "pickles",
        lambda folder: _put(folder, "extra", pa.array([b"\x80\x04cos\nsystem\n."] * 15)),
        "column 'extra' holds binary data, which is never unpickled: left out",
    ),
    (
        "lists of several lengths",
        lambda folder: _put(folder, "extra", pa.array([[1.0] * (1 + k % 2) for k in range(15)])),
        r"column 'extra': its rows do not agree \(.*row 1 is a list of 2 values",
    ),
    (
        "a camera without video",
        lambda folder: shutil.rmtree(folder / "videos"),
        f"camera '{CAMERA}' is declared and has no video file: left out",
    ),
    (
        "episodes that are only listed",
        lambda folder: made.write_safetensors(
            folder / V1_INDEX, {"from": np.array([0, 5, 9, 15]), "to": np.array([5, 9, 15, 20])}
        ),
        "lists 4 episodes, and 15 rows are there, of 3: the others are left out",
    ),
]


@pytest.mark.parametrize(("name", "change", "said"), LEFT_OUT, ids=[name for name, _, _ in LEFT_OUT])
def test_what_cannot_come_along_is_left_out_or_refused(
    tmp_path: Path, name: str, change: Callable[[Path], None], said: str
) -> None:
    folder = made.write_v1(tmp_path / "v1")
    change(folder)
    with pytest.warns(RoboreelWarning, match=said):
        dataset = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "dataset", progress=False)
    assert len(dataset) == 15
    assert "extra" not in dataset.data_keys
    for place in ("dataset", "another"):  # also where it is there already
        with pytest.raises(SourceError, match=rf"{said}.*, which strict refuses"):
            LeRobotDatasetV2.from_lerobot(folder, tmp_path / place, strict=True, progress=False)
    assert not (tmp_path / "another").exists()


def test_nested_lists_become_arrays(tmp_path: Path) -> None:
    folder = made.write_v1(tmp_path / "v1")
    _put(folder, "force", pa.array([[[1.0 * r, 2.0], [3.0, 4.0], [5.0, 6.0]] for r in range(15)]))
    source, episodes = read_lerobot(folder)
    assert next(key for key in source.keys if key.name == "force").shape == (3, 2)
    assert episodes[1].columns["force"][2, 0, 0] == 7


def _put(folder: Path, name: str, column: pa.Array) -> None:
    """Put a column into the rows, or in the place of one that is there."""
    table = made.v1_table("video")
    if name in table.column_names:
        table = table.drop_columns(name)
    made.write_arrow(folder / ARROW, table.append_column(name, column))


def _info(folder: Path, **fields: Any) -> None:
    (folder / "meta_data" / "info.json").write_text(json.dumps(fields))


def _path(folder: Path, path: str) -> None:
    frames = [{"path": path, "timestamp": 0.0}] * 15
    _put(folder, CAMERA, pa.array(frames, made.v1_table("video").schema.field(CAMERA).type))


def _cut_between_batches(folder: Path) -> None:
    """Take the last batch and the mark of the end away, so that what is left reads like a shorter stream."""
    short = made.v1_table("video").slice(0, 12)
    made.write_arrow(folder / ARROW, short)
    (folder / ARROW).write_bytes((folder / ARROW).read_bytes()[:-8])


def _lying_offset(folder: Path) -> None:
    """Have a string begin far outside of what the file holds."""
    data = (folder / ARROW).read_bytes()
    offsets = np.cumsum([0] + [len(TASKS[0])] * 4).astype("<i4").tobytes()
    assert offsets in data
    (folder / ARROW).write_bytes(data.replace(offsets, offsets[:8] + b"\xff\xff\xff\x6f" + offsets[12:], 1))


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("a cut file", lambda folder: made.truncate(folder / ARROW), r"data-00000-of-00001\.arrow: is cut off or damaged"),
    ("a cut between batches", _cut_between_batches, r"ends without the mark of its end: it is cut off"),
    ("a lying offset", _lying_offset, r"rows \d+ to \d+ are damaged \(.*\); download it again"),
    ("no Arrow", lambda folder: (folder / ARROW).write_bytes(b"x" * 99), r"arrow: not an Arrow file"),
    (
        "a missing file of rows",
        lambda folder: (folder / ARROW).rename(folder / "train/data-00001-of-00002.arrow"),
        r"data-00000-of-00002\.arrow: this file is missing",
    ),
    ("no rows", lambda folder: (folder / ARROW).unlink(), r"rows neither as train/\*\.arrow nor as data/\*\.parquet"),
    ("no info.json", lambda folder: (folder / "meta_data/info.json").unlink(), r"info\.json: cannot be read"),
    ("no fps", lambda folder: _info(folder, video=1), r"fps is None; it must be a positive number"),
    ("another version", lambda folder: _info(folder, fps=10, codebase_version="v2.1"), r"meta_data/ is of v1\.x"),
    ("a path out of the folder", lambda folder: _path(folder, "../v.mp4"), r"'\.\./v\.mp4' leads out of"),
    ("an absolute path", lambda folder: _path(folder, "/etc/passwd"), r"'/etc/passwd' leads out of"),
    (
        "one video missing",
        lambda folder: (folder / V1_VIDEO.format(1)).unlink(),
        r"episode_000001\.mp4: camera .* has frames for other episodes and not here",
    ),
    (
        "an episode cut off",
        lambda folder: made.write_arrow(folder / ARROW, made.v1_table("video").slice(0, 12)),
        r"says that episode 2 has rows 9 to 14, and .* has 3 rows of it, of 12; download both again",
    ),
    (
        "an unlisted episode",
        lambda folder: made.write_safetensors(folder / V1_INDEX, {"from": np.array([0]), "to": np.array([5])}),
        r"lists 1 episodes, and episode 1 is another",
    ),
    (
        "a cut index",
        lambda folder: made.truncate(folder / V1_INDEX),
        r"episode_data_index\.safetensors: not a whole safetensors file",
    ),
    (
        "episodes out of order",
        lambda folder: _put(folder, "episode_index", pa.array([1] * 5 + [0] * 4 + [2] * 6)),
        r"rows of episode 0 come after rows of episode 1",
    ),
]


@pytest.mark.parametrize(("name", "change", "said"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_folder_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, name: str, change: Callable[[Path], object], said: str
) -> None:
    folder = made.write_v1(tmp_path / "v1")
    change(folder)
    with pytest.raises(SourceError, match=said):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "dataset", progress=False)
    assert not (tmp_path / "dataset").exists()


def test_files_of_other_columns_are_no_one_recording(tmp_path: Path) -> None:
    folder = made.write_v1(tmp_path / "v1", rows_a_file=10)
    made.write_arrow(
        folder / "train/data-00001-of-00002.arrow", made.v1_table("video").slice(10).drop_columns("action")
    )
    with pytest.raises(SourceError, match="column 'action' is not as in"):
        open_lerobot(folder)
