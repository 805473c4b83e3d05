"""diffusion-policy's zarr that is broken, or out to do harm: one clear error each, nothing unpickled, nothing left."""

from __future__ import annotations

import base64
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from roboreel import RoboreelWarning, SourceError, open_source
from tests.foreign_files import ROWS, check_refused, edit_json, rows, taken_in, write_zarr, zipped

pytestmark = pytest.mark.filterwarnings("ignore::roboreel.RoboreelWarning")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


class Evil:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("unpickled",))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}, "Python objects, which are never unpickled"),
        ({"filters": [{"id": "pickle", "protocol": 5}]}, "is coded by 'pickle', which is never unpickled"),
        ({"compressor": {"id": "imagecodecs_jpegxl"}}, "'imagecodecs_jpegxl', which is not read"),
        ({"dtype": "<U5"}, "holds '<U5'"),
        ({"dtype": [["x", "<f4"]]}, "which are no plain numbers"),
        ({"dtype": "<c8"}, "only booleans, integers and floats"),
        ({"dtype": "nonsense"}, "no plain numbers"),
    ],
)
def test_what_is_no_plain_array_is_left_out_and_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_zarr(tmp_path / "made", {**rows(), "evil": np.zeros(ROWS)})
    payload = pickle.dumps(Evil())
    # zarr 2 decodes the fill value of objects when it opens an array
    fill = base64.standard_b64encode(payload).decode() if changes.get("dtype") == "|O" else 0
    edit_json(folder / "data" / "evil" / ".zarray", **{"compressor": None, "fill_value": fill, **changes})
    for chunk in ("0", "1", "2"):
        (folder / "data" / "evil" / chunk).write_bytes(payload)
    with pytest.warns(RoboreelWarning, match=f"array 'evil' .*{pattern}.*: left out"):
        found = taken_in(folder, tmp_path / "there")
    assert np.array_equal(found["action"], rows()["action"])
    assert not [key for key in found if "evil" in key]
    assert not (tmp_path / "unpickled").exists()
    with pytest.raises(SourceError, match="which strict refuses"):
        open_source(folder, strict=True)


@pytest.mark.parametrize(
    ("ends", "pattern"),
    [
        ([3, 2, 8], r"episode 1 ends at row 2, and the one before at 3; they must increase"),
        ([-3, 4, 8], r"episode 0 ends at row -3"),
        ([3, 4, 9], r"has 8 rows, and the last episode ends at row 9"),
        ([3, 1 << 62], r"episode 1 ends at row 4611686018427387904"),
        ([3, 3, 8], r"episode 1 has 0 frames; leave it out by skip_episodes=\[1\] \(--skip-episodes 1\)"),
        ([], r"holds no episodes"),
        ([3.0, 4, 8], r"is float64 of shape \(3,\); it must be integers"),
        ([[3], [8]], r"shape \(2, 1\)"),
    ],
)
def test_ends_that_lie(tmp_path: Path, ends: Any, pattern: str) -> None:
    folder = write_zarr(tmp_path / "made", ends=[8])
    shutil.rmtree(folder / "meta" / "episode_ends")
    values = np.asarray(ends, None if ends else np.int64)
    zarr.open_group(str(folder), mode="a").create_array("meta/episode_ends", data=values)
    check_refused(folder, tmp_path / "there", pattern)


def test_an_empty_episode_can_be_left_out(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "made", ends=[3, 3, 8])
    assert taken_in(folder, tmp_path / "there", skip_episodes=[1])["ends"] == [3, 8]


HUGE = 10**12
# fmt: off
BREAKS: list[tuple[str, Callable[[Path], object], str]] = [
    ("no ends", lambda made: shutil.rmtree(made / "meta"), r"has no meta/episode_ends"),
    ("no end chunk", lambda made: (made / "meta/episode_ends/0").unlink(), r"1 of its chunks are missing"),
    ("a cut chunk", lambda made: cut(made / "data/state/1.0"), r"state/1\.0 has 31 bytes, and should have 40: it"),
    ("a chunk of another size", lambda made: shutil.copy(made / "data/img/0.0.0.0", made / "data/state/1.0"),
     r"data/state'.*rows 0 to 8 cannot be read"),
    ("no JSON", lambda made: (made / "data/state/.zarray").write_text("{"), r"data/state/\.zarray is not valid JSON"),
    ("a list", lambda made: (made / "data/state/.zarray").write_text("[]"), r"where an object must be"),
    ("large JSON", lambda made: (made / "data/state/.zarray").write_text(" " * (1 << 21)), r"no real metadata"),
    ("lacking", lambda made: (made / "data/state/.zarray").write_text('{"zarr_format": 2}'), r"its metadata lack"),
    ("version", lambda made: edit_json(made / "data/state/.zarray", zarr_format=9), r"zarr_format is 9"),
    ("a negative side", lambda made: edit_json(made / "data/state/.zarray", shape=[-8, 2]), r"its shape is \[-8, 2\]"),
    ("no chunk side", lambda made: edit_json(made / "data/state/.zarray", chunks=[0, 2]), r"chunk shape is \[0, 2\]"),
    ("sides", lambda made: edit_json(made / "data/state/.zarray", chunks=[3]), r"a shape of 2 sides, and chunks of 1"),
    ("short", lambda made: edit_json(made / "data/state/.zarray", shape=[5, 2]), r"has 5 rows, and the last episode"),
    ("chunk", lambda made: edit_json(made / "data/state/.zarray", chunks=[HUGE, 2]), r"one chunk of .* is 8,000,000,0"),
    ("row", lambda made: edit_json(made / "data/state/.zarray", shape=[8, 10**9], chunks=[1, 10**8], compressor=None),
     r"one row of shape \(1000000000,\) is 4,000,000,000 bytes, which is no real frame"),
    ("chunks", lambda made: bomb(made, [10**6]), r"333,331 of its 333,334 chunks are not there"),
    ("rows", lambda made: bomb(made, [10**12], 10**8), r"would take 13,000,000,000,000 bytes.*'observation.state'"),
]
# fmt: on


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def bomb(made: Path, ends: list[int], chunk: int | None = None) -> None:
    """Declare rows of which there are no chunks."""
    shutil.rmtree(made / "meta" / "episode_ends")
    zarr.open_group(str(made), mode="a").create_array("meta/episode_ends", data=np.array(ends))
    if chunk is not None and chunk > 10**6:
        shutil.rmtree(made / "data" / "img")
    for name in (path.name for path in (made / "data").iterdir() if path.is_dir()):
        path = made / "data" / name / ".zarray"
        sides = json.loads(path.read_text())["shape"][1:]
        edit_json(path, shape=[ends[-1], *sides])
        if chunk is not None:
            edit_json(path, chunks=[chunk, *sides])
            shutil.rmtree(made / "data" / name / "c", ignore_errors=True)
            for file in (made / "data" / name).glob("[0-9]*"):
                file.unlink()


@pytest.mark.parametrize(("name", "breaking", "pattern"), BREAKS, ids=[name for name, _, _ in BREAKS])
def test_what_is_broken_is_refused(tmp_path: Path, name: str, breaking: Callable[[Path], object], pattern: str) -> None:
    folder = write_zarr(tmp_path / "made")
    breaking(folder)
    check_refused(folder, tmp_path / "there", pattern)


@pytest.mark.parametrize("codec", ["blosc", "zstd", "lz4", "bz2", "gzip", None])
def test_a_chunk_that_unfolds_is_refused_before_it_does(tmp_path: Path, codec: str | None) -> None:
    folder = write_zarr(tmp_path / "made")
    edit_json(folder / "data/state/.zarray", compressor=codec and {"id": codec}, chunks=[8, 2])
    zeros = np.zeros(70_000_000 if codec == "gzip" else 10_000_000 if codec else 100_000, np.uint8)
    data = numcodecs.get_codec({"id": codec}).encode(zeros) if codec else zeros.tobytes()
    for file in (folder / "data/state").glob("[0-9]*"):
        file.unlink()
    (folder / "data/state/0.0").write_bytes(data)
    pattern = r"state/0\.0 holds [\d,]+ bytes or more where a chunk has 64|rows 0 to 8 cannot be read"
    check_refused(folder, tmp_path / "there", pattern)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "made")
    (folder / "data/state/1.0").unlink()
    os.mkfifo(folder / "data/state/1.0")
    check_refused(folder, tmp_path / "there", r"state/1\.0 is no plain file")


def test_a_bomb_of_many_episodes(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "made")
    bomb(folder, [k * 10**6 for k in range(1, 10**5)], chunk=8 * 10**5)
    unfolds = r"bytes of files would become [\d,]+ besides images, more than 1,000 times as many.*--force"
    check_refused(folder, tmp_path / "there", unfolds, decode_images=True)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "data/../../outside", "data\\..\\outside"])
def test_a_zip_that_leads_out(tmp_path: Path, name: str) -> None:
    path = zipped(write_zarr(tmp_path / "made"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    check_refused(path, tmp_path / "there", "leads out of the archive")


def test_a_zip_that_is_cut_off(tmp_path: Path) -> None:
    path = zipped(write_zarr(tmp_path / "made"))
    path.write_bytes(path.read_bytes()[:-100])
    check_refused(path, tmp_path / "there", "not a whole zip file")
