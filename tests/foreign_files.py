"""Recordings in other formats, made here: frame number n holds n in every key, as those of `tests/recordings.py`."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numcodecs
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from PIL import Image

from roboreel import LeRobotDatasetV2, SourceError, open_source
from tests.recordings import pictures

LENGTHS = [3, 1, 4]
ROWS = sum(LENGTHS)
Arrays = dict[str, NDArray[Any]]


def rows(first: int = 0, count: int = ROWS) -> Arrays:
    """What a replay buffer holds, by its names."""
    numbers = np.arange(first, first + count)
    return {
        "img": pictures(numbers),
        "state": np.stack([numbers, -numbers], axis=1).astype(np.float32),
        "action": (numbers * 0.5).astype(np.float32)[:, None],
        "done": numbers % 2 == 0,
    }


def write_zarr(
    folder: Path,
    arrays: Mapping[str, Any] | None = None,
    ends: Any = None,
    *,
    version: Literal[2, 3] = 2,
    **options: Any,
) -> Path:
    """A replay buffer with chunks of 3 rows; `options` are of zarr's `create_array`."""
    root = zarr.create_group(str(folder), zarr_format=version)
    if version == 2:
        options = {"compressors": numcodecs.Blosc("zstd", 5, numcodecs.Blosc.BITSHUFFLE), **options}
    for name, values in (rows() if arrays is None else arrays).items():
        values = np.asarray(values)
        root.create_array(f"data/{name}", data=values, chunks=(3, *values.shape[1:]), **options)
    ends = np.cumsum(LENGTHS) if ends is None else np.asarray(ends)
    root.create_array("meta/episode_ends", data=ends, chunks=(max(1, len(ends)),), **options)
    return folder


def zipped(folder: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same as a `.zarr.zip` beside it."""
    path = folder.with_suffix(".zarr.zip")
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    return path


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_robomimic(path: Path, lengths: list[int] | None = None, **env_args: Any) -> Path:
    """A file with images, as robosuite's; `demo_10` comes last though its name sorts before `demo_9`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = 0
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for number, length in zip((2, 9, 10), lengths or LENGTHS, strict=True):
            found = rows(first, length)
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"] = length
            demo["actions"] = found["action"]
            demo["rewards"] = found["action"][:, 0]
            demo["dones"] = found["done"].astype(np.int64)
            demo["states"] = found["state"].astype(np.float64)
            for group in ("obs", "next_obs"):
                demo.create_dataset(
                    f"{group}/agentview_image",
                    data=found["img"],
                    chunks=(1, *found["img"].shape[1:]),
                    compression="gzip",
                )
                demo[f"{group}/robot0_eef_pos"] = found["state"]
            first += length
        data.attrs["total"] = first
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": 25}, **env_args})
        file["mask/train"] = np.array([b"demo_2", b"demo_10"])
    return path


def write_aloha(folder: Path, *, compress: bool = False, lengths: list[int] | None = None) -> Path:
    """A folder of a file an episode, numbered so that names and numbers sort differently."""
    folder.mkdir(parents=True)
    first = 0
    for number, length in zip((2, 9, 10), lengths or LENGTHS, strict=True):
        found = rows(first, length)
        with h5py.File(folder / f"episode_{number}.hdf5", "w") as file:
            file.attrs["sim"], file.attrs["compress"] = True, compress
            file["observations/qpos"] = found["state"].astype(np.float64)
            file["observations/qvel"] = found["state"] * 2
            file["action"] = found["action"]
            if compress:
                jpegs = [jpeg(picture) for picture in found["img"]]
                width = max(map(len, jpegs)) + 7
                padded = [np.frombuffer(data.ljust(width, b"\0"), np.uint8) for data in jpegs]
                file["observations/images/cam_high"] = np.stack(padded)
                file["compress_len"] = np.array([[len(data) for data in jpegs]])
            else:
                file["observations/images/cam_high"] = found["img"]
        first += length
    return folder


def jpeg(picture: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# Taking them in


def taken_in(path: Path, root: Path, **options: Any) -> dict[str, Any]:
    """Import, and return all frames by their keys."""
    opened = {name: options.pop(name) for name in ("fps", "rename", "strict", "format") if name in options}
    source = open_source(path, **opened)
    with LeRobotDatasetV2.from_source(source, root, progress=False, image_dtype="uint8", **options) as dataset:
        items: dict[str, Any] = dataset.get_batch(range(len(dataset)))
        found = {key: value if key == "task" else np.asarray(value) for key, value in items.items()}
        for key in dataset.camera_keys:
            found[key] = np.moveaxis(found[key], 1, -1)
        provenance = dataset._need_store().manifest.provenance
        ends = dataset.episode_data_index["to"].tolist()
        return {**found, "ends": ends, "fps": dataset.fps, "provenance": provenance}


def check_refused(path: Path, root: Path, pattern: str, error: type[Exception] = SourceError, **options: Any) -> None:
    """Refused by one error, and nothing of it stays."""
    before = sorted(root.parent.iterdir())
    with pytest.raises(error, match=pattern) as refused:
        taken_in(path, root, **options)
    assert "\n" not in str(refused.value)
    assert sorted(root.parent.iterdir()) == before
