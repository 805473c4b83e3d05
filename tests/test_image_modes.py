"""One contract for every way of storing a camera: through the public face all behave the same."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import roboreel
from roboreel import LeRobotDatasetV2, LeRobotDatasetV2ImageMode
from tests.damage import flip
from tests.recordings import CAMERA, HEIGHT, VIDEO_ERROR, WIDTH, made, numbers_of, pictures, recording

MODES = [mode.value for mode in LeRobotDatasetV2ImageMode]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


@pytest.mark.parametrize("mode", MODES)
class TestImageMode:
    def test_frames_come_back(self, root: Path, mode: str) -> None:
        dataset = made(root, [4, 3], camera=True, image_mode=mode)
        assert dataset.camera_keys == [CAMERA]
        for i in (0, 3, 4, -1):
            item = dataset[i]
            assert (item[CAMERA].shape, item[CAMERA].dtype) == ((3, HEIGHT, WIDTH), torch.float32)
            assert 0 <= item[CAMERA].min() <= item[CAMERA].max() <= 1
            assert_pictures(item[CAMERA] * 255, numbers_of(item), mode)
        dataset.close()
        again = LeRobotDatasetV2(root, image_dtype="uint8")
        assert again[5][CAMERA].dtype == torch.uint8
        assert_pictures(again[5][CAMERA], 5, mode)
        LeRobotDatasetV2.check_storage_dir_integrity(root, mode)

    def test_windows_and_batches(self, root: Path, mode: str) -> None:
        dataset = made(root, [4, 3], camera=True, image_mode=mode, image_dtype="uint8")
        dataset.set_delta_timestamps({CAMERA: [-0.1, 0, 0.2], "observation.state": [-0.1, 0, 0.2]})
        indices = [6, 0, 3, 0, 4]
        batch = dataset.get_batch(indices)
        assert batch[CAMERA].shape == (5, 3, 3, HEIGHT, WIDTH)
        assert numbers_of(batch) == [[5, 6, 6], [0, 0, 2], [2, 3, 3], [0, 0, 2], [4, 4, 6]]
        assert_pictures(batch[CAMERA], numbers_of(batch), mode)
        assert torch.equal(batch[CAMERA + "_is_pad"], batch["observation.state_is_pad"])
        for k, i in enumerate(indices):
            assert torch.equal(batch[CAMERA][k], dataset[i][CAMERA])

    def test_episodes_and_data_by_key(self, root: Path, mode: str) -> None:
        dataset = made(root, [4, 3], camera=True, image_mode=mode)
        assert_pictures(torch.from_numpy(dataset.get_episode(1)[CAMERA]).movedim(-1, -3), [4, 5, 6], mode)
        if LeRobotDatasetV2ImageMode.needs_decoding(mode):
            with pytest.raises(ValueError, match=f"{CAMERA!r} is stored as {mode}: this would decode the whole"):
                dataset.get_data_by_key(CAMERA)
        else:
            assert np.array_equal(dataset.get_data_by_key(CAMERA), pictures(np.arange(7)))

    def test_statistics(self, root: Path, mode: str) -> None:
        dataset = made(root, [4, 3], camera=True, image_mode=mode)
        stats, scaled = dataset.stats[CAMERA], pictures(np.arange(7)) / 255
        np.testing.assert_allclose(stats["mean"].ravel(), scaled.mean(axis=(0, 1, 2)), atol=VIDEO_ERROR / 255)
        np.testing.assert_allclose(stats["std"].ravel(), scaled.std(axis=(0, 1, 2)), atol=VIDEO_ERROR / 255)

    def test_a_ring_overwrites_and_removes_what_nothing_refers_to(self, root: Path, mode: str) -> None:
        dataset = made(root, [4, 4], camera=True, image_mode=mode, buffer_capacity=9, use_as_fifo_buffer=True)
        reader = pickle.loads(pickle.dumps(dataset))
        assert_pictures(reader[0][CAMERA] * 255, 0, mode)
        files = stored_files(root)
        for first in range(8, 40, 3):
            dataset.add_episodes(recording(3, first, camera=True))
            for shared in (dataset, reader):
                batch = shared.get_batch(range(len(shared)))
                assert_pictures(batch[CAMERA] * 255, numbers_of(batch), mode)
        assert (len(dataset), sorted(numbers_of(batch))) == (9, list(range(32, 41)))
        assert len(stored_files(root)) <= len(files) + 2 * (9 - 8)
        LeRobotDatasetV2.check_storage_dir_integrity(root, mode)

    def test_a_refused_episode_leaves_no_file_behind(self, root: Path, mode: str) -> None:
        dataset = made(root, [4], camera=True, image_mode=mode)
        before = stored_files(root)
        wrong_size = recording(2, 4, camera=True)
        wrong_size[CAMERA] = wrong_size[CAMERA][:, :-1]
        with pytest.raises(ValueError, match=rf"{CAMERA!r}: frames of shape \(15, 24, 3\), where .* \(16, 24, 3\)"):
            dataset.add_episodes(wrong_size)
        with pytest.raises(ValueError, match=r"the episode (lacks the keys|has no key)"):
            dataset.add_episodes(recording(2, 4))
        assert stored_files(root) == before
        dataset.add_episodes(recording(2, 4, camera=True))
        assert_pictures(dataset[5][CAMERA] * 255, 5, mode)

    def test_the_mode_is_stored_and_another_one_refused(self, root: Path, mode: str) -> None:
        made(root, [4], camera=True, image_mode=LeRobotDatasetV2ImageMode(mode)).close()
        other = next(candidate for candidate in MODES if candidate != mode)
        with pytest.raises(ValueError, match=f"image_mode={other!r}, but the cameras .* are stored as {mode!r}"):
            LeRobotDatasetV2(root, image_mode=other)
        with pytest.raises(roboreel.StorageDirCorruptError, match=f"stored as {mode!r}, not as {other!r}"):
            LeRobotDatasetV2.check_storage_dir_integrity(root, other)
        dataset = LeRobotDatasetV2(root, image_mode=mode.upper())
        dataset.add_episodes(recording(2, 4, camera=True))
        assert_pictures(dataset[-1][CAMERA] * 255, 5, mode)

    def test_two_cameras_of_different_sizes(self, root: Path, mode: str) -> None:
        dataset = LeRobotDatasetV2(root, fps=10, image_mode=mode)
        for first in (0, 3):
            data = recording(3, first, camera=True)
            data["observation.images.Top/left"] = pictures(np.arange(first, first + 3) + 100).repeat(2, axis=1)
            dataset.add_episodes(data)
        dataset.set_delta_timestamps({"observation.images.Top/left": [0, 0.1]})
        item = dataset[4]
        assert_pictures(item[CAMERA] * 255, 4, mode)
        assert item["observation.images.Top/left"].shape == (2, 3, 2 * HEIGHT, WIDTH)
        assert_pictures(item["observation.images.Top/left"][..., ::2, :] * 255, [104, 105], mode)


@pytest.mark.parametrize("mode", ["memmap", "png"])
@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_alpha_are_kept(root: Path, mode: str, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 9, channels), np.uint8)
    dataset = LeRobotDatasetV2(root, fps=10, image_mode=mode, image_dtype="uint8")
    dataset.add_episodes({CAMERA: images})
    assert np.array_equal(dataset.get_batch(range(3))[CAMERA].movedim(1, -1).numpy(), images)


def test_video_takes_three_channels_only(root: Path) -> None:
    with pytest.raises(ValueError, match=rf"{CAMERA!r}: .*\(8, 9, 1\), and video has 3 channels.*image_mode='png'"):
        LeRobotDatasetV2(root, fps=10, image_mode="video").add_episodes({CAMERA: np.zeros((3, 8, 9, 1), np.uint8)})
    assert not root.exists()


def test_a_new_dataset_stores_cameras_as_video_and_without_any_says_nothing(root: Path) -> None:
    LeRobotDatasetV2(root, fps=10).add_episodes(recording(3, camera=True))
    LeRobotDatasetV2.check_storage_dir_integrity(root, "video")
    plain = LeRobotDatasetV2(root.parent / "plain", fps=10)
    plain.add_episodes(recording(3))
    assert plain.camera_keys == []


@pytest.mark.parametrize("mode", ["png", "video"])
def test_a_mode_asked_for_by_name_needs_a_camera(root: Path, mode: str) -> None:
    with pytest.raises(ValueError, match=f"image_mode={mode!r} was asked for and the episode has no key"):
        LeRobotDatasetV2(root, fps=10, image_mode=mode).add_episodes(recording(3))
    assert not root.exists()


def test_png_keeps_every_pixel_of_noise(root: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, HEIGHT, WIDTH, 3), np.uint8)
    dataset = LeRobotDatasetV2(root, fps=10, image_mode="png")
    dataset.add_episodes({CAMERA: images})
    assert np.array_equal(dataset.get_episode(0)[CAMERA], images)


@pytest.mark.parametrize(("mode", "suffix"), [("png", ".png"), ("video", ".mp4"), ("video", ".frames")])
def test_a_missing_image_file_is_named(root: Path, mode: str, suffix: str) -> None:
    dataset = made(root, [3], camera=True, image_mode=mode)
    dataset.close()
    lost = min(root.rglob(f"*{suffix}"))
    lost.unlink()
    said = rf"episode 0, camera '{CAMERA}': .*{lost.name} is missing; restore it from a copy, .*roboreel repair"
    with pytest.raises(roboreel.UnreadableImageError, match=said):
        LeRobotDatasetV2(root)[0]
    with pytest.raises(roboreel.StorageDirCorruptError, match=lost.name):
        LeRobotDatasetV2.check_storage_dir_integrity(root)


def test_a_spoiled_frame_table_is_named_with_its_episode(root: Path) -> None:
    made(root, [3, 2], camera=True, image_mode="video").close()
    flip(next(root.rglob("000001.frames")), 70, 1)
    dataset = LeRobotDatasetV2(root)
    assert dataset[2]["episode_index"] == 0
    with pytest.raises(roboreel.UnreadableImageError, match=rf"episode 1, frame 1 of '{CAMERA}': .*roboreel verify"):
        dataset[4]


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_that_video_has_no_room_for_are_refused_at_an_import_too(root: Path, channels: int) -> None:
    images = np.zeros((3, HEIGHT, WIDTH, channels), np.uint8)
    with LeRobotDatasetV2(root, 10, image_mode="png") as dataset:
        dataset.add_episodes({CAMERA: images})
        dataset.to_lerobot(root.parent / "lerobot")
    with pytest.raises(roboreel.InvalidEpisodeError, match=r"video has 3 channels.*image_mode='png' or 'memmap'"):
        LeRobotDatasetV2.from_lerobot(root.parent / "lerobot", root.parent / "again", image_mode="video")
    assert not (root.parent / "again").exists()


def test_a_place_that_looks_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with made(Path("run:1/data"), [3, 2], camera=True, task="push", image_mode="video") as dataset:
        assert_pictures(dataset.get_batch([4, 1])[CAMERA] * 255, [4, 1], "video")
        dataset.to_lerobot(Path("lerobot:out"))
    with LeRobotDatasetV2.from_lerobot("lerobot:out", "run:2") as again:
        assert_pictures(again.get_batch([4, 1])[CAMERA] * 255, [4, 1], "video")
        again.convert("memmap")
        assert_pictures(again.get_batch([4, 1])[CAMERA] * 255, [4, 1], "video")


def stored_files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for folder in ("images", "videos") for path in (root / folder).rglob("*.*")}


def assert_pictures(images: Any, numbers: Any, mode: str) -> None:
    """Check (…, 3, H, W), 0 to 255, against what was recorded under these frame numbers."""
    wanted: NDArray[np.int16] = pictures(np.asarray(numbers)).astype(np.int16)
    error = np.abs(np.moveaxis(np.asarray(images), -3, -1).round().astype(np.int16) - wanted).max()
    assert error <= (VIDEO_ERROR if mode == "video" else 0)
