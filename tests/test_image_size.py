"""`image_size`: frames are brought to one size on their way in, exactly as Pillow would, from every source."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import roboreel
from roboreel import LeRobotDatasetV2
from roboreel.cli import main
from roboreel.columns.resize import ResizedFrames, nearest
from roboreel.store import ArrayFrames
from tests.lerobot_folders import CAMERA as FOLDER_CAMERA
from tests.lerobot_folders import LENGTHS, write_v3
from tests.recordings import VIDEO_ERROR, pictures
from tests.video_files import HEIGHT, WIDTH

CAMERA, TOP, DEPTH = "observation.image", "observation.images.top", "observation.images.depth"
SIZE = (12, 20)


def by_pillow(frames: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """What a user would do: one image at a time."""
    return np.stack(
        [
            np.asarray(
                Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame).resize(
                    (size[1], size[0]), Image.Resampling.BILINEAR
                )
            ).reshape(*size, -1)
            for frame in frames
        ]
    )


def noise(*shape: int, dtype: Any = np.uint8) -> NDArray[Any]:
    return np.random.default_rng(sum(shape)).integers(1, np.iinfo(dtype).max, shape, dtype)


@pytest.mark.parametrize("mode", ["memmap", "png"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(31, 40), (12, 20), (5, 50)])
def test_colours_are_what_pillow_makes_of_them(
    tmp_path: Path, mode: str, channels: int, shape: tuple[int, int]
) -> None:
    frames = noise(3, *shape, channels)
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode=mode, image_size=SIZE)
    dataset.add_episodes({CAMERA: frames})
    assert np.array_equal(dataset.get_episode(0)[CAMERA], by_pillow(frames, SIZE))


@given(st.tuples(*[st.integers(1, 40)] * 4))
@settings(max_examples=200)
def test_depth_takes_the_pixel_that_pillow_takes(sides: tuple[int, int, int, int]) -> None:
    old, new = sides[:2], sides[2:]
    frames = np.arange(old[0] * old[1], dtype=np.uint16).reshape(1, *old, 1)
    found = nearest(frames, new)[0, ..., 0]
    pillows = np.asarray(Image.fromarray(frames[0, ..., 0]).resize(new[::-1], Image.Resampling.NEAREST))
    # Where a centre lies exactly on an edge either pixel is nearest, and Pillow takes the one its rounding gives.
    rows, columns = (((2 * np.arange(n) + 1) * o) % (2 * n) != 0 for o, n in zip(old, new, strict=True))
    clear = rows[:, None] & columns
    assert np.array_equal(found[clear], pillows[clear])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_no_distance_is_invented(tmp_path: Path, dtype: Any) -> None:
    depth = noise(2, 30, 50, 1, dtype=np.uint16).astype(dtype)
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_size=SIZE)
    dataset.add_episodes({DEPTH: depth})
    stored = dataset.get_episode(0)[DEPTH]
    assert (stored.shape, stored.dtype) == ((2, *SIZE, 1), depth.dtype)
    for one, whole in zip(stored, depth, strict=True):
        assert np.isin(one, whole).all()


def test_it_stays_with_the_dataset(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    first, later = noise(2, 31, 40, 3), noise(2, 50, 23, 3)
    LeRobotDatasetV2(root, fps=10, image_mode="memmap", image_size=SIZE).add_episodes({CAMERA: first})
    again = LeRobotDatasetV2(root)
    again.add_episodes({CAMERA: later})
    again.add_episodes({CAMERA: by_pillow(later, SIZE)})  # of that size already
    again.close()
    for options in ({}, {"image_size": SIZE}, {"image_size": {CAMERA: SIZE}}):
        dataset = pickle.loads(pickle.dumps(LeRobotDatasetV2(root, **options)))
        assert np.array_equal(dataset.get_episode(0)[CAMERA], by_pillow(first, SIZE))
        assert np.array_equal(dataset.get_episode(1)[CAMERA], by_pillow(later, SIZE))
        assert np.array_equal(dataset.get_episode(2)[CAMERA], by_pillow(later, SIZE))
    with pytest.raises(
        ValueError, match=r"image_size=\(9, 9\), but .* are stored resized, .*\(12, 20\); leave image_size"
    ):
        LeRobotDatasetV2(root, image_size=(9, 9))
    with pytest.raises(ValueError, match=r"frames of shape \(12, 20, 1\), where the dataset has \(12, 20, 3\)"):
        LeRobotDatasetV2(root).add_episodes({CAMERA: noise(2, 12, 20, 1)})


def test_without_it_another_size_is_refused_then_and_later(tmp_path: Path) -> None:
    LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="memmap").add_episodes({CAMERA: noise(2, 12, 20, 3)})
    with pytest.raises(ValueError, match=r"stored as they came, .*\(12, 20\); leave image_size out"):
        LeRobotDatasetV2(tmp_path / "dataset", image_size=(20, 12))
    for options in (
        {},
        {"image_size": SIZE},
        {"image_size": {CAMERA: SIZE}},
    ):
        dataset = LeRobotDatasetV2(tmp_path / "dataset", **options)
        with pytest.raises(ValueError, match=r"frames of shape \(31, 40, 3\), where the dataset has \(12, 20, 3\)"):
            dataset.add_episodes({CAMERA: noise(2, 31, 40, 3)})
        assert len(dataset) == 2
        dataset.close()


def test_cameras_of_their_own_sizes(tmp_path: Path) -> None:
    data = {CAMERA: noise(2, 31, 40, 3), TOP: noise(2, 22, 16, 3), DEPTH: noise(2, 48, 64, 1, dtype=np.uint16)}
    sizes = {CAMERA: SIZE, DEPTH: (24, 32)}
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_mode="png", image_size=sizes, depth_unit="raw")
    dataset.add_episodes(data)
    item = dataset[1]
    assert [item[key].shape for key in data] == [(3, *SIZE), (3, 22, 16), (1, 24, 32)]
    assert np.array_equal(item[TOP].mul(255).round().numpy(), np.moveaxis(data[TOP][1], -1, 0))
    assert np.array_equal(item[DEPTH].numpy()[0], data[DEPTH][1, 1::2, 1::2, 0])


def test_blocks_keep_their_order_and_number() -> None:
    frames = noise(70, 9, 8, 3)
    resized = ResizedFrames(ArrayFrames(frames), (600, 700), "pillow-bilinear")
    blocks = list(resized.blocks())
    assert len(blocks) > 2  # 1.26 MB a frame
    assert np.array_equal(np.concatenate(blocks)[::23], by_pillow(frames[::23], (600, 700)))


@pytest.mark.parametrize("mode", ["video", "png", "memmap"])
def test_video_and_png_of_a_folder_are_made_anew(tmp_path: Path, mode: str) -> None:
    folder = write_v3(tmp_path / "folder", "image" if mode == "png" else "video")
    plain = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "plain", mode == "memmap")
    size = (HEIGHT // 2, WIDTH // 2)
    small = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "small", mode == "memmap", image_size=size)
    LeRobotDatasetV2.check_storage_dir_integrity(tmp_path / "small", mode)
    for episode in range(len(LENGTHS)):
        wanted = by_pillow(plain.get_episode(episode)[FOLDER_CAMERA], size).astype(int)
        error = np.abs(small.get_episode(episode)[FOLDER_CAMERA] - wanted)
        assert error.mean() <= (VIDEO_ERROR if mode == "video" else 0)
    again = LeRobotDatasetV2.from_lerobot(folder, tmp_path / "small", mode == "memmap")  # reused as it is
    assert again.uuid == small.uuid
    LeRobotDatasetV2.from_lerobot(folder, tmp_path / "plain", mode == "memmap", image_size=(HEIGHT, WIDTH))  # it too
    with pytest.raises(ValueError, match=r"image_size=\(9, 9\), but .*; leave image_size out"):
        LeRobotDatasetV2.from_lerobot(folder, tmp_path / "small", mode == "memmap", image_size=(9, 9))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_v3(tmp_path / "folder", "image")
    main(["import", str(folder), str(tmp_path / "one"), "--image-size", "10", "14"])
    assert "14x10, 3 channels, resized (pillow-bilinear), PNG" in capsys.readouterr().out
    main(["import", str(folder), str(tmp_path / "two"), "--camera-size", FOLDER_CAMERA, "8", "9"])
    assert "9x8, 3 channels" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["import", str(folder), str(tmp_path / "x"), "--image-size", "8", "9", "--camera-size", "a", "8", "9"])
    assert "give one of them" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["import", str(folder), str(tmp_path / "x"), "--camera-size", "observation.img", "8", "9"])
    assert "image_size is given for ['observation.img']; the cameras are" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "size", [96, "9x9", (96,), (96, 96, 3), (0, 96), (9.5, 9), (True, True), {CAMERA: 96}, ("96", "96")]
)
def test_what_is_no_size(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ValueError, match=r"image_size=.*; \(height, width\) in pixels would do"):
        LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_size=size)


def test_a_size_for_a_camera_that_is_not_there(tmp_path: Path) -> None:
    dataset = LeRobotDatasetV2(tmp_path / "dataset", fps=10, image_size={TOP: SIZE})
    with pytest.raises(ValueError, match=rf"image_size is given for \['{TOP}'\]; the cameras are \['{CAMERA}'\]"):
        dataset.add_episodes({CAMERA: pictures(np.arange(2))})
    assert not (tmp_path / "dataset").exists()


def test_a_method_of_a_later_version(tmp_path: Path) -> None:
    root = tmp_path / "dataset"
    LeRobotDatasetV2(root, fps=10, image_mode="memmap", image_size=SIZE).add_episodes({CAMERA: noise(2, 31, 40, 3)})
    text = (root / "metadata.json").read_text()
    (root / "metadata.json").write_text(text.replace("pillow-bilinear", "neural"))
    dataset = LeRobotDatasetV2(root)
    assert len(dataset) == 2
    with pytest.raises(roboreel.InvalidEpisodeError, match=r"resized by 'neural', which .* 12 pixels high and 20 wide"):
        dataset.add_episodes({CAMERA: noise(2, 31, 40, 3)})
    dataset.add_episodes({CAMERA: noise(2, 12, 20, 3)})
    (root / "metadata.json").write_text(text.replace('"pillow-bilinear"', "3"))
    with pytest.raises(roboreel.StorageDirCorruptError, match="resized 3, which is the method for a camera"):
        LeRobotDatasetV2(root, readonly=True)
