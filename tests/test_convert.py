"""Cameras stored in another image mode: the same frames at the same indices, whatever the mode, whoever is killed."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import roboreel
from roboreel import LeRobotDatasetV2, VideoOptions
from roboreel.cli.main import main
from roboreel.store import Store, verify
from tests.recordings import CAMERA, VIDEO_ERROR, made, numbers_of, pictures, recording
from tests.video_files import painted_frames

LOSSLESS = [("memmap", "png"), ("png", "memmap"), ("video", "memmap"), ("video", "png")]
FAST = VideoOptions(codec="h264", preset="ultrafast", crf=10)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(os, "fdatasync", lambda _: None, raising=False)


def ring(root: Path, mode: str, **options: Any) -> LeRobotDatasetV2:
    """A ring in which the end of episode 1, and episodes 2 to 4, survive; tasks differ, one clock is irregular."""
    dataset = LeRobotDatasetV2(root, 10, 16, True, mode, video_options=FAST if mode == "video" else None, **options)
    for first, length, task in ((0, 4, "push"), (4, 5, "pick"), (9, 3, "push"), (12, 4, "lift")):
        data = recording(length, first, camera=True, task=task)
        if first == 9:
            data["timestamp"] = np.array([0.0, 0.1, 0.35])
        dataset.add_episodes(data)
    dataset.add_episodes(recording(6, 16, camera=True, task="push"))
    return dataset


def frames(dataset: LeRobotDatasetV2) -> dict[str, Any]:
    """Everything that a reader sees, windows included; `on_hole` because one clock has a hole."""
    batch = dataset.get_batch(range(len(dataset)))
    return {key: value if isinstance(value, list) else value.numpy() for key, value in batch.items()}


def check_same(found: dict[str, Any], wanted: dict[str, Any], *, lossless: bool = True) -> None:
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        if key == CAMERA and not lossless:
            assert np.abs(found[key] - value).max() <= VIDEO_ERROR / 255
        else:
            assert np.array_equal(found[key], value), key


def check_clean(root: Path) -> None:
    report = verify(root)
    assert (report.problems, report.notes) == ([], [])
    LeRobotDatasetV2.check_storage_dir_integrity(root)
    assert not list(root.parent.glob(".*conversion*"))


@pytest.mark.parametrize(("before", "after"), [*LOSSLESS, ("memmap", "video"), ("png", "video")])
def test_every_pair_of_modes_over_a_ring_of_half_overwritten_episodes(tmp_path: Path, before: str, after: str) -> None:
    root = tmp_path / "dataset"
    dataset = ring(root, before)
    wanted, uuid, generation = frames(dataset), dataset.uuid, dataset.generation
    rows = Store.open(root).table.rows
    report = dataset.convert(after, video_options=FAST if after == "video" else None)
    assert report.cameras == {CAMERA: (before, after)}
    assert (report.episodes_converted, report.episodes_resumed) == (4, 0)
    check_same(frames(dataset), wanted, lossless=after != "video")
    assert (dataset.uuid, dataset.generation) == (uuid, generation + 1)
    store = Store.open(root)
    for name in set(rows.dtype.names or ()) - {"clips", "checksum"}:
        assert np.array_equal(store.table.rows[name], rows[name])
    assert store.manifest.provenance["conversions"][0]["cameras"][CAMERA]["to"] == after
    assert store.manifest.keys[CAMERA].video_options == (FAST if after == "video" else None)
    dataset.close()
    check_clean(root)
    dataset.add_episodes(recording(5, 22, camera=True, task="pick"))  # the ring goes on, over what was converted
    numbers = numbers_of(frames(dataset))
    assert numbers[6:11] == [22, 23, 24, 25, 26]
    images = dataset.get_batch(range(len(dataset)))[CAMERA].numpy().transpose(0, 2, 3, 1) * 255
    assert np.abs(images - pictures(np.array(numbers))).max() <= VIDEO_ERROR
    dataset.close()
    check_clean(root)


def test_a_camera_of_its_own_mode_lost_rows_and_back_again(tmp_path: Path) -> None:
    root, wrist = tmp_path / "dataset", "observation.images.wrist"
    modes = {CAMERA: "memmap", wrist: "png"}
    dataset = LeRobotDatasetV2(root, 10, 12, True, modes)
    for first in (0, 4, 8):
        data = recording(4, first, camera=True)
        dataset.add_episodes({**data, wrist: 255 - data[CAMERA]})
    dataset._opening.writer().give_up(4, 6)  # as after a writer that died
    wanted = frames(dataset)
    dataset.convert({wrist: "memmap"})
    dataset.convert({wrist: "video", CAMERA: "png"}, video_options=FAST)
    check_same({**frames(dataset), wrist: wanted[wrist]}, wanted)
    dataset.convert({CAMERA: "memmap"})
    check_same({**frames(dataset), wrist: wanted[wrist]}, wanted)
    files = sorted(path.name for path in (root / "videos" / wrist).iterdir())
    dataset.convert({wrist: "video"}, video_options=VideoOptions(codec="h264", gop=8, crf=8, preset="ultrafast"))
    assert not set(files) & {path.name for path in (root / "videos" / wrist).iterdir()}  # no file changes its content
    assert np.abs(frames(dataset)[wrist] - wanted[wrist]).max() <= 2 * VIDEO_ERROR / 255
    dataset.close()
    check_clean(root)


def test_converting_is_what_decode_images_does(tmp_path: Path) -> None:
    folder = Path(__file__).parent / "data" / "v3.0_pusht_image_slice"
    kept = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "kept", progress=False)
    decoded = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "decoded", True, progress=False)
    wanted = frames(kept)
    kept.convert("memmap")
    assert np.array_equal(kept.column(CAMERA), decoded.column(CAMERA))
    kept.convert("png")  # more files than are synced one by one
    check_same(frames(kept), wanted)
    kept.close()
    check_clean(tmp_path / "kept")


def test_converting_a_real_recording_is_what_decode_images_does(tmp_path: Path, shared_data: Path) -> None:
    name = "v2.1_baboon_dual_camera_torque"
    kept = LeRobotDatasetV2.from_lerobot(shared_data / name, tmp_path / "kept", progress=False)
    decoded = LeRobotDatasetV2.from_lerobot(shared_data / name, tmp_path / "decoded", True, progress=False)
    kept.convert("memmap")
    for key in kept.camera_keys:
        assert np.array_equal(kept.column(key), decoded.column(key))


def test_the_same_again_costs_no_quality(tmp_path: Path) -> None:
    dataset = made(tmp_path / "dataset", [4, 3], camera=True)
    dataset.convert("video", video_options=FAST)
    wanted, generation = frames(dataset), dataset.generation
    for options in (FAST, None):
        assert dataset.convert("video", video_options=options).cameras == {}
    assert dataset.generation == generation
    check_same(frames(dataset), wanted)
    assert dataset.convert("video", video_options=VideoOptions(codec="h264", crf=20)).cameras == {
        CAMERA: ("video", "video")
    }


def test_depth_and_grey_cameras(tmp_path: Path) -> None:
    depth, metres, grey = "observation.images.depth", "observation.images.metres", "observation.images.grey"
    numbers = np.arange(5 * 8 * 6).reshape(5, 8, 6, 1)
    data = {
        **recording(5),
        depth: (numbers * 211).astype(np.uint16),
        metres: (numbers / 7).astype(np.float32),
        grey: numbers.astype(np.uint8),
    }
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10)
    dataset.add_episodes(data)
    for modes in ({depth: "memmap", grey: "memmap"}, {depth: "png", grey: "png"}):
        dataset.convert(modes)
        episode = dataset.get_episode(0)
        for key in (depth, metres, grey):
            assert np.array_equal(episode[key], data[key])
    for key, mode in ((depth, "video"), (metres, "png"), (grey, "video")):
        with pytest.raises(roboreel.InvalidArgumentError, match="would do"):
            dataset.convert({key: mode})
    dataset.close()
    check_clean(tmp_path / "dataset")


def test_a_copy_leaves_the_dataset_as_it_is(tmp_path: Path) -> None:
    root, copy = tmp_path / "dataset", tmp_path / "deep" / "copy"
    dataset = ring(root, "png")
    wanted, generation = frames(dataset), dataset.generation
    dataset.convert("memmap", to=copy)
    other = LeRobotDatasetV2(copy)
    check_same(frames(other), wanted)
    assert other.uuid != dataset.uuid
    assert dataset.generation == generation
    for dest in (root, root / "in", tmp_path, copy):
        with pytest.raises(roboreel.InvalidArgumentError, match=r"overlaps|is there already"):
            dataset.convert("memmap", to=dest)
    dataset.close()
    reader = LeRobotDatasetV2(root, readonly=True)
    reader.convert("memmap", to=tmp_path / "from a reader")
    check_same(frames(LeRobotDatasetV2(tmp_path / "from a reader")), wanted)
    with pytest.raises(roboreel.ReadOnlyError):
        reader.convert("memmap")
    check_clean(root)
    check_clean(copy)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("jpeg", None, "none of the image modes"),
        ({"observation.images.top": "png"}, None, "the cameras are"),
        ("png", FAST, "leave one of them out"),
        (None, None, "says nothing"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, mode: Any, options: Any, message: str) -> None:
    with (
        made(tmp_path / "dataset", [3], camera=True) as dataset,
        pytest.raises(roboreel.InvalidArgumentError, match=message),
    ):
        dataset.convert(mode, video_options=options)


def test_damage_does_not_get_a_new_checksum(tmp_path: Path) -> None:
    for mode, pattern in (("memmap", f"columns/{CAMERA}.bin"), ("png", f"images/{CAMERA}/*/000001.png")):
        root = tmp_path / mode
        made(root, [4, 3], camera=True, image_mode=mode).close()
        path = next(root.glob(pattern))
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        with LeRobotDatasetV2(root) as dataset, pytest.raises(roboreel.StorageDirCorruptError, match="roboreel repair"):
            dataset.convert("memmap" if mode == "png" else "png")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "dataset"
    made(root, [20, 10], camera=True, image_mode="png").close()
    main(["convert", str(root), "--image-mode", "memmap", "--forecast", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["cameras"][CAMERA]["bytes_after"] == 30 * (16 * 24 * 3 + 8)
    assert told["fits"]
    main(["convert", str(root), "--image-mode", f"{CAMERA}=memmap"])
    said = capsys.readouterr().out
    assert "png" in said
    assert "memmap" in said
    assert "epoch" in said
    main(["convert", str(root), "--image-mode", "memmap"])
    said = capsys.readouterr().out
    assert said == f"{root}: the cameras are stored so already\n{root}: nothing was converted\n"
    main(["convert", str(root), "--image-mode", "memmap", "--to", str(tmp_path / "same")])
    said = capsys.readouterr().out
    assert said.startswith(
        f"{root}: the cameras are stored so already; {tmp_path / 'same'} becomes a copy\n  the whole: "
    )
    assert "needed meanwhile" in said
    assert said.endswith(f"{tmp_path / 'same'}: copied; nothing was converted\n")
    options = ["--codec", "h264", "--gop", "5", "--preset", "ultrafast", "--crf", "12"]
    main(["convert", str(root), "--image-mode", "video", *options, "--to", str(tmp_path / "copy"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["cameras"] == {CAMERA: ["memmap", "video"]}
    assert set(report) >= {"seconds", "epoch_seconds_before", "epoch_seconds_after", "break_even_epochs"}
    assert Store.open(tmp_path / "copy").manifest.keys[CAMERA].video_options == VideoOptions("h264", 5, 12, "ultrafast")
    main(["info", str(root)])
    assert f"converted  {CAMERA} png -> memmap" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["convert", str(root), "--image-mode", "tiff"])
    assert "none of the image modes" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [1, 2])
def test_several_cameras_are_typed_after_one_flag_or_each_after_its_own(tmp_path: Path, flags: int) -> None:
    data, right = recording(3, camera=True), "observation.images.right"
    with LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="memmap") as dataset:
        dataset.add_episodes({**data, right: data[CAMERA]})
    typed = [f"{CAMERA}=png", f"{right}=video"]
    typed = ["--image-mode", *typed] if flags == 1 else ["--image-mode", typed[0], "--image-mode", typed[1]]
    main(["convert", str(tmp_path / "dataset"), *typed, "--quiet", "--codec", "h264", "--preset", "ultrafast"])
    keys = Store.open(tmp_path / "dataset").manifest.keys
    assert [keys[key].to_dict()["stored"] for key in (CAMERA, right)] == ["png", "video"]


def test_an_import_says_when_it_has_paid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).parent / "data" / "v3.0_pusht_image_slice"
    main(["import", str(folder), str(tmp_path / "dataset"), "--decode-images"])
    said = capsys.readouterr().out
    assert "imported in" in said
    assert "pay for themselves" in said or "paid for themselves" in said


def test_options_that_are_not_typed_stay_as_they_are_stored(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    stored = VideoOptions(codec="h264", gop=10, preset="ultrafast", pix_fmt="yuv444p")
    with LeRobotDatasetV2(root, fps=10, image_mode="video", video_options=stored) as dataset:
        dataset.add_episodes({CAMERA: np.zeros((4, 16, 16, 3), np.uint8)})

    def coded() -> VideoOptions | None:
        with contextlib.closing(Store.open(root)) as store:
            return store.manifest.keys[CAMERA].video_options

    main(["convert", str(root), "--image-mode", "video", "--crf", "20", "--quiet"])
    assert coded() == replace(stored, crf=20)
    main(["convert", str(root), "--image-mode", "video", "--codec", "hevc", "--gop", "4", "--quiet"])
    assert coded() == VideoOptions(codec="hevc", gop=4)


@pytest.mark.parametrize("mode", ["png", "video"])
def test_decoded_frames_of_other_cameras_stay_in_the_cache(tmp_path: Path, mode: str) -> None:
    root, top, wrist = tmp_path / "dataset", "observation.images.top", "observation.images.wrist"
    with LeRobotDatasetV2(root, fps=10, image_mode=mode) as dataset:
        for first in (0, 6):
            images = painted_frames(range(first, first + 6))
            dataset.add_episodes({top: images, wrist: images})
    reader = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache="2MB", readonly=True)
    wanted = reader.get_batch(range(12))
    LeRobotDatasetV2(root).convert({wrist: "memmap"})
    later = LeRobotDatasetV2(root, image_dtype="uint8", decoded_cache="3MB")
    for opened in (later, reader, later):
        batch = opened.get_batch(range(12))
        assert all(torch.equal(batch[key], wanted[key]) for key in (top, wrist))
        report = opened.decoded_cache
        assert report is not None
        assert report.frames == 12
    assert later.decoded_cache is not None
    assert (later.decoded_cache.hits, later.decoded_cache.decoded) == (24, 0)
    assert sorted(path.name for path in (root / "cache").iterdir()) == ["lock", f"{top}.pixels", f"{top}.slots"]
    check_clean(root)
