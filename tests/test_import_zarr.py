"""diffusion-policy's zarr: taken in value for value, however it is stored; broken and hostile ones are refused."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from roboreel import LeRobotDatasetV2, RoboreelWarning, open_source
from roboreel.cli.main import main
from roboreel.errors import InvalidArgumentError, MissingDependencyError, NotADatasetError
from tests.foreign_files import LENGTHS, ROWS, check_refused, rows, taken_in, write_zarr, zipped
from tests.recordings import pictures

pytestmark = pytest.mark.filterwarnings("ignore::roboreel.RoboreelWarning")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


def check(found: Mapping[str, Any]) -> None:
    wanted = rows()
    assert found["ends"] == np.cumsum(LENGTHS).tolist()
    assert np.array_equal(found["observation.state"], wanted["state"])
    assert np.array_equal(found["action"], wanted["action"])
    assert np.array_equal(found["next.done"], wanted["done"])
    assert np.array_equal(found["observation.image"], wanted["img"])


def v2_nested(folder: Path) -> Path:
    return write_zarr(folder, chunk_key_encoding={"name": "v2", "separator": "/"})


WRITERS: dict[str, Callable[[Path], Path]] = {
    "v2": write_zarr,
    "v2-gzip": lambda folder: write_zarr(folder, compressors={"id": "gzip", "level": 1}),
    "v2-raw": lambda folder: write_zarr(folder, compressors=None),
    "v2-nested": v2_nested,
    "v3": lambda folder: write_zarr(folder, version=3),
    "zip": lambda folder: zipped(write_zarr(folder)),
    "zip-deflated": lambda folder: zipped(write_zarr(folder), zipfile.ZIP_DEFLATED),
    "zip-v3": lambda folder: zipped(write_zarr(folder, version=3)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_way_of_storing_gives_the_same(tmp_path: Path, kind: str) -> None:
    check(taken_in(WRITERS[kind](tmp_path / "made"), tmp_path / "there"))
    LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "there")


def test_shards(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "made", {"action": np.arange(24.0).reshape(8, 3)}, [8], version=3)
    shutil.rmtree(folder / "data")
    zarr.open_group(str(folder), mode="a").create_array(
        "data/action", data=np.arange(24.0).reshape(8, 3), chunks=(2, 3), shards=(4, 3)
    )
    assert np.array_equal(taken_in(folder, tmp_path / "there")["action"], np.arange(24.0).reshape(8, 3))


# Images that are no bytes


def unit(dtype: str) -> Any:
    return (pictures(np.arange(ROWS)).astype(np.float64) / 255).astype(dtype)


@pytest.mark.parametrize("values", ["f4", "f8", "i8", "u2", "unit f4", "unit f8", "first", "grey"])
def test_images_of_other_numbers_become_bytes_exactly(tmp_path: Path, values: str) -> None:
    whole = pictures(np.arange(ROWS))
    img = unit(values.split()[1]) if values.startswith("unit") else whole.astype("f4" if len(values) > 2 else values)
    if values == "first":
        img = np.moveaxis(img, -1, 1)
    if values == "grey":
        img = img[..., 0]
    arrays = {**rows(), "img": img}
    found = taken_in(write_zarr(tmp_path / "made", arrays), tmp_path / "there", decode_images=True)
    assert np.array_equal(found["observation.image"], whole[..., :1] if values == "grey" else whole)


def test_a_dark_beginning_does_not_decide(tmp_path: Path) -> None:
    img = np.zeros((ROWS, 16, 24, 3), np.float32)
    img[7, 0, 0] = 200
    found = taken_in(write_zarr(tmp_path / "made", {**rows(), "img": img}), tmp_path / "there")
    assert np.array_equal(found["observation.image"], img)


@pytest.mark.parametrize(
    ("value", "pattern"),
    [
        (0.5, r"row 7: holds 0\.5, which is none of the 256 levels of images from 0 to 255"),
        (256, r"row 7: holds 256\.0"),
        (-1, r"row 7: holds -1\.0"),
        (np.nan, r"row 7: holds nan"),
    ],
)
def test_a_pixel_that_is_no_level_is_named(tmp_path: Path, value: float, pattern: str) -> None:
    img = pictures(np.arange(ROWS)).astype(np.float32)
    img[7, 3, 2, 1] = value
    folder = write_zarr(tmp_path / "made", {**rows(), "img": img})
    check_refused(folder, tmp_path / "there", pattern)


def test_nothing_but_ones_is_ambiguous(tmp_path: Path) -> None:
    img = np.ones((ROWS, 16, 24, 3), np.float32)
    check_refused(write_zarr(tmp_path / "made", {**rows(), "img": img}), tmp_path / "there", "nothing but 0 and 1")


# Rate, keys, and what is left out


def test_the_rate(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "made")
    assert taken_in(folder, tmp_path / "a", fps=25)["fps"] == 25
    with pytest.warns(RoboreelWarning, match=r"no rate is stored: taken as 10 Hz.*--fps"):
        assert taken_in(folder, tmp_path / "b")["fps"] == 10
    clock = {**rows(), "timestamp": 1.6e9 + np.arange(ROWS) * 0.04}
    with pytest.warns(RoboreelWarning, match="by its timestamps it is 25 Hz"):
        found = taken_in(write_zarr(tmp_path / "clock", clock), tmp_path / "c")
    assert found["fps"] == 25
    assert found["timestamp"][:4] == pytest.approx([0, 0.04, 0.08, 0], abs=1e-6)
    (folder / ".zattrs").write_text('{"fps": 5}')
    assert taken_in(folder, tmp_path / "d")["fps"] == 5


def test_names(tmp_path: Path) -> None:
    more = {**rows(), "camera0_rgb": rows()["img"], "keypoint": np.zeros((ROWS, 9, 2)), "agent_pos": rows()["state"]}
    more |= {
        "rewards": np.zeros((ROWS, 1)),
        "image_features": np.zeros((ROWS, 4)),
        "obs/deep": np.zeros(ROWS, np.int16),
    }
    found = taken_in(write_zarr(tmp_path / "made", more), tmp_path / "there", rename={"observation.keypoint": "kp"})
    assert set(found) - {"ends", "fps", "provenance", "index", "episode_index", "frame_index", "timestamp"} == {
        "action", "kp", "next.done", "next.reward", "observation.image", "observation.images.camera0",
        "observation.obs.deep", "observation.state", "observation.values.image_features", "observation.values.state",
    }  # fmt: skip
    source = write_zarr(tmp_path / "plain")
    with pytest.raises(InvalidArgumentError, match=r"rename names \['nothing'\]; the keys are \['action'"):
        taken_in(source, tmp_path / "other", rename={"nothing": "kp"})
    with pytest.raises(InvalidArgumentError, match=r"rename makes \['index'\] of other keys"):
        taken_in(source, tmp_path / "other", rename={"observation.state": "index"})
    with pytest.raises(InvalidArgumentError, match=r"fps=0; a positive number"):
        taken_in(source, tmp_path / "other", fps=0)
    with pytest.raises(InvalidArgumentError, match=r"rename makes \['action'\] of two keys"):
        taken_in(source, tmp_path / "other", rename={"observation.state": "action"})
    assert not (tmp_path / "other").exists()


def test_chunks_that_are_not_there_are_told(tmp_path: Path) -> None:
    folder = write_zarr(tmp_path / "made")
    (folder / "data/state/1.0").unlink()
    with pytest.warns(RoboreelWarning, match=r"array 'state': 1 of 3 chunks are not there, and count as its fill"):
        found = taken_in(folder, tmp_path / "there")
    assert found["observation.state"][:, 0].tolist() == [0, 1, 2, 0, 0, 0, 6, 7]


# The command


def test_the_command_finds_out_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_zarr(tmp_path / "made")
    main(["import", str(folder), str(tmp_path / "there"), "--forecast", "--fps", "5"])
    assert "observation.image: raw pixels" in capsys.readouterr().out
    assert not (tmp_path / "there").exists()
    main(["forecast", str(folder), "--frames", "1000", "--image-mode", "memmap"])
    assert "observation.image" in capsys.readouterr().out
    main(["import", str(folder), str(tmp_path / "there"), "--fps", "5", "--rename", "observation.state=state"])
    out, err = capsys.readouterr()
    assert "taken from diffusion-policy zarr" in out
    assert "8 at 5 Hz" in out
    assert "no rate" not in err
    main(
        ["import", str(folder), str(tmp_path / "there"), "--fps", "5", "--rename", "observation.state=state", "--quiet"]
    )


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        (["--rename", "nonsense"], "--rename 'nonsense': OLD=NEW would do"),
        (["--rename", "a=b", "--rename", "a=c"], "OLD=NEW would do, once for each key"),
        (["--format", "lerobot", "--fps", "3"], "--fps and --rename are for other formats"),
        (["--format", "lerobot"], "not a LeRobot dataset"),
        (["--format", "robomimic"], "holds 0 HDF5 files"),
    ],
)
def test_what_is_typed_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], pattern: str
) -> None:
    folder = write_zarr(tmp_path / "made")
    with pytest.raises(SystemExit):
        main(["import", str(folder), str(tmp_path / "there"), *options])
    assert pattern in capsys.readouterr().err


def test_other_files_are_named(tmp_path: Path, sample_dir: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(NotADatasetError, match="neither a zip archive"):
        open_source(tmp_path / "notes.txt")
    with pytest.raises(InvalidArgumentError, match=r"is a LeRobot folder; LeRobotDatasetV2\.from_lerobot takes it"):
        open_source(sample_dir)
    with pytest.raises(NotADatasetError, match="no such file or folder"):
        open_source(tmp_path / "nowhere", "zarr")


def test_without_zarr_it_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_zarr(tmp_path / "made")
    monkeypatch.setitem(sys.modules, "zarr", None)
    check_refused(folder, tmp_path / "there", r"pip install 'roboreel\[formats\]'", MissingDependencyError)


# Real ones


@pytest.mark.parametrize("name", ["fmt_zarr_pusht_3ep"])
def test_pusht(tmp_path: Path, shared_data: Path, name: str) -> None:
    found = taken_in(shared_data / name, tmp_path / "there")
    group: Any = zarr.open_group(str(shared_data / name), mode="r")
    assert np.array_equal(found["observation.image"], group["data/img"][:])
    assert np.array_equal(found["observation.state"], group["data/state"][:])
    assert np.array_equal(found["observation.keypoint"], group["data/keypoint"][:])
    assert found["ends"] == group["meta/episode_ends"][:].tolist()


def test_pusht_is_what_lerobot_has_of_it(tmp_path: Path, shared_data: Path) -> None:
    found = taken_in(shared_data / "fmt_zarr_pusht_3ep", tmp_path / "there")
    folder, place = shared_data / "v3.0_pusht_image_slice", tmp_path / "lerobot"
    with LeRobotDatasetV2.from_lerobot(folder, place, progress=False, image_dtype="uint8") as dataset:
        other = dataset.get_batch(range(len(dataset)))
        assert dataset.episode_data_index["to"].tolist() == found["ends"]
    assert np.array_equal(np.moveaxis(np.asarray(other["observation.image"]), 1, -1), found["observation.image"])
    assert np.array_equal(other["observation.state"], found["observation.state"][:, :2])
    assert np.array_equal(other["action"], found["action"])
