"""Each camera in its own image mode, with its own video options: asked for, stored, kept, or refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import roboreel
from roboreel import LeRobotDatasetV2, LeRobotDatasetV2ImageMode, VideoOptions
from roboreel.cli import main
from roboreel.cli.info import collect
from tests.lerobot_folders import write_v2, write_v3
from tests.recordings import VIDEO_ERROR, numbers_of, pictures, recording

RAW, PNG, TOP, SIDE = (f"observation.images.{name}" for name in ("raw", "png", "top", "side"))
MODES: dict[str, Any] = {RAW: "memmap", PNG: LeRobotDatasetV2ImageMode.PNG, TOP: "video"}
H264 = VideoOptions(codec="h264", gop=4, crf=18, preset="veryfast")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def shot(length: int, first: int = 0, cameras: tuple[str, ...] = (RAW, PNG, TOP, SIDE)) -> dict[str, Any]:
    """An episode whose cameras see the frame number, each another picture of it."""
    numbers = np.arange(first, first + length)
    return recording(length, first) | {key: pictures(numbers + 9 * k) for k, key in enumerate(cameras)}


def still(length: int) -> dict[str, Any]:
    """An episode in which nothing moves, so that no encoder begins anew of its own accord."""
    return {key: pictures(np.zeros(length, int)) for key in (RAW, PNG, TOP, SIDE)}


def assert_seen(dataset: LeRobotDatasetV2) -> None:
    batch = dataset.get_batch(range(len(dataset)))
    for k, key in enumerate((RAW, PNG, TOP, SIDE)):
        wanted = pictures(np.asarray(numbers_of(batch)) + 9 * k).astype(int)
        error = np.abs(batch[key].movedim(1, -1).numpy() - wanted)
        assert error.max() <= (0 if key in (RAW, PNG) else VIDEO_ERROR), key


def stored(root: Path) -> dict[str, str]:
    keys = json.loads((root / "metadata.json").read_text())["keys"]
    return {key: fields["stored"] for key, fields in keys.items() if fields["role"] == "camera"}


def test_each_camera_is_stored_as_asked_and_those_not_named_as_video(root: Path) -> None:
    dataset = LeRobotDatasetV2(root, fps=10, image_mode=MODES, image_dtype="uint8")
    dataset.add_episodes(shot(4))
    dataset.add_episodes(shot(3, 4))
    assert stored(root) == {RAW: "column", PNG: "png", TOP: "video", SIDE: "video"}
    assert_seen(dataset)
    assert_seen(pickle.loads(pickle.dumps(dataset)))
    assert np.array_equal(dataset.get_data_by_key(RAW), pictures(np.arange(7)))
    with pytest.raises(ValueError, match="stored as png: this would decode the whole"):
        dataset.get_data_by_key(PNG)
    LeRobotDatasetV2.check_storage_dir_integrity(root, MODES)
    with pytest.raises(roboreel.StorageDirCorruptError, match=f"{TOP!r} is stored as 'video', not as 'png'"):
        LeRobotDatasetV2.check_storage_dir_integrity(root, {TOP: "png"})


@pytest.mark.parametrize("again", [None, {}, MODES, {PNG: "png"}, {SIDE: "video", RAW: "MEMMAP"}])
def test_reopened_with_the_same_or_less_it_goes_on(root: Path, again: Any) -> None:
    LeRobotDatasetV2(root, fps=10, image_mode=MODES, video_options={TOP: H264}).add_episodes(shot(4))
    dataset = LeRobotDatasetV2(root, image_mode=again, image_dtype="uint8")
    dataset.add_episodes(shot(3, 4))
    assert_seen(dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_mode": "video"}, r"image_mode='video', but .* stored as \{'observation.images.raw': 'memmap', "),
        (
            {"image_mode": {PNG: "video"}},
            r"image_mode=\{'observation.images.png': 'video'\}, but .* leave image_mode out",
        ),
        ({"image_mode": {"observation.images.x": "png"}}, "image_mode names 'observation.images.x'; the cameras are "),
        ({"image_mode": {"action": "memmap"}}, "image_mode names 'action'; the cameras are"),
        ({"video_options": {"x": H264}}, "video_options names 'x'; the cameras are"),
        ({"video_options": {RAW: H264}}, "video_options name 'observation.images.raw', which is stored as 'memmap'"),
        (
            {"video_options": H264},
            r"video_options are .*h264.* for 'observation.images.side', and .*'av1'.*leave video",
        ),
    ],
)
def test_what_contradicts_a_stored_dataset_is_refused(root: Path, options: Any, message: str) -> None:
    LeRobotDatasetV2(root, fps=10, image_mode=MODES, video_options={TOP: H264}).add_episodes(shot(3))
    with pytest.raises(ValueError, match=message):
        LeRobotDatasetV2(root, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_mode": {RAW: "jpeg"}}, "'jpeg' is none of the image modes"),
        ({"image_mode": {3: "png"}}, "image_mode has the name 3; the key of a camera would do"),
        ({"image_mode": ["png"]}, r"image_mode=\['png'\] is none of the image modes"),
        ({"video_options": "h264"}, r"video_options='h264'; roboreel.VideoOptions\(codec='h264', crf=23\), say, or a "),
        ({"video_options": {RAW: {"codec": "h264"}}}, "or a dict"),
        ({"video_options": H264, "image_mode": "png"}, "video_options were given with image_mode='png', which has"),
        (
            {"video_options": {RAW: H264}, "image_mode": MODES},
            "video_options name '.*raw', which is stored as 'memmap'",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(root: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotDatasetV2(root, fps=10, **options)
    assert not root.exists()


@pytest.mark.parametrize(
    ("options", "cameras", "message"),
    [
        (
            {"image_mode": {"observation.images.wirst": "png"}},
            (RAW,),
            r"image_mode names '.*wirst'; the cameras are \[",
        ),
        ({"image_mode": MODES}, (RAW, PNG), "image_mode names 'observation.images.top'; the cameras are"),
        ({"video_options": {TOP: H264}}, (RAW,), "video_options names 'observation.images.top'; the cameras are"),
        ({"video_options": H264}, (), "no camera is stored as video; leave them out"),
        ({"video_options": H264, "image_mode": {RAW: "png"}}, (RAW,), "no camera is stored as video; leave them out"),
    ],
)
def test_a_first_episode_without_a_named_camera_is_refused(
    root: Path, options: Any, cameras: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LeRobotDatasetV2(root, fps=10, **options).add_episodes(shot(3, cameras=cameras))
    assert not root.exists()


def test_video_options_are_kept_and_used_by_later_writers(root: Path) -> None:
    LeRobotDatasetV2(root, fps=10, image_mode=MODES, video_options={TOP: H264}).add_episodes(still(3))
    LeRobotDatasetV2(root, image_dtype="uint8").add_episodes(still(9))
    for options in (H264, VideoOptions(codec="h264", gop=4, crf=18, preset="veryfast")):
        LeRobotDatasetV2(root, video_options={TOP: options}).add_episodes(still(1))
    keys = json.loads((root / "metadata.json").read_text())["keys"]
    assert keys[TOP]["encoding"] == {
        "codec": "h264", "gop": 4, "crf": 18, "preset": "veryfast", "pix_fmt": "yuv420p"
    }  # fmt: skip
    assert keys[SIDE]["encoding"] == VideoOptions().to_dict()
    store = LeRobotDatasetV2(root)._need_store()
    tables = {key: [store.columns[key].table(file) for file in (0, 1)] for key in (TOP, SIDE)}  # type: ignore[attr-defined]
    assert [(table.codec, table.key.tolist()) for table in tables[TOP]] == [
        ("h264", [True, False, False]),
        ("h264", [True, False, False, False] * 2 + [True]),
    ]
    assert [(table.codec, table.key[:4].tolist()) for table in tables[SIDE]] == [
        ("av1", [True, False, True]),
        ("av1", [True, False, True, False]),
    ]


def test_info_shows_how_new_frames_are_coded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LeRobotDatasetV2(root, fps=10, image_mode=MODES, video_options={TOP: H264}).add_episodes(still(3))
    main(["info", str(root)])
    shown = capsys.readouterr().out
    assert (
        "1 video file, h264 yuv420p, a key frame every 3; new ones h264 yuv420p, gop 4, crf 18, preset veryfast"
        in shown
    )
    assert "1 video file, av1 yuv420p, a key frame every 1.5; new ones av1 yuv420p, gop 2, crf 30" in shown
    assert collect(root)["keys"][TOP]["encoding"] == H264.to_dict()


@pytest.mark.parametrize("write", [write_v2, write_v3])
@pytest.mark.parametrize("kind", ["video", "image"])
@pytest.mark.parametrize("mode", ["memmap", "png", "video"])
def test_a_source_camera_is_taken_in_any_mode(tmp_path: Path, write: Callable[..., Path], kind: str, mode: str) -> None:
    folder = write(tmp_path / "folder", camera=kind)
    camera = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "kept", progress=False).camera_keys[0]
    kept = LeRobotDatasetV2(tmp_path / "kept")
    options: dict[str, Any] = {"image_mode": {camera: mode}, "progress": False}
    if mode == "video":
        options["video_options"] = H264
    taken = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "taken", **options)
    assert stored(tmp_path / "taken") == {camera: mode if mode != "memmap" else "column"}
    everything = range(len(kept))
    error = np.abs(np.asarray(kept.get_batch(everything)[camera]) - np.asarray(taken.get_batch(everything)[camera]))
    lossless = mode != "video" or kind == "video"  # a video is taken as the file that it is
    assert error.max() == 0 if lossless else error.mean() < 12 / 255
    LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "taken", {camera: mode})
    before = (tmp_path / "taken" / "metadata.json").read_bytes()
    for same in (options, {"progress": False}):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "taken", **same).close()
    other = "png" if mode == "memmap" else "memmap"
    with pytest.raises(ValueError, match=f"image_mode=.*{other!r}.*stored as {mode!r}; leave image_mode out"):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "taken", image_mode={camera: other})
    assert (tmp_path / "taken" / "metadata.json").read_bytes() == before


def test_an_import_refuses_unknown_cameras_and_contradictions(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "folder", camera="video")
    for options, message in (
        ({"image_mode": {"nope": "png"}}, "image_mode names 'nope'; the cameras are"),
        ({"image_mode": "png", "decode_images": True}, "decode_images=True means image_mode='memmap', and"),
        ({"video_options": H264, "decode_images": True}, "video_options were given with image_mode='memmap'"),
    ):
        with pytest.raises(ValueError, match=message):
            LeRobotDatasetV2.from_lerobot(folder, tmp_path / "taken", progress=False, **options)
    assert not (tmp_path / "taken").exists()
    LeRobotDatasetV2.from_lerobot(folder, tmp_path / "taken", True, image_mode="memmap", progress=False).close()
    assert set(stored(tmp_path / "taken").values()) == {"column"}


def test_import_takes_modes_and_options_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_v3(tmp_path / "folder", camera="image")
    camera = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "kept", progress=False).camera_keys[0]
    coded = ["--image-mode", f"{camera}=video", "--video.codec", "h264", "--video.gop", "5"]
    main(["import", *coded, str(folder), str(tmp_path / "a")])
    assert "h264 yuv420p, gop 5, crf 30" in capsys.readouterr().out
    main(["import", str(folder), str(tmp_path / "b"), "--image-mode", "memmap", "--quiet"])
    assert stored(tmp_path / "a") | stored(tmp_path / "b") == {camera: "column"}
    with pytest.raises(SystemExit):
        main(["import", str(folder), str(tmp_path / "c"), "--image-mode", "png", "--image-mode", f"{camera}=video"])
    assert "one mode would do, or CAMERA=MODE for each of some cameras" in capsys.readouterr().err
