"""`roboreel.forecast` and `roboreel forecast`: what is said before is what is there after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel.cli import main
from roboreel.store.forecast import Forecast
from tests.lerobot_folders import write_v2, write_v3
from tests.recordings import CAMERA, HEIGHT, WIDTH, made, pictures, recording


def sizes(root: Path) -> dict[str, int]:
    """Bytes of each key in a dataset."""
    found: dict[str, int] = {}
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if path.is_file() and parts[0] in ("columns", "checksums", "images", "videos"):
            key = path.stem if parts[0] in ("columns", "checksums") else parts[1]
            found[key] = found.get(key, 0) + path.stat().st_size
    return found


def examples(**cameras: Any) -> dict[str, Any]:
    return {key: np.asarray(value)[0] for key, value in recording(1).items()} | cameras


@pytest.mark.parametrize("mode", ["memmap", "png", "video"])
def test_it_says_what_a_recording_takes(tmp_path: Path, mode: str) -> None:
    frames = 40
    sample = {CAMERA: pictures(np.arange(16))}
    found = roboreel.forecast(examples(**{CAMERA: sample[CAMERA][0]}), frames, sample=sample)
    made(tmp_path / "dataset", [frames], camera=True, image_mode=mode, buffer_capacity=frames).close()
    taken = sizes(tmp_path / "dataset")
    assert set(found.keys) == set(taken)
    for key, size in taken.items():
        said = getattr(found.keys[key], mode)
        if key == CAMERA and mode != "memmap":
            assert found.keys[key].measured == 16
            assert size <= said * 1.25
            assert said <= size * 1.25
        else:
            assert said == size, key
    assert found.owners == (tmp_path / "dataset" / "owners.bin").stat().st_size
    assert found.total(mode) == found.owners + sum(getattr(key, mode) for key in found.keys.values())


@pytest.mark.parametrize("mode", ["memmap", "png", "video"])
@pytest.mark.parametrize("length", [40, 5])
def test_it_says_what_a_recording_takes_that_grows(tmp_path: Path, mode: str, length: int) -> None:
    frames = 40
    sample = {CAMERA: pictures(np.arange(frames))}
    keys: Any = examples(**{CAMERA: sample[CAMERA][0]}, task="push the T")
    found = roboreel.forecast(keys, frames, episode_length=length, sample=sample)
    root = tmp_path / "dataset"
    made(root, [length] * (frames // length), camera=True, image_mode=mode, task="push the T").close()
    taken = sum(sizes(root).values()) + (root / "owners.bin").stat().st_size
    assert found.keys["task"].memmap == frames * (4 + 8)
    if mode == "memmap":
        assert found.growing[mode] == taken
    assert taken <= 1.1 * found.growing[mode]
    assert found.growing[mode] <= 1.1 * taken
    loose = roboreel.forecast(keys, frames, sample=sample)
    assert loose.growing["memmap"] >= found.growing["memmap"] >= found.total("memmap")


def test_a_frame_may_come_with_its_task_and_numbers_of_numpy() -> None:
    keys: Any = {"task": "push", "action": np.zeros(2)}
    assert roboreel.forecast(keys, np.int64(10)).keys["task"].memmap == 120  # type: ignore[arg-type]


def test_without_a_sample_it_guesses_and_says_so() -> None:
    found = roboreel.forecast({CAMERA: np.zeros((HEIGHT, WIDTH, 3), np.uint8)}, 1000)
    assert found.keys[CAMERA].memmap == 1000 * (HEIGHT * WIDTH * 3 + 8)
    assert found.keys[CAMERA].memmap > found.keys[CAMERA].png > found.keys[CAMERA].video > 0
    assert any("guessed" in note and CAMERA in note for note in found.notes)
    assert isinstance(found, Forecast)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, 0), "frames=0; a positive number"),
        (({CAMERA: np.zeros((4, 4), np.uint8)}, 5), "uint8 .height, width, channels., .*; not uint8"),
        (({"action": np.array(b"text")}, 5), "cannot be stored"),
        (({"action": np.longdouble(1)}, 5), "differs between machines"),
        (({}, 10**30), "too large a file"),
        (({}, True), "frames=True; a positive number"),
    ],
)
def test_what_cannot_be(arguments: Any, message: str) -> None:
    with pytest.raises(roboreel.InvalidArgumentError, match=message):
        roboreel.forecast(*arguments)


def test_samples_that_do_not_fit_the_keys() -> None:
    keys: dict[str, Any] = {CAMERA: np.zeros((HEIGHT, WIDTH, 3), np.uint8), "action": np.zeros(2)}
    with pytest.raises(ValueError, match=r"\['action'\], which are no cameras"):
        roboreel.forecast(keys, 5, sample={"action": np.zeros((3, 2), np.uint8)})
    with pytest.raises(ValueError, match=r"uint8 of shape \(3, 8, 8, 3\)"):
        roboreel.forecast(keys, 5, sample={CAMERA: np.zeros((3, 8, 8, 3), np.uint8)})


# The command


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    main(["forecast", *map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("mode", ["memmap", "png", "video"])
def test_the_command_measures_on_a_dataset_however_it_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    made(tmp_path / "dataset", [30, 20], camera=True, image_mode=mode, task="push").close()
    before = sorted(tmp_path.rglob("*"))
    found = told(capsys, tmp_path / "dataset", "--frames", 1000)
    assert found["keys"]["action"] == dict.fromkeys(("memmap", "png", "video"), 12_000)
    assert found["measured_frames"] == {CAMERA: 48}
    assert found["keys"][CAMERA]["memmap"] == 1000 * (HEIGHT * WIDTH * 3 + 8)
    assert found["total"]["memmap"] == found["owners"] + sum(key["memmap"] for key in found["keys"].values())
    assert found["free_bytes"] > 0
    assert found["growing"]["memmap"] == found["total"]["memmap"] * 1600 // 1000  # 25 a time, doubled until all fit
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("write", "camera"), [(write_v2, "image"), (write_v3, "video"), (write_v3, None)])
def test_the_command_takes_a_lerobot_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write: Any, camera: str | None
) -> None:
    folder = write(tmp_path / "folder", camera=camera)
    before = sorted(folder.rglob("*"))
    found = told(capsys, folder, "--frames", 10)
    assert list(found["measured_frames"].values()) == ([15] if camera else [])
    assert found["keys"]["next.done"]["png"] == 90
    assert sorted(folder.rglob("*")) == before


def test_what_it_prints_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "dataset", [30], camera=True).close()
    main(["forecast", str(tmp_path / "dataset"), "--frames", "1000000"])
    printed = capsys.readouterr().out
    assert printed.startswith("1,000,000 frames, ")
    assert ["action", "12.0", "MB", "12.0", "MB", "12.0", "MB"] in [line.split() for line in printed.splitlines()]
    assert any(line.split()[:1] == ["growing"] for line in printed.splitlines())
    assert f"{CAMERA}: png and video measured on 30 frames" in printed
    with pytest.raises(SystemExit):
        main(["forecast", str(tmp_path), "--frames", "10"])
    assert "meta/info.json" in capsys.readouterr().err


OTHER = "observation.images.other"
SHARP = roboreel.VideoOptions(codec="h264", gop=30, crf=10)


def test_modes_of_several_cameras_are_added_up_and_those_not_named_are_video() -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    found = roboreel.forecast({CAMERA: frame, OTHER: frame, "action": np.zeros(2)}, 100)
    rest = found.total("memmap") - found.keys[CAMERA].memmap - found.keys[OTHER].memmap
    assert found.total({CAMERA: "png"}) == rest + found.keys[CAMERA].png + found.keys[OTHER].video
    assert found.total({CAMERA: "png", OTHER: "memmap"}) == rest + found.keys[CAMERA].png + found.keys[OTHER].memmap
    assert found.total({}) == found.total("video")
    with pytest.raises(ValueError, match=r"image_mode names \['nope'\]; the keys are"):
        found.total({"nope": "png"})


def test_video_options_are_measured(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, HEIGHT, WIDTH, 3), np.uint8)
    keys = {CAMERA: noise[0], OTHER: noise[0]}
    found = roboreel.forecast(keys, 24, sample={CAMERA: noise, OTHER: noise}, video_options={CAMERA: SHARP})
    assert found.keys[CAMERA].video > 1.2 * found.keys[OTHER].video
    assert found.to_dict()["encoding"] == {CAMERA: SHARP.to_dict(), OTHER: roboreel.VideoOptions().to_dict()}
    assert any("measured on 24 frames, encoded as a recording would, as h264 with gop 30" in n for n in found.notes)
    dataset = roboreel.LeRobotDatasetV2(tmp_path / "dataset", fps=10, video_options={CAMERA: SHARP})
    dataset.add_episodes({CAMERA: noise, OTHER: noise})
    taken = sizes(tmp_path / "dataset")
    for key in keys:
        assert abs(taken[key] - found.keys[key].video) < 0.25 * taken[key] + 2000
    with pytest.raises(ValueError, match="video_options names 'nope'; the cameras are"):
        roboreel.forecast(keys, 24, video_options={"nope": SHARP})


def test_the_command_counts_cameras_as_they_are_stored_or_as_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "dataset"
    dataset = roboreel.LeRobotDatasetV2(root, fps=10, image_mode={CAMERA: "png"}, video_options={OTHER: SHARP})
    dataset.add_episodes({CAMERA: pictures(np.arange(20)), OTHER: pictures(np.arange(20))})
    dataset.close()
    found = told(capsys, root, "--frames", 100)
    assert found["image_mode"] == {CAMERA: "png", OTHER: "video"}
    assert found["encoding"][OTHER] == SHARP.to_dict()
    rest = found["total"]["memmap"] - sum(found["keys"][key]["memmap"] for key in (CAMERA, OTHER))
    assert found["total_so"] == rest + found["keys"][CAMERA]["png"] + found["keys"][OTHER]["video"]
    asked = told(capsys, root, "--frames", 100, "--image-mode", f"{OTHER}=memmap", "--video.codec", "hevc")
    assert asked["image_mode"] == {CAMERA: "png", OTHER: "memmap"}
    assert asked["total_so"] == rest + found["keys"][CAMERA]["png"] + found["keys"][OTHER]["memmap"]
    assert asked["encoding"][OTHER]["codec"] == "hevc"
    main(["forecast", str(root), "--frames", "100", "--image-mode", "memmap"])
    assert f"with {CAMERA} as memmap, {OTHER} as memmap" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["forecast", str(root), "--frames", "100", "--image-mode", "nope=png"])
    assert "image_mode names 'nope'; the cameras are" in capsys.readouterr().err
