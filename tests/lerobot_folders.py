"""Small LeRobot folders of each version, right in everything, and ways to break them in one thing.

Row r of the whole dataset (r = 0, 1, 2, … over all episodes) holds numbers made of r, and its image shows r.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

from roboreel.convert.foreign import SourceEpisode
from roboreel.convert.lerobot import LeRobotSource, open_lerobot
from tests.video_files import HEIGHT, WIDTH, painted_frame, write_video

FPS = 10
LENGTHS = (5, 4, 6)
TASKS = ("push the block", "pull the block")
CAMERA = "observation.images.top"
V1_VIDEO = f"videos/{CAMERA}_episode_{{:06d}}.mp4"
V1_INDEX = "meta_data/episode_data_index.safetensors"
V2_VIDEO = f"videos/chunk-000/{CAMERA}/episode_{{:06d}}.mp4"
V2_DATA = "data/chunk-000/episode_{:06d}.parquet"
V3_VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
V3_DATA = "data/chunk-000/file-000.parquet"
V3_EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def write_v2(folder: Path, version: str = "v2.1", camera: str | None = "video") -> Path:
    """One Parquet file, and one video or a column of PNG images, for each of `LENGTHS` episodes."""
    first = 0
    for episode, length in enumerate(LENGTHS):
        _write(folder / V2_DATA.format(episode), rows(episode, first, length, images=camera == "image"))
        if camera == "video":
            write_video_file(folder / V2_VIDEO.format(episode), range(first, first + length))
        first += length
    _write_info(folder, version, camera)
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    write_lines(folder / "meta" / "tasks.jsonl", tasks)
    listed = [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": n} for e, n in enumerate(LENGTHS)]
    write_lines(folder / "meta" / "episodes.jsonl", listed)
    return folder


def write_v1(folder: Path, camera: str | None = "video", *, rows_a_file: int = 100, arrow: bool = True) -> Path:
    """All episodes in Arrow or Parquet files of so many rows, and a video each; the tasks are a column of strings."""
    table = v1_table(camera)
    starts = range(0, len(table), rows_a_file)
    for number, start in enumerate(starts):
        kind, place = ("arrow", "train/data") if arrow else ("parquet", "data/train")
        path = folder / f"{place}-{number:05d}-of-{len(starts):05d}.{kind}"
        part = table.slice(start, rows_a_file)
        write_arrow(path, part) if arrow else _write(path, part, row_group_size=3)
    ends = np.cumsum(LENGTHS)
    for episode, length in enumerate(LENGTHS) if camera == "video" else ():
        write_video_file(folder / V1_VIDEO.format(episode), range(ends[episode] - length, ends[episode]))
    (folder / "meta_data").mkdir()
    (folder / "meta_data" / "info.json").write_text(json.dumps({"codebase_version": "v1.6", "fps": FPS}))
    write_safetensors(folder / V1_INDEX, {"from": np.array([0, *ends[:-1]], np.int64), "to": np.array(ends, np.int64)})
    return folder


def v1_table(camera: str | None) -> pa.Table:
    tables = []
    for episode, (first, length) in enumerate(zip((0, 5, 9), LENGTHS, strict=True)):
        table = rows(episode, first, length, images=camera == "image").drop_columns("task_index")
        table = table.append_column("language_instruction", pa.array([TASKS[episode % 2]] * length))
        if camera == "video":
            frames = [{"path": V1_VIDEO.format(episode), "timestamp": k / FPS} for k in range(length)]
            column = pa.array(frames, pa.struct({"path": pa.string(), "timestamp": pa.float32()}))
            table = table.append_column(CAMERA, column)
        tables.append(table)
    return pa.concat_tables(tables)


def write_arrow(path: Path, table: pa.Table) -> None:
    """An Arrow stream of batches of four rows, as `datasets` writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table.combine_chunks(), max_chunksize=4)


def write_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    header, data = {}, b""
    for name, array in arrays.items():
        dtype = {"int64": "I64", "float32": "F32"}[array.dtype.name]
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_v3(folder: Path, camera: str | None = "video") -> Path:
    """All episodes in one Parquet file, its row groups cutting through them, and in one video."""
    firsts = [sum(LENGTHS[:e]) for e in range(len(LENGTHS))]
    images = camera == "image"
    tables = [rows(e, first, n, images=images) for e, (first, n) in enumerate(zip(firsts, LENGTHS, strict=True))]
    _write(folder / V3_DATA, pa.concat_tables(tables), row_group_size=3)
    if camera == "video":
        write_video_file(folder / V3_VIDEO, range(sum(LENGTHS)))
    _write_info(folder, "v3.0", camera)
    _write(folder / "meta" / "tasks.parquet", pa.table({"task_index": [0, 1], "task": list(TASKS)}))
    listed: list[dict[str, Any]] = []
    for e, (first, n) in enumerate(zip(firsts, LENGTHS, strict=True)):
        row = {"episode_index": e, "tasks": [TASKS[e % 2]], "length": n, "data/chunk_index": 0, "data/file_index": 0}
        row |= {"dataset_from_index": first, "dataset_to_index": first + n}
        if camera == "video":
            # float noise, as additions of durations leave it
            times = {"from_timestamp": first / FPS + 1e-14, "to_timestamp": (first + n) / FPS - 1e-14}
            row |= {f"videos/{CAMERA}/{key}": value for key, value in times.items()}
            row |= {f"videos/{CAMERA}/chunk_index": 0, f"videos/{CAMERA}/file_index": 0}
        listed.append(row)
    _write(folder / V3_EPISODES, pa.Table.from_pylist(listed))
    return folder


def rows(episode: int, first: int, length: int, *, images: bool = False) -> pa.Table:
    """The data of one episode whose first row is row `first` of the dataset."""
    r = np.arange(first, first + length)
    columns = {
        "action": _fixed_lists(action(r)),
        "observation.state": pa.array((r[:, None] * [1.0, 10.0, 100.0]).tolist(), pa.list_(pa.float32())),
        "next.done": pa.array([k == length - 1 for k in range(length)]),
        "timestamp": pa.array(np.arange(length, dtype=np.float32) / np.float32(FPS)),
        "frame_index": pa.array(np.arange(length)),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(r),
        "task_index": pa.array(np.full(length, episode % 2)),
    }
    if images:
        images_of = [{"bytes": png(row), "path": f"frame-{row:06d}.png"} for row in r.tolist()]
        columns[CAMERA] = pa.array(images_of, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table(columns)


def action(r: Any) -> Any:
    """(n, 2) float32: row r of the dataset has [r, -r / 2]."""
    return np.stack([r, -r / 2], axis=-1).astype(np.float32)


def png(number: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(painted_frame(number)).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def edit_info(folder: Path, **changes: Any) -> None:
    """Change keys of info.json; None as a value takes the key out."""
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    info |= changes
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not None}))


def declare(folder: Path, name: str, dtype: str, shape: Sequence[int]) -> None:
    """Declare a feature in info.json, or declare it anew."""
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    edit_info(folder, features=features | {name: {"dtype": dtype, "shape": list(shape), "names": None}})


def undeclare(folder: Path, name: str) -> None:
    features = json.loads((folder / "meta" / "info.json").read_text())["features"]
    edit_info(folder, features={key: fields for key, fields in features.items() if key != name})


def edit_rows(path: Path, edit: Callable[[pa.Table], pa.Table], **options: Any) -> None:
    """Write a Parquet file again, its table changed."""
    _write(path, edit(pq.read_table(path, partitioning=None)), **options)


def set_column(path: Path, name: str, values: Any) -> None:
    """Put a column into a Parquet file, or in the place of one that is there."""

    def put(table: pa.Table) -> pa.Table:
        column = values if isinstance(values, pa.Array) else pa.array(values)
        if name not in table.column_names:
            return table.append_column(name, column)
        return table.set_column(table.column_names.index(name), name, column)

    edit_rows(path, put)


def set_cell(path: Path, name: str, row: int, value: Any) -> None:
    """Change one value of a column, its type kept."""
    column = pq.read_table(path, columns=[name], partitioning=None).column(name)
    values = column.to_pylist()
    values[row] = value
    set_column(path, name, pa.array(values, column.type))


def read_lerobot(folder: Path) -> tuple[LeRobotSource, list[SourceEpisode]]:
    """Open a folder and go through all of its episodes."""
    source = open_lerobot(folder)
    return source, list(source.episodes())


def decoded(episode: SourceEpisode, key: str = CAMERA) -> Any:
    """All frames of a camera: (length, H, W, C) uint8."""
    return np.concatenate(list(episode.cameras[key].blocks()))


def write_lines(path: Path, objects: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(content) + "\n" for content in objects))


def truncate(path: Path) -> None:
    """Cut a file off, as an interrupted copy does."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])


def _fixed_lists(values: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def _write(path: Path, table: pa.Table, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def write_video_file(path: Path, numbers: range) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_video_bytes(numbers))


@functools.cache
def _video_bytes(numbers: range) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_video(Path(folder) / "video.mp4", numbers, fps=FPS).read_bytes()


def _write_info(folder: Path, version: str, camera: str | None) -> None:
    one = {"shape": [1], "names": None}
    features: dict[str, Any] = {
        "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
        "observation.state": {"dtype": "float32", "shape": [3], "names": None},
        "next.done": {"dtype": "bool"} | one,
        "timestamp": {"dtype": "float32"} | one,
    }
    features |= {key: {"dtype": "int64"} | one for key in ("frame_index", "episode_index", "index", "task_index")}
    if camera:
        names = ["height", "width", "channels"]
        features[CAMERA] = {"dtype": camera, "shape": [HEIGHT, WIDTH, 3], "names": names}
    info = {
        "codebase_version": version,
        "robot_type": "test",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "features": features,
    }
    path = folder / "meta" / "info.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(info))


WRITERS: dict[str, Callable[[Path], Path]] = {
    "v2.0": functools.partial(write_v2, version="v2.0"),
    "v2.1": write_v2,
    "v3.0": write_v3,
    "v2-images": functools.partial(write_v2, camera="image"),
    "v3-images": functools.partial(write_v3, camera="image"),
}
