"""robomimic's and ALOHA's HDF5: taken in value for value; links that lead elsewhere and what is broken are refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from roboreel import RoboreelError, RoboreelWarning, SourceError, open_source
from roboreel.cli.main import main
from roboreel.errors import InvalidArgumentError, MissingDependencyError, NotADatasetError
from tests.foreign_files import LENGTHS, check_refused, jpeg, rows, taken_in, write_aloha, write_robomimic
from tests.recordings import CAMERA, pictures

pytestmark = pytest.mark.filterwarnings("ignore::roboreel.RoboreelWarning")
CAM_HIGH, AGENT = "observation.images.cam_high", "observation.images.agentview"


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


@pytest.fixture
def robomimic(tmp_path: Path) -> Path:
    return write_robomimic(tmp_path / "made" / "low_dim.hdf5")


@pytest.fixture
def aloha(tmp_path: Path) -> Path:
    return write_aloha(tmp_path / "made")


def test_robomimic(tmp_path: Path, robomimic: Path) -> None:
    with pytest.warns(RoboreelWarning, match="'next_obs' is 'obs' a step later: left out"):
        found = taken_in(robomimic, tmp_path / "there")
    wanted = rows()
    assert found["ends"] == np.cumsum(LENGTHS).tolist()  # demo_2, demo_9, demo_10
    assert np.array_equal(found["action"], wanted["action"])
    assert np.array_equal(found["next.reward"], wanted["action"][:, 0])
    assert found["next.done"].tolist() == [True, False] * 4  # though the file has 1 and 0
    assert np.array_equal(found["states"], wanted["state"])
    assert np.array_equal(found["observation.robot0_eef_pos"], wanted["state"])
    assert np.array_equal(found[AGENT], wanted["img"])
    assert found["fps"] == 25
    assert found["provenance"]["splits"] == {"train": ["demo_2", "demo_10"]}
    assert found["provenance"]["env_name"] == "Lift"
    assert not any(key.startswith("next_obs") for key in found)


def test_the_rate_and_the_task_of_its_kin(tmp_path: Path) -> None:
    isaac = write_robomimic(tmp_path / "a.hdf5", env_kwargs=None, sim_args={"dt": 0.01, "decimation": 2})
    assert taken_in(isaac, tmp_path / "a")["fps"] == 50
    assert taken_in(isaac, tmp_path / "b", fps=7)["fps"] == 7
    with h5py.File(isaac, "a") as file:
        file["data"].attrs["env_args"] = "no JSON"
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "lift it"})
        file["data/demo_9"].attrs["ep_meta"] = json.dumps({"lang": "put it down"})
    with pytest.warns(RoboreelWarning, match=r"env_args say no rate: taken as 20 Hz.*--fps"):
        found = taken_in(isaac, tmp_path / "c")
    assert found["fps"] == 20
    assert found["task"] == ["lift it"] * 3 + ["put it down"] + ["lift it"] * 4


def test_episodes_are_left_out_by_their_own_numbers(tmp_path: Path, robomimic: Path) -> None:
    assert taken_in(robomimic, tmp_path / "there", skip_episodes=[9])["ends"] == [3, 7]
    with pytest.raises(InvalidArgumentError, match=r"skip_episodes names 1, and .* 3 episodes, from 2 to 10"):
        taken_in(robomimic, tmp_path / "other", skip_episodes=[1])


@pytest.mark.parametrize("compress", [False, True])
def test_aloha(tmp_path: Path, compress: bool) -> None:
    folder = write_aloha(tmp_path / "made", compress=compress)
    with pytest.warns(RoboreelWarning, match=r"no rate is stored: taken as 50 Hz"):
        found = taken_in(folder, tmp_path / "there")
    wanted = rows()
    assert (found["ends"], found["fps"]) == (np.cumsum(LENGTHS).tolist(), 50)  # episode_2, _9, _10
    assert np.array_equal(found["observation.state"], wanted["state"])
    assert np.array_equal(found["observation.velocity"], wanted["state"] * 2)
    assert np.array_equal(found["action"], wanted["action"])
    decoded = [np.asarray(Image.open(io.BytesIO(jpeg(picture)))) for picture in wanted["img"]]
    assert np.array_equal(found[CAM_HIGH], decoded if compress else wanted["img"])
    assert found["provenance"]["simulated"] is True
    assert "compress_len" not in found


def test_one_file_of_aloha(tmp_path: Path, aloha: Path) -> None:
    found = taken_in(aloha / "episode_9.hdf5", tmp_path / "there", fps=30)
    assert (found["ends"], found["fps"]) == ([1], 30)
    assert found["observation.state"].tolist() == [[3, -3]]


def test_the_command_finds_out_what_it_is(tmp_path: Path, robomimic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aloha = write_aloha(tmp_path / "aloha")
    for path, name in ((robomimic, "robomimic HDF5"), (robomimic.parent, "robomimic HDF5"), (aloha, "ALOHA HDF5")):
        main(["import", str(path), str(tmp_path / "there"), "--decode-images"])
        assert f"taken from {name}" in capsys.readouterr().out
        shutil.rmtree(tmp_path / "there")
    with pytest.raises(SystemExit):
        main(["import", str(aloha), str(tmp_path / "there"), "--format", "robomimic"])
    assert "holds 3 HDF5 files" in capsys.readouterr().err


# What is left out


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda demo: demo.create_dataset("more", (len(demo["actions"]),), h5py.vlen_dtype(np.uint8)), "variable leng"),
        (
            lambda demo: demo.create_dataset("more", data=np.array([b"text"] * len(demo["actions"]))),
            r"holds dtype\('S4'\)",
        ),
        (lambda demo: demo.create_dataset("more", data=h5py.Empty("f4")), "is empty"),
        (lambda demo: demo.create_dataset("more", data=np.zeros((len(demo["actions"]), 2), "c8")), "complex64"),
        (lambda demo: demo.create_dataset("more", data=np.zeros(99)), "has 99 rows in an episode of 3 frames"),
        (lambda demo: demo.create_dataset("initial_state/more", data=np.zeros((1, 2))), "no value for each frame"),
    ],
)
def test_what_is_no_array_of_frames_is_left_out(tmp_path: Path, robomimic: Path, make: Any, pattern: str) -> None:
    with h5py.File(robomimic, "a") as file:
        for demo in file["data"].values():
            made = make(demo)
            if made.dtype.kind == "O":
                made[:] = [np.zeros(2, np.uint8)] * len(made)
    with pytest.warns(RoboreelWarning, match=pattern):
        found = taken_in(robomimic, tmp_path / "there")
    assert not [key for key in found if "more" in key]
    if "initial" not in str(pattern) and "for each" not in pattern:
        with pytest.raises(SourceError, match="which strict refuses"):
            open_source(robomimic, strict=True)


# Broken and hostile


def change(path: Path, name: str, values: Any, **options: Any) -> None:
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        file.create_dataset(name, **({"data": values} if values is not None else {}), **options)


def link(path: Path, name: str, to: Any) -> None:
    with h5py.File(path, "a") as file:
        if name in file:
            del file[name]
        file[name] = to


def loop(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for name in "abcdefgh":
            file[f"data/demo_9/{name}"] = file["data/demo_9"]


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((1, 2), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (1, 2))
    with h5py.File(path, "a") as file:
        del file["data/demo_9/states"]
        file["data/demo_9"].create_virtual_dataset("states", layout)


def outside(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data/demo_9/states"]
        file["data/demo_9"].create_dataset("states", (1, 2), "f4", external=[("/etc/hostname", 0, 8)])


STATES = "data/demo_9/states"


def delete(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        del file[name]


def huge(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], name: str = STATES) -> None:
    """Declare a size, of which one number is written."""
    change(path, name, None, shape=shape, chunks=chunks, dtype="u1", compression="gzip")
    with h5py.File(path, "a") as file:
        file[name][(0,) * len(shape)] = 1


def everything_huge(path: Path) -> None:
    with h5py.File(path, "a") as file:
        names = [f"data/demo_9/{name}" for name in ("actions", "rewards", "dones", "states", "obs/robot0_eef_pos")]
        shapes = [file[name].shape[1:] for name in names]
        image = file["data/demo_9/obs/agentview_image"].shape[1:]
    for name, shape in zip(names, shapes, strict=True):
        huge(path, (10**12, *shape), (10**6, *shape), name)
    huge(path, (10**12, *image), (100, *image), "data/demo_9/obs/agentview_image")


def bad_image(path: Path) -> None:
    for name, length in zip(("demo_2", "demo_9", "demo_10"), LENGTHS, strict=True):
        img = pictures(np.arange(length)).astype(np.float32) / 255
        img[0, 0, 0, 0] = 0.3001
        change(path, f"data/{name}/obs/agentview_image", img)


def unpacking(path: Path, *, declared: int, stored: int) -> None:
    """Put a chunk in the place of another that unpacks to so many bytes, where so many are declared."""
    change(path, STATES, None, shape=(1, declared), chunks=(1, declared), dtype="u1", compression="gzip")
    with h5py.File(path, "a") as file:
        file[STATES].id.write_direct_chunk((0, 0), zlib.compress(bytes(stored), 1) + os.urandom(declared - 100_000))


# fmt: off
BREAKS: list[tuple[str, Callable[[Path], object], str]] = [
    ("cut off", lambda path: path.write_bytes(path.read_bytes()[:-2000]), r"not a whole HDF5 file"),
    ("external link", lambda path: link(path, STATES, h5py.ExternalLink("/etc/passwd", "/x")),
     r"data/demo_9/states is a link into another file, '/etc/passwd'"),
    ("external demo", lambda path: link(path, "data/demo_9", h5py.ExternalLink("other.hdf5", "/x")),
     r"/data/demo_9 is a link into another file"),
    ("soft link", lambda path: link(path, STATES, h5py.SoftLink("/data/demo_2/states")), r"is a soft link, to"),
    ("soft data", lambda path: link(path, "data", h5py.SoftLink("/mask")), r"/data is a soft link"),
    ("loop", loop, r"more than 12 groups deep"),
    ("virtual", virtual, r"states': its data lie in other files"),
    ("outside", outside, r"states': its data lie in other files"),
    ("no data", lambda path: link(path, "data", np.zeros(3)), r"'data' is no group"),
    ("no actions", lambda path: delete(path, "data/demo_9/actions"),
     r"data/demo_9: has no 'actions'"),
    ("lengths", lambda path: change(path, "data/demo_9/obs/robot0_eef_pos", np.zeros((2, 2), "f4")),
     r"robot0_eef_pos': has 2 rows, and the actions 1"),
    ("shape", lambda path: change(path, "data/demo_9/obs/robot0_eef_pos", np.zeros((1, 3), "f4")),
     r"robot0_eef_pos': holds float32 \(3,\) a frame, and .* float32 \(2,\)"),
    ("lacking", lambda path: delete(path, "data/demo_9/obs/robot0_eef_pos"), r"demo_9: lacks 'observation.robot0"),
    ("never written", lambda path: change(path, STATES, None, shape=(1, 2), dtype="f8"), r"declares .* never written"),
    ("empty", lambda path: change(path, "data/demo_9/actions", np.zeros((0, 1))), r"has 1 rows, and the actions 0"),
    ("a huge chunk", lambda path: change(path, STATES, None, shape=(1, 10**10), chunks=(1, 10**9), dtype="u1"),
     r"declares \(1, 10000000000\) and was never|one chunk of"),
    ("a huge row", lambda path: huge(path, (1, 10**9), (1, 10**8)), r"one row of shape \(1000000000,\)"),
    ("huge", lambda path: huge(path, (10**12, 2), (10**6, 2)), r"states': has 1,000,000,000,000 rows, and"),
    ("all huge", everything_huge, r"would take [\d,]+ bytes besides images"),
    ("dones", lambda path: change(path, "data/demo_9/dones", np.array([2])), r"dones': holds 2 where 0 or 1 must say"),
    ("unpacking", lambda path: unpacking(path, declared=1_200_000, stored=10_000_000),
     r"states': the chunk at \(0, 0\) holds more than the 1,200,000 bytes of a chunk"),
    ("a float image", bad_image, r"row 0: holds 0\.3\d*, which is none of the 256 levels"),
]
# fmt: on


@pytest.mark.parametrize(("name", "breaking", "pattern"), BREAKS, ids=[name for name, _, _ in BREAKS])
def test_what_is_broken_is_refused(
    tmp_path: Path, robomimic: Path, name: str, breaking: Callable[[Path], object], pattern: str
) -> None:
    breaking(robomimic)
    check_refused(robomimic, tmp_path / "there", pattern)


@pytest.mark.parametrize("seed", range(8))
def test_damage_anywhere_is_one_error_or_other_numbers(tmp_path: Path, robomimic: Path, seed: int) -> None:
    """HDF5 has no checksums: what hits a number goes unseen, what hits the file's own bookkeeping must not."""
    rng, data = np.random.default_rng(seed), bytearray(robomimic.read_bytes())
    for at in rng.integers(0, 6000, 12).tolist():  # where the groups and the headers are
        data[at] = int(rng.integers(256))
    robomimic.write_bytes(data)
    try:
        taken_in(robomimic, tmp_path / "there")
    except RoboreelError:
        assert not (tmp_path / "there").exists()


ALOHA_BREAKS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_bytes(b"nothing"), r"episode_9\.hdf5: not a whole HDF5 file"),
    (lambda path: delete(path, "action"), r"lacks 'action' or 'observations/qpos', so it is no episode of ALOHA's"),
    (lambda path: change(path, "observations/qvel", np.zeros((5, 2))), r"qvel': has 5 rows, and the actions 1"),
    (lambda path: change(path, "observations/images/cam_high", np.zeros((1, 5, 5, 5))), r"which are no images"),
    (lambda path: delete(path, "observations/images"), r"episode_9\.hdf5: lacks 'observation.images.cam_high'"),
    (lambda path: change(path, "observations/images/cam_high", np.full((1, 90), 3, np.uint8)), r"lacks|not a readable"),
    (lambda path: link(path, "observations/qvel", h5py.ExternalLink("a.hdf5", "/b")), r"a link into another file"),
]


@pytest.mark.parametrize(("breaking", "pattern"), ALOHA_BREAKS, ids=[pattern for _, pattern in ALOHA_BREAKS])
def test_what_is_broken_of_aloha_is_refused(
    tmp_path: Path, aloha: Path, breaking: Callable[[Path], object], pattern: str
) -> None:
    breaking(aloha / "episode_9.hdf5")
    check_refused(aloha, tmp_path / "there", pattern)


def test_a_compressed_image_that_is_cut_off_is_named(tmp_path: Path) -> None:
    folder = write_aloha(tmp_path / "made", compress=True)
    with h5py.File(folder / "episode_10.hdf5", "a") as file:
        images = file["observations/images/cam_high"]
        images[2, 300:] = 0
    check_refused(folder, tmp_path / "there", r"cam_high', frame 2: not a readable image")


def test_without_h5py_it_says_what_to_type(tmp_path: Path, robomimic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    check_refused(robomimic, tmp_path / "there", r"pip install 'roboreel\[formats\]'", MissingDependencyError)


def test_no_file_of_aloha(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    check_refused(tmp_path / "made", tmp_path / "there", "holds no HDF5 file", NotADatasetError, format="aloha")


def test_float_images_of_all_episodes_decide(tmp_path: Path, robomimic: Path) -> None:
    for name, first, length in (("demo_2", 0, 3), ("demo_9", 3, 1), ("demo_10", 4, 4)):
        img = pictures(np.arange(first, first + length)).astype(np.float32) / 255
        change(robomimic, f"data/{name}/obs/agentview_image", np.zeros_like(img) if first == 0 else img)
    found = taken_in(robomimic, tmp_path / "there")
    assert np.array_equal(found[AGENT][3:], pictures(np.arange(3, 8)))
    assert CAMERA not in found


# Real ones


@pytest.mark.parametrize("name", ["dataset", "annotated_dataset", "generated_dataset_small"])
def test_isaac_lab(tmp_path: Path, shared_data: Path, name: str) -> None:
    path = shared_data / "fmt_hdf5_irim_indy7" / f"{name}.hdf5"
    found = taken_in(path, tmp_path / "there")
    with h5py.File(path) as file:
        demos = sorted(file["data"], key=lambda demo: int(demo.partition("_")[2]))
        for key, inner in (("action", "actions"), ("observation.joint_pos", "obs/joint_pos")):
            assert np.array_equal(found[key], np.concatenate([file["data"][demo][inner][:] for demo in demos]))
        assert found["ends"] == np.cumsum([len(file["data"][demo]["actions"]) for demo in demos]).tolist()
