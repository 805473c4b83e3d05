"""Files that lie, directories that are not ours: each is one clear error, and nothing is changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from roboreel import InvalidArgumentError, LeRobotDatasetV2, NotADatasetError, StorageDirCorruptError
from roboreel.format import paths
from roboreel.format.records import State, sealed
from tests.make_golden import GOLDEN, VIDEO


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy that may be spoiled."""
    return shutil.copytree(GOLDEN, tmp_path / "golden")


Spoil = Callable[[dict[str, Any]], object]

METADATA: dict[str, tuple[Spoil, str]] = {
    "not ours": (lambda m: m.update(format="zarr"), "'format' is not 'roboreel'"),
    "newer major": (lambda m: m.update(version="1.0"), "format version 1.0; .* pip install --upgrade roboreel"),
    "no version": (lambda m: m.pop("version"), "'version' is missing"),
    "odd version": (lambda m: m.update(version="0.x"), "version is '0.x', not 'major.minor'"),
    "unknown feature": (lambda m: m.update(incompatible=["z"]), r"needs the features \['z'\].* pip install --upgrade"),
    "features no list": (lambda m: m.update(incompatible="z"), "not a list of features"),
    "unfinished import": (lambda m: m.update(incompatible=["unfinished"]), "half an import, running or interrupted"),
    "no fps": (lambda m: m.pop("fps"), "'fps' is missing"),
    "zero fps": (lambda m: m.update(fps=0), "fps is 0, not a positive number"),
    "huge fps": (lambda m: m.update(fps=10**400), "too large"),
    "nan fps": (lambda m: m.update(fps=float("nan")), "fps is nan, not a positive number"),
    "negative capacity": (lambda m: m.update(capacity=-1), "capacity is -1"),
    "huge capacity": (lambda m: m.update(capacity=1 << 62), "capacity is"),
    "ring no flag": (lambda m: m.update(ring=1), "ring is 1, not true or false"),
    "uuid": (lambda m: m.update(uuid="?"), "badly formed hexadecimal UUID"),
    "provenance": (lambda m: m.update(provenance=[1]), r"provenance is \[1\], not an object"),
    "keys no object": (lambda m: m.update(keys=[]), "cannot be read as roboreel metadata"),
    "no timestamp": (lambda m: m["keys"].pop("timestamp"), "'timestamp' must be there"),
    "index float": (lambda m: m["keys"]["index"].update(dtype="<f8"), "'index' must be there, with dtype '<i8'"),
    "escaping template": (lambda m: m["paths"].update(column="../{key}.bin"), r"paths are .*\.\./\{key\}\.bin"),
    "absolute template": (lambda m: m["paths"].update(video="/tmp/{key}"), "paths are"),
    "format trick": (lambda m: m["paths"].update(png="{key.__class__}"), "paths are"),
    "no templates": (lambda m: m.pop("paths"), "'paths' is missing"),
    "png value": (lambda m: m["keys"]["action"].update(stored="png"), "'action'.*only cameras are stored so"),
    "camera vector": (lambda m: m["keys"]["action"].update(role="camera"), r"'action': a camera's frames are uint8"),
    "float string": (lambda m: m["keys"]["action"].update(role="string"), "'action': a string is one <i4 code"),
    "odd role": (lambda m: m["keys"]["action"].update(role="?"), "'action': role '\\?' is none of"),
    "surrogate": (lambda m: m["keys"].__setitem__("\ud800", m["keys"].pop("action")), "not valid Unicode"),
    "nameless": (lambda m: m["keys"].__setitem__("", m["keys"].pop("action")), "must have a name"),
    "other name": (lambda m: m["keys"].__setitem__("../a", m["keys"].pop("action")), r"%2E\.%2Fa\.bin is missing"),
    "other case": (lambda m: m["keys"].__setitem__("Action", m["keys"]["action"]), r"%41ction\.bin is missing"),
}  # fmt: skip

SHAPES: dict[str, tuple[Any, str]] = {
    "larger": ([3], "48 bytes; 6 frames need 72: it was cut short"),
    "negative": ([-1], "negative side"),
    "negative twice": ([-1, -2], "negative side"),
    "overflowing": ([1 << 62], "too large"),
    "wrapping to 0": ([1 << 32, 1 << 32], "too large"),
    "hidden by 0": ([1 << 62, 0], "too large a file"),
    "80 sides": ([1] * 80, "80 dimensions; at most 16"),
    "float": ([2.0], "not a list of integers"),
    "true": ([True], "not a list of integers"),
    "number": (2, "not a list of integers"),
    "null": (None, "not a list of integers"),
}
DTYPES = {
    ">f4": "little-endian", "f4": "little-endian", "<f8": "cut short", "<f16": "differs between machines|numpy's",
    "|O": "cannot be stored", "<U4": "cannot be stored", "<M8[s]": "cannot be stored", "<c8": "cannot be stored",
    "<f4,<f4": "cannot be stored", "<(2,)f4": "cannot be stored", "<((": "numpy's", "<f3": "numpy's",
}  # fmt: skip


def check_refused(root: Path, words: str) -> None:
    """One error, on both ways in; nothing is made, changed or removed by the attempt, inside or beside."""
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")}
    with pytest.raises(StorageDirCorruptError, match=words):
        LeRobotDatasetV2(root, readonly=True)
    with pytest.raises(StorageDirCorruptError, match=words):
        LeRobotDatasetV2.check_storage_dir_integrity(root)
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*")} == before


def spoil_metadata(root: Path, spoil: Spoil) -> None:
    metadata = json.loads((root / paths.METADATA).read_bytes())
    spoil(metadata)
    (root / paths.METADATA).write_text(json.dumps(metadata))


@pytest.mark.parametrize("case", METADATA)
def test_refused_metadata(golden: Path, case: str) -> None:
    spoil, words = METADATA[case]
    spoil_metadata(golden, spoil)
    check_refused(golden, words)


@pytest.mark.parametrize("case", SHAPES)
def test_refused_shape(golden: Path, case: str) -> None:
    shape, words = SHAPES[case]
    spoil_metadata(golden, lambda m: m["keys"]["action"].update(shape=shape))
    check_refused(golden, words)


@pytest.mark.parametrize("dtype", DTYPES)
def test_refused_dtype(golden: Path, dtype: str) -> None:
    spoil_metadata(golden, lambda m: m["keys"]["action"].update(dtype=dtype))
    check_refused(golden, DTYPES[dtype])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"\xff\xfe\0",
        b"[" * 100_000,
        b'{"format": "roboreel"',
        b'{"format": "roboreel", "x": 1, "x": 2}',
    ],
)
def test_refused_json(golden: Path, raw: bytes) -> None:
    (golden / paths.METADATA).write_bytes(raw)
    check_refused(golden, "metadata.json")


def test_newer_minor_version_and_compatible_features_open(golden: Path) -> None:
    spoil_metadata(golden, lambda m: m.update(version="0.7", compatible=["colour"], later={"x": 1}))
    assert len(LeRobotDatasetV2(golden, readonly=True)) == 5


def put(name: str, offset: int, data: bytes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        raw = bytearray((root / name).read_bytes())
        raw[offset : offset + len(data)] = data
        (root / name).write_bytes(raw)

    return spoil


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda root: os.truncate(root / name, size)


OTHER_MAGIC = sealed((b"RRSTATE\x02" + State(rows=3, capacity=6).to_bytes()[8:])[:-8])
FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "state: magic": (put(paths.STATE, 4096, OTHER_MAGIC), "state.bin holds no whole record"),
    "state: checksum": (put(paths.STATE, 4096 + 56, b"\x09"), "state.bin holds no whole record"),
    "state: cut": (cut(paths.STATE, 4200), "state.bin holds no whole record"),
    "state: empty": (cut(paths.STATE, 0), "state.bin holds no whole record"),
    "row: checksum": (put(paths.EPISODES, 144 + 16, b"\x09"), r"row 1 of the episode table .*checksum"),
    "rows: cut": (cut(paths.EPISODES, 300), "episodes.bin holds 2 rows, 3 are committed"),
    "column: cut": (cut("columns/action.bin", 40), "action.bin has 40 bytes; 6 frames need 48: it was cut short"),
    "column: empty": (cut("columns/index.bin", 0), "index.bin has 0 bytes"),
    "owners: cut": (cut(paths.OWNERS, 47), "owners.bin has 47 bytes"),
    "column: gone": (lambda root: (root / "columns/task.bin").unlink(), "task.bin is missing"),
    "state: gone": (lambda root: (root / paths.STATE).unlink(), r"lacks the files \['state.bin'\]"),
}


@pytest.mark.parametrize("case", FILES)
def test_refused_files(golden: Path, case: str) -> None:
    spoil, words = FILES[case]
    spoil(golden)
    check_refused(golden, words)


def test_refused_on_writing_too(golden: Path) -> None:
    spoil_metadata(golden, lambda m: m["keys"]["action"].update(shape=[1 << 62]))
    with pytest.raises(StorageDirCorruptError, match="too large"):
        LeRobotDatasetV2(golden).add_episodes({"action": np.zeros(2, np.float32)})


def test_keys_stay_inside_the_directory_and_apart(tmp_path: Path) -> None:
    names = ["../../evil", "a/b", "..", "Action", "action", "AÇÃO", "a%2Fb", "con\0", ".hidden"]
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10)
    dataset.add_episodes({name: np.full(2, k, np.int64) for k, name in enumerate(names)})
    dataset.close()
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]
    files = [path.name for path in (tmp_path / "dataset" / "columns").iterdir()]
    assert len({name.lower() for name in files}) == len(names) + 4  # also where a file system ignores case
    item = LeRobotDatasetV2(tmp_path / "dataset", readonly=True)[1]
    assert [int(item[name]) for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    ("array", "words"),
    [(np.zeros((2, *[1] * 17), np.float32), "17 dimensions"), (np.zeros(2, np.longdouble), "differs between machines")],
)
def test_what_could_not_be_opened_again_is_not_made(tmp_path: Path, array: np.ndarray[Any, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        LeRobotDatasetV2(tmp_path / "dataset", fps=10).add_episodes({"action": array})
    assert list(tmp_path.iterdir()) == []


def test_foreign_directory(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("chapter 1")
    with pytest.raises(NotADatasetError, match="holds no dataset"):
        LeRobotDatasetV2(tmp_path, readonly=True)
    with pytest.raises(InvalidArgumentError, match=r"holds other things \(thesis.tex\); give an empty or a new"):
        LeRobotDatasetV2(tmp_path, fps=10).add_episodes({"action": np.zeros(2, np.float32)})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("options", [{}, {"fps": 10}, {"readonly": True}, {"image_mode": "video"}])
def test_lerobot_folder(sample_dir: Path, options: dict[str, Any]) -> None:
    with pytest.raises(
        NotADatasetError, match=f"LeRobot folder.* type: roboreel import {re.escape(str(sample_dir))} DEST"
    ):
        LeRobotDatasetV2(sample_dir, **options)


@pytest.mark.parametrize("name", [paths.IMAGES, paths.VIDEOS, paths.COLUMNS])
def test_folders_of_others_are_not_taken_for_leftovers(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(InvalidArgumentError, match=rf"holds other things \({name}\)"):
        LeRobotDatasetV2(tmp_path, fps=10).add_episodes({"action": np.zeros(2, np.float32)})
    assert [path.name for path in tmp_path.rglob("*")] == [name, "holiday.jpg"]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "does not hold the 3 strings, all different"),
        (b'"push', "strings.jsonl cannot be read"),
        (b"1\n2\n3\n", "does not hold the 3 strings, all different"),
        (b"\xff", "strings.jsonl cannot be read"),
    ],
)
def test_refused_strings(golden: Path, raw: bytes, words: str) -> None:
    (golden / paths.STRINGS).write_bytes(raw)
    check_refused(golden, words)


def test_frame_table_that_lies_is_named(golden: Path) -> None:
    path = paths.frame_table_path(golden, VIDEO, 0)
    put(str(path.relative_to(golden)), 64, b"\x09")(golden)
    with pytest.raises(StorageDirCorruptError, match=r"000000.frames.*checksum"):
        LeRobotDatasetV2.check_storage_dir_integrity(golden)
    with pytest.raises(StorageDirCorruptError, match=r"000000.frames.*checksum"):
        LeRobotDatasetV2(golden, readonly=True)[0]
